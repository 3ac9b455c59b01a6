"""The embedded default: arithmetic chains, a small character model from nothing, minutes on a laptop CPU.

Variants: `best_first` (default: distinct children in the order of likelihood), `deepsearch` (the paper's method with
narrower trees that prefer confident segments), `adaptive` (search only where direct samples give no signal), `paper`
(the authors' settings), `grpo`, `dapo`, and `short`, a minute of `deepsearch` with filter and cache.
"""

from ml_collections import ConfigDict

from deepsearch_jax.config import to_config
from deepsearch_jax.runtime import RunSettings
from experiments.presets import set_adaptive, set_best_first, set_dapo, set_grpo, set_paper

VARIANTS = ("best_first", "deepsearch", "adaptive", "paper", "grpo", "dapo", "short")


def get_config(variant: str = "best_first") -> ConfigDict:
    """Settings of the quick start. Raises: ValueError for a variant that does not exist."""
    if variant not in VARIANTS:
        raise ValueError(f"quickstart has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    config = to_config(RunSettings())

    # Warm start: the rate falls along a cosine; the last steps hardly move, and a change of rounding changes little.
    short, chains = (1, 2, 3), (1, 2, 3, 4, 5)
    noise = {"plus_noise": 0.2, "minus_noise": 0.35}
    config.task.arithmetic.warm_start_stages = tuple(
        {"num_steps": num_steps, "learning_rate": 3e-3, "lengths": lengths, "weights": (), "plus_noise": 0.0,
         "minus_noise": 0.0, "forget_borrow": 0.0, **values}
        for num_steps, lengths, values in ((450, short, {}), (200, chains, {}), (250, chains, noise))
    )  # fmt: skip
    config.warm_start.schedule = "cosine"
    config.warm_start.final_rate_share = 0.03
    config.warm_start.decay_steps = 900

    # Search: a segment is one written step (`+8=35`); a pilot study found width 2 and a confident frontier best here.
    config.search.segment_length = 5
    config.search.max_depth = 6  # five steps, and one segment for the end of the response
    config.search.expansion_width = 2
    config.search.num_trajectories = 8
    config.search.capacity = 61  # the root and 30 expansions of two
    config.search.frontier_entropy_weight = -3.0  # prefer segments the policy was sure of

    config.rollout.num_slots = 64
    config.rollout.prompt_multiple = 32
    config.rollout.path_multiple = 6
    config.rounds.num_rounds = 2
    config.rounds.steps_per_round = 20
    config.rounds.problems_per_step = 64
    config.rounds.max_candidates = 768
    config.rounds.refilter = "all"
    config.cache.page_length = 30
    config.cache.paths_per_problem = 2
    config.filter.easy_share = 0.5
    config.filter.min_direct = 4

    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.99
    config.pack.row_multiple = 48  # the longest row, so that one program serves nearly every step
    config.pack.min_rows = 128

    config.evaluation.every_steps = 10
    config.evaluation.num_problems = 192
    config.evaluation.num_samples = 4
    config.checkpoint.every_steps = 5

    if variant == "best_first":
        set_best_first(config)
        config.optimizer.learning_rate = 2e-4  # higher rates did worse with it (docs/best_first.md)
        config.rounds.problems_per_update = 32
    if variant == "adaptive":
        set_adaptive(config)
        config.search.expansion = "lazy"  # docs/adaptive.md: ahead of eager early on, level at the end
        config.search.picks_per_step = 2
    if variant == "paper":
        set_paper(config)
    if variant == "grpo":
        set_grpo(config)
    if variant == "dapo":
        set_dapo(config, batches=8, overlong_share=0.0)  # five written steps take 26 of the 30 tokens
    if variant == "short":
        config.rounds.num_rounds = 1
        config.rounds.steps_per_round = 3
        config.rounds.max_candidates = 128
        config.evaluation.num_problems = 32
    return config
