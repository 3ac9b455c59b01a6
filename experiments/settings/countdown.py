"""Countdown with three numbers (`deepsearch_jax/data/countdown.py`)."""

from ml_collections import ConfigDict

from experiments.settings import Setting
from experiments.settings.chains import TEST, VALIDATION, small_run


def countdown() -> ConfigDict:
    """A policy that calculates mostly right but chooses its operations blindly."""
    config = small_run((6,))
    config.task.name = "countdown"
    task = config.task.countdown
    task.num_train_problems = 1536
    task.num_heldout_problems = VALIDATION + TEST
    task.warm_start_steps = 600
    task.warm_start_learning_rate = 3e-3
    config.warm_start.decay_steps = 600
    # A segment is a number and the sign behind it; six of them and nothing else make a solution.
    config.search.segment_length = 3
    config.search.max_depth = 6
    config.rollout.path_multiple = 6
    config.rollout.prompt_multiple = 16
    config.cache.page_length = 18
    config.pack.row_multiple = 32
    return config


SETTINGS = (Setting("countdown", "a choice of operations, several solutions, no noise", countdown, 100),)
