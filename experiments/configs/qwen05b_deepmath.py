"""Qwen2.5 0.5B on the hard part of DeepMath. Variants as in qwen05b_gsm8k."""

import os

from ml_collections import ConfigDict

from experiments.configs import qwen05b_gsm8k
from experiments.presets import set_dapo, set_paper


def get_config(variant: str = "gpu") -> ConfigDict:
    """Settings of the run. Raises: ValueError for a variant that does not exist."""
    data = os.environ.get("DEEPSEARCH_DATA", "../shared/data")
    config = qwen05b_gsm8k.get_config(variant)
    # One in four of the authors' 1.5B models' samples was right here; problems at 0 % teach a 0.5B model little.
    config.task.math.train.paths = (f"{data}/train/deepmath_round0_pass25.jsonl.gz",)
    config.task.math.train.exclude_file = f"{data}/exclude_ids.json"
    config.task.math.evaluation.paths = (f"{data}/eval/math500.jsonl.gz",)
    config.task.math.prompt.max_prompt_length = 512
    if not variant.startswith("cpu"):
        config.search.segment_length = 32
        config.search.max_depth = 24  # 768 tokens a response
    if variant == "paper":
        set_paper(config)  # once more: the deeper trees need room
    if variant == "dapo":
        set_dapo(config, batches=4)  # once more: the overlong buffer follows the length of a response
    return config
