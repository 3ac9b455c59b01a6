"""Claims that one method of a suite beats another, and the figure that decides each."""

import dataclasses
from typing import NamedTuple

from experiments.compare.statistics import Estimate


class Measure(NamedTuple):
    """What a figure means, the value that favours neither method (above it the first is better), and the kind of suite
    that has it."""

    meaning: str
    neutral: float
    kind: str


MEASURES = {
    "accuracy": Measure("test pass@1 after as many steps, first minus second", 0.0, "train"),
    "tokens": Measure("generated tokens to a level, second over first", 1.0, "train"),
    "cached": Measure("share of groups from the cache, last round minus first", 0.0, "train"),
    "reward": Measure("mean reward of a problem's trajectories, first minus second", 0.0, "frozen"),
    "solved": Measure("problems solved per 1,000 tokens, first over second", 1.0, "frozen"),
    "expansions": Measure("expansions a tree, second over first", 1.0, "frozen"),
}
# Below, the interval of a bootstrap over seeds says too little: with three, one of eight claims without any truth in it
# would come out as reproduced, with two one of five.
FEWEST_SEEDS = 4


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim, made before the runs.

    Attributes:
      source: a table of the paper, or "pilot" for what the pilot studies found.
      text: the claim in words.
      better, worse: methods of the suite; the same one where a method is compared with itself.
      measure: of MEASURES.
      level: of "tokens", the validation pass@1 to reach; of "accuracy", the test pass@1 below which neither has learnt
        anything, so that a seed does not count.
      settings: where it is claimed; () is everywhere.
    """

    source: str
    text: str
    better: str
    worse: str
    measure: str
    level: float = 0.0
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"measure={self.measure!r} of a claim is not known; choose one of {', '.join(MEASURES)}")
        if self.measure == "tokens" and not self.level:
            raise ValueError(f"claim {self.text!r} is measured in tokens to a level; give level, for example 0.1")


def verdict(figure: Estimate, neutral: float, num_seeds: int) -> str:
    """What a 95 % interval over so many seeds says of a claim."""
    if num_seeds < FEWEST_SEEDS:
        return f"undecided: fewer than {FEWEST_SEEDS} seeds"
    if figure.low > neutral:
        return "reproduced"
    return "not reproduced: the opposite" if figure.high < neutral else "undecided"
