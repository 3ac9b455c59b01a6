"""A pretrained 0.5B model on GSM8K: few steps on two cores, an hour or more; declared for machines with more."""

import os

from ml_collections import ConfigDict

from experiments.configs import qwen05b_gsm8k
from experiments.settings import Setting


def gsm8k() -> ConfigDict:
    """Needs DEEPSEARCH_MODEL_DIR and problem files below DEEPSEARCH_DATA, as configs/qwen05b_gsm8k.py."""
    config = qwen05b_gsm8k.get_base(is_small=True)
    if not os.environ.get("DEEPSEARCH_MODEL_DIR"):
        raise ValueError(
            "the setting gsm8k starts from a pretrained model; set DEEPSEARCH_MODEL_DIR to the directory of a "
            "Qwen2.5 0.5B checkpoint, or leave the setting out"
        )
    config.rounds.group_size = 8
    config.search.num_trajectories = 8
    config.search.capacity = 8 * 16 * 2 + 1
    config.rounds.steps_per_round = 8
    config.rounds.filter_problems = False
    config.evaluation.every_steps = 4
    config.evaluation.num_problems = 32
    config.evaluation.num_samples = 2
    return config


SETTINGS = (Setting("gsm8k", "a pretrained 0.5B model on real problems", gsm8k, num_test=64, is_long=True),)
