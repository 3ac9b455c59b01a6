"""At most ten minutes on two cores: DeepSearch, as the paper has it but lazy and confident, and in the order of
likelihood, against GRPO where reward is sparse; one seed, with the picture.

GRPO runs at two temperatures: here, where the policy's mode is right, sampling colder is the cheapest remedy of all.
"""

import dataclasses

from experiments.compare.suite import Suite
from experiments.suites.methods import BEST_FIRST, DEEPSEARCH, GRPO


def get_suite() -> Suite:
    colder = dataclasses.replace(GRPO, name="grpo T=0.7", overrides={**GRPO.overrides, "rollout.temperature": 0.7})
    return Suite(
        name="demo",
        title="DeepSearch against GRPO in the sparse setting, one seed: what the machinery looks like, no proof.",
        settings=("sparse",),
        methods=(BEST_FIRST, DEEPSEARCH, GRPO, colder),
        ours="best first",
        levels=(0.1, 0.3, 0.5),
        overrides={"rounds.steps_per_round": 80},
        stop_at=0.55,
        test_samples=8,
    )
