"""Two datasets of reasoning-gym with a character model: answers alone, no written steps. Needs the extra `eval`."""

from ml_collections import ConfigDict

from experiments.configs import reasoning_gym
from experiments.settings import Setting
from experiments.settings.chains import TEST, VALIDATION

_STEPS = 600  # supervised


def _setting(variant: str, options: str, num_shown: int) -> ConfigDict:
    config = reasoning_gym.get_config(variant)
    config.num_devices = 1
    config.task.options = options
    config.task.reasoning_gym.num_train_problems = 1024
    config.task.reasoning_gym.num_heldout_problems = VALIDATION + TEST
    # So many that the policy learns the task, not answers: of 512 it knew these by heart and little else.
    config.task.reasoning_gym.num_warm_start_problems = num_shown
    config.task.text.warm_start_steps = _STEPS
    config.warm_start.schedule = "cosine"
    config.warm_start.final_rate_share = 0.03
    config.warm_start.decay_steps = _STEPS
    config.rounds.steps_per_round = 60
    config.evaluation.every_steps = 5
    config.evaluation.num_problems = VALIDATION
    config.checkpoint.every_steps = 20
    config.checkpoint.keep = 1
    return config


def chain_sum() -> ConfigDict:
    """Sums of up to four numbers of one digit: the answer in one go, where a mistake cannot be seen on the way."""
    return _setting("chain_sum", "min_terms=3, max_terms=4, max_digits=1", 16_384)


def countdown() -> ConfigDict:
    """Three numbers and a target: an expression of about fifteen characters, of which a dozen choices matter."""
    return _setting("countdown", "min_numbers=3, max_numbers=3, max_value=30, min_target=10, max_target=99", 4096)


SETTINGS = (
    Setting("gym_chain_sum", "reasoning-gym's chain_sum, answers without steps", chain_sum, 100, is_long=True),
    Setting("gym_countdown", "reasoning-gym's countdown with three numbers", countdown, 100, is_long=True),
)
