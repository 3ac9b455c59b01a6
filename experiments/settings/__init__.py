"""Named settings that methods are compared in: a task, a model, where it starts from and the sizes of a step.

A setting says nothing about the method; `experiments/suites` do. Each one documents what its policy can and cannot do
before RL; `docs/results.md` has the measured accuracies.
"""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
      name: how suites and tables call it.
      summary: what is special about it, one line.
      build: the config that all methods start from; held-out problems up to `evaluation.num_problems` are the
        validation set, those behind them the test set.
      average_last: supervised steps at the end of the warm start over which the weights are averaged.
      num_test: test problems, the first ones behind the validation set; 0 takes all.
      is_long: needs hours, a large model or a download; suites leave it out unless it is asked for.
    """

    name: str
    summary: str
    build: Callable[[], ConfigDict]
    average_last: int = 0
    num_test: int = 0
    is_long: bool = False


def all_settings() -> dict[str, Setting]:
    """Every setting by its name."""
    from experiments.settings import chains, countdown, gsm8k, reasoning_gym

    return {
        setting.name: setting for module in (chains, countdown, gsm8k, reasoning_gym) for setting in module.SETTINGS
    }
