"""How good the policies are that the settings start from."""

from experiments.compare.suite import Suite
from experiments.suites.methods import GRPO


def get_suite() -> Suite:
    return Suite(
        name="starts",
        title="The settings: test pass@1 of their policies before RL.",
        kind="starts",
        settings=("sparse", "moderate", "saturated", "plateau", "countdown"),
        methods=(GRPO,),
        ours="grpo",
        seeds=(0,),
        test_samples=8,
    )
