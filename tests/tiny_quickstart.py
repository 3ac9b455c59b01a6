"""The quick start at a size that ends within seconds: the run that commands in README and docs look at."""

from ml_collections import ConfigDict

from experiments.configs import quickstart


def get_config() -> ConfigDict:
    """Two steps of one round on chains of one or two operations."""
    config = quickstart.get_config("short")
    config.model.hidden_size = 16
    config.model.num_layers = 1
    config.model.intermediate_size = 32
    stage = {
        "num_steps": 120,
        "learning_rate": 1e-2,
        "lengths": (1, 2),
        "weights": (),
        "plus_noise": 0.0,
        "minus_noise": 0.0,
    }
    config.task.arithmetic.warm_start_stages = (stage,)
    config.task.arithmetic.problem_lengths = (1, 2)
    config.task.arithmetic.num_train_problems = 48
    config.task.arithmetic.num_heldout_problems = 12
    config.search.max_depth = 3
    config.search.capacity = 13
    config.rollout.num_slots = 16
    config.rounds.steps_per_round = 2
    config.rounds.problems_per_step = 8
    config.rounds.max_candidates = 16
    config.advantage.drop_uniform = False
    config.checkpoint.every_steps = 1
    return config
