"""Whether confident responses are the right ones, measured among responses to the same problem.

The frontier of a search looks at H, the mean negative log-prob per token of a prefix (nats), with the weight lambda2.
Its best sign depends on the task: where a policy knows a procedure and slips, confident prefixes are right ones; where
its mode is wrong, they are wrong. With search.confidence="adaptive" the weight follows what the responses say:

  slope   b = d / v, d the mean of H over correct responses less that over wrong ones, v its variance within either
  weight  lambda2 = clip(l0 + (b - l0) W / (W + prior_weight), low, high), l0 = search.frontier_entropy_weight

b is the slope of the log-odds of being correct in H under normal classes of equal variance (linear discriminant; R. A.
Fisher 1936), so it does not depend on how many responses are correct, and has the unit of lambda2, 1 / nat. Both d and
v are taken within problems, since hard problems have less confident and fewer correct responses alike: a problem with
n1 correct and n0 wrong ones counts n1 n0 / (n1 + n0) in d, and W is the sum of these. All sums decay by `decay` a step.
Own definition; the paper's lambda2 is a constant.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from deepsearch_jax.runtime.responses import Group


@dataclasses.dataclass(frozen=True)
class ConfidenceSettings:
    """How search.confidence="adaptive" chooses lambda2.

    Attributes:
      low, high: bounds of the weight, 1 / nat.
      prior_weight: evidence, in pairs of a correct and a wrong response, that it takes to come half the way from
        search.frontier_entropy_weight to the slope measured.
      decay: what is left of the evidence after one more step.
    """

    low: float = -10.0
    high: float = 3.0
    prior_weight: float = 8.0
    decay: float = 0.9

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"low={self.low} must not be above high={self.high}")
        if not self.prior_weight > 0:
            raise ValueError(f"prior_weight={self.prior_weight} must be positive: without a prior one pair decides")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} must be in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Sums over problems; all 0 before there is any.

    Attributes:
      pairs: W, sum of n1 n0 / (n1 + n0).
      difference: sum of that times d, nats.
      squares: sum of squared distances of H from the mean of its class, nats^2.
      freedom: degrees of freedom in it, responses less two a problem.
    """

    pairs: float = 0.0
    difference: float = 0.0
    squares: float = 0.0
    freedom: float = 0.0

    def decayed(self, decay: float, new: "Evidence") -> "Evidence":
        """What is left of this after a step, and the new evidence."""
        names = [field.name for field in dataclasses.fields(self)]
        return Evidence(**{name: decay * getattr(self, name) + getattr(new, name) for name in names})

    def plus(self, more: "Evidence") -> "Evidence":
        """Both, of one step."""
        return self.decayed(1.0, more)

    @property
    def slope(self) -> float | None:
        """b, 1 / nat; None where it cannot be told: no mixed problem yet, or no spread."""
        if not self.pairs or not self.freedom or not self.squares:
            return None
        return (self.difference / self.pairs) / (self.squares / self.freedom)


def evidence_of(groups: Sequence[Group]) -> Evidence:
    """What the responses of one step say: all terminals of trees, all responses of other groups.

    Cached paths are left out: whoever sampled them, it was not this policy.
    """
    total = Evidence()
    for group in groups:
        if group.terminal_rewards is not None and group.terminal_nll is not None:
            nll, correct = np.asarray(group.terminal_nll, np.float64), group.terminal_rewards == 1.0
        else:
            known = [(-r.log_probs.mean(dtype=np.float64), r.reward == 1.0) for r in group.responses
                     if r.log_probs is not None and len(r.log_probs)]  # fmt: skip
            nll, correct = (np.array([pair[k] for pair in known], dtype) for k, dtype in enumerate((np.float64, bool)))
        if correct.any() and not correct.all():
            classes = nll[correct], nll[~correct]
            pairs = len(classes[0]) * len(classes[1]) / len(nll)
            squares = sum(float(((values - values.mean()) ** 2).sum()) for values in classes)
            difference = pairs * float(classes[0].mean() - classes[1].mean())
            total = total.decayed(1.0, Evidence(pairs, difference, squares, len(nll) - 2.0))
    return total


def entropy_weight(evidence: Evidence, start: float, settings: ConfidenceSettings) -> float:
    """lambda2 of the next searches; `start` is search.frontier_entropy_weight."""
    slope = evidence.slope
    if slope is None:
        return start
    share = evidence.pairs / (evidence.pairs + settings.prior_weight)
    return float(np.clip(start + (slope - start) * share, settings.low, settings.high))
