"""Accuracy on held-out problems: pass@1 and pass@k from direct samples, with bootstrap intervals over problems."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepsearch_jax.runtime.accuracy import bootstrap_interval
from deepsearch_jax.runtime.rollouts import Group
from deepsearch_jax.types import Outcome

_BOOTSTRAP_DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How held-out accuracy is measured.

    Attributes:
      every_steps: training steps between two evaluations; 0 evaluates before and after training alone.
      num_problems: the first ones of the held-out set; 0 takes all.
      num_samples: responses a problem; the k of pass@k.
      temperature: of the samples; 0 is greedy.
      max_length: longest response in tokens; 0 takes the longest response of training.
      stop_at: the run ends at the first evaluation with this pass@1 or more; 0 = never.
    """

    every_steps: int = 0
    num_problems: int = 0
    num_samples: int = 4
    temperature: float = 1.0
    max_length: int = 0
    stop_at: float = 0.0

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples={self.num_samples} must be at least 1")
        for name in ("every_steps", "num_problems", "temperature", "max_length", "stop_at"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and finite")


def summarise(groups: Sequence[Group]) -> dict[str, Any]:
    """pass@1 (mean share of correct samples) with its 95 % interval, pass@k (problems with one), pass@1 by source."""
    correct = np.array([[r.outcome == Outcome.CORRECT for r in group.responses] for group in groups], float)
    rates, solved = correct.mean(axis=1), correct.max(axis=1)
    low, high = bootstrap_interval(rates, _BOOTSTRAP_DRAWS)
    by_source: dict[str, list[float]] = {}
    for group, rate in zip(groups, rates, strict=True):
        by_source.setdefault(group.problem.source, []).append(rate)
    lengths = [len(response.tokens) for group in groups for response in group.responses]
    return {
        "pass_at_1": float(rates.mean()),
        "pass_at_1_low": low,
        "pass_at_1_high": high,
        f"pass_at_{correct.shape[1]}": float(solved.mean()),
        "response_length": float(np.mean(lengths)),
        "num_problems": len(groups),
        "num_correct": correct.sum(axis=1).astype(int).tolist(),  # of each problem, for intervals over problems
        "by_source": {source: float(np.mean(values)) for source, values in sorted(by_source.items())},
    }
