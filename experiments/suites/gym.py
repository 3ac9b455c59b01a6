"""Two datasets of reasoning-gym, answers without written steps: 18 runs of one to five minutes. Nothing is tuned.

Needs `pip install -e '.[eval]'`.
"""

from experiments.compare.suite import Suite
from experiments.suites.methods import BEST_FIRST, DAPO, GRPO


def get_suite() -> Suite:
    return Suite(
        name="gym",
        title="Two datasets of reasoning-gym and a character model that answers at once.",
        settings=("gym_chain_sum", "gym_countdown"),
        methods=(BEST_FIRST, GRPO, DAPO),
        ours=BEST_FIRST.name,
        seeds=(0, 1, 2),
        levels=(0.1, 0.3, 0.5),
        overrides={
            "rounds.steps_per_round": 800, "rounds.max_generated_tokens": 200_000, "optimizer.learning_rate": 3e-4,
        },
        stop_at=0.7,
    )  # fmt: skip
