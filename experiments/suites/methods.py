"""Methods that several suites compare."""

from experiments.compare.suite import Method

_DIRECT = {"method": "grpo", "advantage.level": "outcome", "advantage.normalisation": "mean_std"}

# Groups whose rewards are all equal are left out of every method's update (advantage.drop_uniform).
GRPO = Method("grpo", _DIRECT, is_baseline=True)
DAPO = Method("dapo", {**_DIRECT, "method": "dapo", "rounds.dynamic_sampling_batches": 8}, is_baseline=True)

_LAZY = {"search.expansion": "lazy", "search.picks_per_step": 2}
_PATH = {"search.frontier_entropy": "path", "search.frontier_entropy_weight": -10.0}
_OWN = {"search.frontier_entropy": "own", "search.frontier_entropy_weight": -3.0}

# Confident prefixes first, deep ones preferred: best of the pilot study where the policy's mode is right.
DEEPSEARCH = Method("deepsearch", {**_LAZY, **_PATH, "search.frontier_depth_weight": 0.5})
# Direct samples first, a tree where all of them are wrong, and the data choose the sign of confidence: the values of
# `presets.set_adaptive`.
ADAPTIVE = Method(
    "adaptive",
    {
        "rounds.search_when": "no_signal", "rounds.filter_problems": False, "search.confidence": "adaptive",
        "search.frontier_entropy": "path", "search.frontier_entropy_weight": 0.0, "advantage.drop_uniform": True,
    },
)  # fmt: skip
# The likeliest prefix first, children without replacement, steps against their siblings: the values of
# `presets.set_best_first`.
BEST_FIRST = Method(
    "best first",
    {
        "rounds.search_when": "always", "rounds.filter_problems": False, "rollout.temperature": 0.4,
        "search.expansion": "lazy", "search.siblings": "distinct", "search.expansion_width": 8,
        "search.picks_per_step": 2, "search.frontier_entropy": "excess", "search.frontier_entropy_weight": -1.0,
        "search.num_trajectories": 32, "search.trajectories_if_solved": 2, "search.capacity": 161,
        "advantage.level": "siblings", "advantage.drop_uniform": True, "cache.capacity": 0,
    },
)  # fmt: skip
EAGER = Method("eager", {**_OWN})
PATH = Method("path", {**_PATH})
EAGER_PATH = Method("eager path", {**_PATH, "search.frontier_depth_weight": 0.5})
LAZY_PATH = Method("lazy path", {**EAGER_PATH.overrides, "search.expansion": "lazy"})
# No opinion on whether a confident prefix is a right one, and a small preference of what was unlikely.
NEUTRAL = Method("neutral", {"search.frontier_entropy_weight": 0.0})
UNLIKELY = Method("unlikely", {"search.frontier_entropy_weight": 1.0})
