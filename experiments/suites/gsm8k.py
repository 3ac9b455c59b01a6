"""A pretrained 0.5B model on GSM8K, one seed: by its tokens some hours on two cores, not measured. Nothing is tuned.

Needs DEEPSEARCH_MODEL_DIR, and problem files below DEEPSEARCH_DATA.
"""

import dataclasses

from experiments.compare.suite import Suite
from experiments.suites.methods import BEST_FIRST, GRPO


def get_suite() -> Suite:
    # Sixteen segments a path: room for 20 of them beside what they share.
    room = {"search.capacity": 321, "search.num_trajectories": 16}
    return Suite(
        name="gsm8k",
        title="Qwen2.5 0.5B on GSM8K, few steps.",
        settings=("gsm8k",),
        methods=(dataclasses.replace(BEST_FIRST, overrides={**BEST_FIRST.overrides, **room}), GRPO),
        ours=BEST_FIRST.name,
        levels=(0.2, 0.3, 0.4),
        overrides={"rounds.max_generated_tokens": 50_000},
        test_samples=2,
    )
