"""Settings on chains of additions and subtractions with written steps (`deepsearch_jax/data/arithmetic.py`)."""

from ml_collections import ConfigDict

from deepsearch_jax.config import to_config
from deepsearch_jax.runtime import RunSettings
from experiments.settings import Setting

VALIDATION, TEST = 128, 256  # held-out problems


def _stage(num_steps: int, lengths: tuple[int, ...], **values: float | tuple[float, ...]) -> dict:
    stage = {"num_steps": num_steps, "learning_rate": 3e-3, "lengths": lengths, "weights": (), "plus_noise": 0.0,
             "minus_noise": 0.0, "forget_borrow": 0.0}  # fmt: skip
    return {**stage, **values}


def _weights(lengths: tuple[int, ...], from_length: int, share: float) -> tuple[float, ...]:
    """Weights under which lengths from `from_length` on have the given share together."""
    long = sum(length >= from_length for length in lengths)
    return tuple(share / long if n >= from_length else (1 - share) / (len(lengths) - long) for n in lengths)


def small_run(problem_lengths: tuple[int, ...]) -> ConfigDict:
    """Sizes that all settings on chains share: the pilot study's 16 problems x 8 trajectories and one update a step."""
    config = to_config(RunSettings())
    config.num_devices = 1
    longest = max(problem_lengths)
    task = config.task.arithmetic
    task.problem_lengths = problem_lengths
    task.num_train_problems = 1536
    task.num_heldout_problems = VALIDATION + TEST

    config.search.segment_length = 5  # one written step, `+8=35`
    config.search.max_depth = longest + 1  # one segment for the end of the response
    config.search.num_trajectories = 8
    config.search.expansion_width = 2
    config.search.capacity = 2 * 40 + 1  # at most 40 expansions of two children
    config.rollout.num_slots = 16
    config.rollout.prompt_multiple = 24  # prompts have at most 21 tokens
    config.rollout.path_multiple = longest + 1
    config.rounds.num_rounds = 1
    config.rounds.steps_per_round = 60
    config.rounds.problems_per_step = 16
    config.rounds.group_size = 8
    config.rounds.filter_problems = False
    config.cache.capacity = 1536
    config.cache.paths_per_problem = 4
    config.cache.page_length = 5 * (longest + 1)
    config.filter.min_direct = 4

    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.99
    config.pack.row_multiple = 80
    config.pack.min_rows = 128
    # Of the warm start: from the stage's rate down to 3 % of it, so that the last steps hardly move.
    config.warm_start.schedule = "cosine"
    config.warm_start.final_rate_share = 0.03

    config.evaluation.every_steps = 5
    config.evaluation.num_problems = VALIDATION
    config.evaluation.num_samples = 4
    config.checkpoint.every_steps = 20
    config.checkpoint.keep = 1
    return config


def _with_stages(config: ConfigDict, *stages: dict) -> ConfigDict:
    config.task.arithmetic.warm_start_stages = stages
    config.warm_start.decay_steps = sum(stage["num_steps"] for stage in stages)
    return config


_TO_4, _TO_8 = (1, 2, 3, 4), (1, 2, 3, 4, 5, 6, 7, 8)


def sparse() -> ConfigDict:
    """Chains of 6 to 8 steps, of which the noise of the warm start leaves one in some hundred right."""
    return _with_stages(
        small_run((6, 7, 8)),
        _stage(500, _TO_4),
        _stage(300, _TO_8, weights=_weights(_TO_8, 5, 0.3)),
        _stage(400, _TO_8[1:], plus_noise=0.35, minus_noise=0.5),
    )


def moderate() -> ConfigDict:
    """The same chains under half the noise: a group of eight often holds a right answer."""
    return _with_stages(
        small_run((6, 7, 8)),
        _stage(500, _TO_4),
        _stage(300, _TO_8, weights=_weights(_TO_8, 5, 0.3)),
        _stage(400, _TO_8[1:], plus_noise=0.2, minus_noise=0.35),
    )


def saturated() -> ConfigDict:
    """A policy without noise that has hardly seen long chains: little entropy, and errors it is sure of."""
    return _with_stages(
        small_run((6, 7, 8)),
        _stage(400, _TO_4),
        _stage(400, _TO_8, weights=_weights(_TO_8, 5, 0.3)),
    )


def plateau() -> ConfigDict:
    """A policy that forgot to borrow: greedy and cold samples are always wrong, hot ones rarely right.

    It learns to borrow for 400 steps before it forgets: after 150, two of five seeds never had, so that no search of
    any kind found a right answer. Then a step that needs it goes wrong nine times of ten, and two or more steps do.
    """
    config = _with_stages(
        small_run((4, 5, 6)),
        _stage(400, _TO_4),
        _stage(400, _TO_8[:6], weights=_weights(_TO_8[:6], 5, 0.3)),
        _stage(250, _TO_8[:6], forget_borrow=0.9),
    )
    config.task.arithmetic.min_borrows = 2
    return config


SETTINGS = (
    Setting("sparse", "the policy's mode is right, noise makes reward sparse", sparse, 150),
    Setting("moderate", "the same with more right answers", moderate, 150),
    Setting("saturated", "low entropy: few different answers, some problems out of reach", saturated, 100),
    Setting("plateau", "the policy's mode is wrong (it forgot to borrow) and reward is sparse", plateau, 100),
)
