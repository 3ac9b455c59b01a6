"""About three hours on two cores (--jobs=2), by the time of its first runs: every method tuned over the same grid on
two seeds, then five seeds each.
"""

import dataclasses

from experiments.compare.suite import Suite
from experiments.suites.methods import BEST_FIRST, DAPO, GRPO


def get_suite() -> Suite:
    rates = {"optimizer.learning_rate": (2e-4, 4e-4), "rounds.problems_per_update": (0, 8)}
    # Its temperature is part of the method, so it has four points where the baselines have twelve.
    ours = dataclasses.replace(BEST_FIRST, grid=rates)
    return Suite(
        name="full",
        title="DeepSearch against tuned baselines in every small setting.",
        settings=("sparse", "plateau", "moderate", "saturated", "countdown"),
        methods=(ours, GRPO, DAPO),
        ours=ours.name,
        # On a seed that is not among these GRPO's policy fell apart within ten steps at 6e-4, and it learned less at a
        # temperature of .5 than at .7.
        grid={**rates, "rollout.temperature": (0.7, 1.0, 1.3)},
        grid_seeds=(0, 1),
        seeds=(0, 1, 2, 3, 4),
        levels=(0.1, 0.3, 0.5, 0.7),
        # The tokens end a run: methods take 1,000 to 6,000 of them a step.
        overrides={"rounds.steps_per_round": 400, "rounds.max_generated_tokens": 400_000},
        stop_at=0.75,
    )
