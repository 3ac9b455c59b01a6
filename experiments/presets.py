"""Named sets of settings that several configs share."""

from ml_collections import ConfigDict


def set_paper(config: ConfigDict) -> None:
    """Sets all that makes the method to what the authors' scripts have (arXiv 2509.25454, recorded behaviour).

    Sizes that depend on the task and the machine (segment length, depth, slots, problems of a step) stay as they are,
    but for the room for nodes: the authors have no limit, so it holds all that num_trajectories descents can make.
    """
    search = config.search
    search.expansion = "eager"
    search.siblings = "independent"
    search.trajectories_if_solved = 0
    search.picks_per_step = 1
    search.expansion_width = 8
    search.num_trajectories = 8
    search.capacity = search.num_trajectories * search.max_depth * search.expansion_width + 1
    search.node_budget = 0
    search.token_budget = 0
    search.exploration = 2.0
    search.min_depth_weight = 0.1
    search.incomplete_score = -1.0
    search.root_counts_in_depth_weight = True
    search.backup_rule = "constrained"
    search.negative_choice = "most_confident"
    search.backtrace = "frontier"
    search.force_to_frontier = True
    search.frontier_value_weight = 0.4
    search.frontier_entropy = "own"
    search.frontier_entropy_weight = 0.0
    search.frontier_depth_weight = 0.01
    search.frontier_own_value_weight = 0.0
    search.depth_bonus = "sqrt"
    search.min_width = 0
    search.confidence = "fixed"
    config.rollout.temperature = 1.0
    config.rollout.top_p = 1.0
    config.rollout.top_k = 0
    config.rollout.min_p = 0.0

    # Advantages: mean only, soft clip 1 and 1.
    config.advantage.level = "node"
    config.advantage.normalisation = "mean"
    config.advantage.baseline = "final_values"
    config.advantage.soft_clip_max = 1.0
    config.advantage.soft_clip_temperature = 1.0
    config.advantage.drop_uniform = False
    _set_loss(config)

    # Rounds: hard problems alone, from the subset of the round before.
    config.rounds.search_when = "always"
    config.rounds.filter_problems = True
    config.rounds.group_size = 8
    config.rounds.refilter = "previous"
    config.filter.num_samples = 4
    config.filter.threshold = 0.25
    config.filter.easy_share = 0.0
    config.filter.min_direct = 0  # a full cache leaves no direct rollout


def set_adaptive(config: ConfigDict) -> None:
    """Sets what searches where direct samples give no signal, and lets the data choose the sign of confidence.

    A group of direct samples first, a tree only where all of them are wrong; groups of equal rewards are dropped. No
    filter: the group itself tells what is hard, and easy problems stay. docs/adaptive.md has what each part brought.
    """
    config.rounds.search_when = "no_signal"
    config.rounds.filter_problems = False
    config.search.confidence = "adaptive"
    config.search.frontier_entropy = "path"
    config.search.frontier_entropy_weight = 0.0  # where the weight starts before anything is measured
    config.advantage.drop_uniform = True


def set_best_first(config: ConfigDict) -> None:
    """Sets what searches in the order of likelihood and compares each step with those beside it.

    Cold children drawn without replacement; the likeliest prefix that is still to be made goes first; a search ends
    with a right answer and one beside it, and goes on to 32 where there is none. Solved problems are searched again:
    nothing is cached. There is room for 160 nodes: raise search.capacity where paths have more than about ten segments.
    See docs/best_first.md.
    """
    config.rounds.search_when = "always"
    config.rounds.filter_problems = False
    config.rollout.temperature = 0.4
    search = config.search
    search.expansion = "lazy"
    search.siblings = "distinct"
    search.expansion_width = 8
    search.picks_per_step = 2
    search.frontier_entropy = "excess"
    search.frontier_entropy_weight = -1.0
    search.confidence = "fixed"
    search.num_trajectories = 32
    search.trajectories_if_solved = 2
    search.capacity = 161
    config.advantage.level = "siblings"
    config.advantage.drop_uniform = True
    config.cache.capacity = 0


# Every setting in which the `dapo` preset differs from the `paper` preset, and why; a test compares the two.
PAPER_TO_DAPO = {
    "method": "direct rollouts in place of trees, batches drawn until their groups are mixed",
    "advantage.level": "a response has one score, no node of it a value of its own",
    "advantage.normalisation": "(R - mean) / std of the group; DeepSearch leaves out the std",
    "advantage.drop_uniform": "dynamic sampling: a group of equal rewards is no part of the update or its divisor",
    "advantage.overlong_max_length": "soft overlong punishment; the paper's own run has one too (deepsearch_1_5b)",
    "advantage.overlong_buffer": "its last stretch",
    "rounds.filter_problems": "no hard subset: all problems in every round",
    "rounds.dynamic_sampling_batches": "how often more problems are drawn for one update",
}


def set_dapo(config: ConfigDict, *, batches: int = 10, overlong_share: float = 0.2) -> None:
    """Sets all that makes the method to DAPO (arXiv 2503.14476): dynamic sampling, clip-higher, token mean, overlong.

    The rest is shared with `set_paper` (loss, clips, old log-probs). Sizes of task and machine stay as they are.

    Args:
      batches: batches of problems drawn for one update at most, until enough groups are mixed.
      overlong_share: last share of the longest response in which the soft punishment grows to -1 (4,096 of 20,480
        tokens in DAPO); 0 leaves it out, for tasks whose right answers fill the limit.
    """
    _set_loss(config)
    config.method = "dapo"
    config.rollout.temperature = 1.0
    config.rollout.top_p = 1.0
    config.rollout.top_k = 0
    config.rollout.min_p = 0.0
    set_outcome_scores(config)
    config.advantage.baseline = "final_values"  # the penalty is part of the reward
    config.advantage.drop_uniform = True
    longest = config.search.max_depth * config.search.segment_length
    config.advantage.overlong_max_length = longest
    config.advantage.overlong_buffer = int(overlong_share * longest)
    config.advantage.overlong_factor = 1.0
    config.rounds.filter_problems = False
    config.rounds.dynamic_sampling_batches = batches


def set_grpo(config: ConfigDict) -> None:
    """Sets GRPO on all problems: groups of direct samples, advantages (R - mean) / std; the rest stays as it is."""
    config.method = "grpo"
    set_outcome_scores(config)
    config.rounds.filter_problems = False


def set_outcome_scores(config: ConfigDict) -> None:
    """Gives every node of a trajectory its final score, normalised as in GRPO and DAPO: (R - mean) / std.

    On top of `set_paper` this turns its update into DAPO's: the same gradient on the same trajectories.
    """
    config.advantage.level = "outcome"
    config.advantage.normalisation = "mean_std"


def _set_loss(config: ConfigDict) -> None:
    """The loss of DAPO and of DeepSearch: clip-higher, token mean, no KL; dual clip as in their scripts."""
    config.loss.clip_low = 0.2
    config.loss.clip_high = 0.28
    config.loss.dual_clip = 10.0
    config.loss.aggregation = "token_mean"
    config.loss.entropy_coefficient = 0.0
    config.loss.importance_cap = 0.0
    config.loss.kl_coefficient = 0.0
    config.old_log_probs = "recompute"
