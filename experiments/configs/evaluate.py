"""Evaluation of a Hugging Face directory on the paper's six sets; needs --config.model.path=DIR.

The default is the paper's protocol: 32 samples at temperature 0.6 and top-p 0.95. Variants: `paper`, `cpu` (few samples
of the first problems, short responses), `search` (one tree a problem, a budget in tokens, no verdicts seen).
"""

import os

from ml_collections import ConfigDict

from deepsearch_jax.config import to_config
from deepsearch_jax.runtime import BenchmarkSettings

VARIANTS = ("paper", "cpu", "search")


def get_config(variant: str = "paper") -> ConfigDict:
    """Settings of the evaluation. Raises: ValueError for a variant that does not exist."""
    if variant not in VARIANTS:
        raise ValueError(f"evaluate has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    config = to_config(BenchmarkSettings())
    config.model.path = os.environ.get("DEEPSEARCH_MODEL_DIR", "")
    config.data = os.environ.get("DEEPSEARCH_DATA", "../shared/data")
    config.rollout.num_slots = 16
    config.prompt.max_prompt_length = 2048
    if variant == "cpu":
        config.num_problems = 16
        config.num_samples = 4
        config.max_length = 512
        config.rollout.num_slots = 8
    if variant == "search":
        config.method = "search"
        config.search.expansion = "lazy"
        config.search.expansion_width = 4
        config.search.picks_per_step = 4
        config.search.num_trajectories = 32
        config.search.segment_length = 256
        config.search.max_depth = 64
        config.search.capacity = 2049
        config.search.token_budget = 32 * 8192
    return config
