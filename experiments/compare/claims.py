"""Claims that one method of a suite beats another, and the figure that decides each."""

import dataclasses

from experiments.compare.statistics import Estimate

# What a figure above its neutral value means, and that value. The first of the two methods named is the better one.
MEASURES = {
    "accuracy": ("test pass@1 after as many steps, first minus second", 0.0),
    "tokens": ("generated tokens to a level, second over first", 1.0),
    "cached": ("share of cached problems, last round minus first", 0.0),
    "reward": ("mean reward of a problem's trajectories, first minus second", 0.0),
    "solved": ("problems solved per 1,000 tokens, first over second", 1.0),
    "expansions": ("expansions a tree, second over first", 1.0),
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim, made before the runs.

    Attributes:
      source: a table of the paper, or "pilot" for what the pilot studies found.
      text: the claim in words.
      better, worse: methods of the suite; the same one where a method is compared with itself.
      measure: of MEASURES.
      level: validation pass@1, of "tokens".
    """

    source: str
    text: str
    better: str
    worse: str
    measure: str
    level: float = 0.0

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"measure={self.measure!r} of a claim is not known; choose one of {', '.join(MEASURES)}")
        if self.measure == "tokens" and not self.level:
            raise ValueError(f"claim {self.text!r} is measured in tokens to a level; give level, for example 0.1")


def verdict(figure: Estimate, neutral: float) -> str:
    """What a 95 % interval says of a claim."""
    if figure.low > neutral:
        return "reproduced"
    return "not reproduced: the opposite" if figure.high < neutral else "undecided"
