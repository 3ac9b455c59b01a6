"""Settings of the advantages and of the loss."""

import dataclasses

LEVELS = ("node", "outcome", "siblings")
NORMALISATIONS = ("mean", "mean_std", "row_mean_std", "alpha_scale", "none")
BASELINES = ("final_values", "credited_rewards", "terminal_rewards")
KL_ESTIMATORS = ("k1", "k2", "k3")
AGGREGATIONS = ("token_mean", "seq_mean_token_sum", "seq_mean_token_mean", "seq_mean_token_sum_norm")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(choices)}")


def _check_at_least(name: str, value: float, bound: float, way_out: str = "") -> None:
    if not value >= bound:
        raise ValueError(f"{name}={value} must be at least {bound}{way_out}")


@dataclasses.dataclass(frozen=True)
class AdvantageSettings:
    """How node values and rewards become advantages (Eq. 13, 15)."""

    # "node": each node its own value; "outcome": all nodes of a path share the final score; "siblings": a node of a
    # tree against those beside it (`sibling_advantages`; normalisation and baseline are not read), direct rollouts as
    # with "outcome"
    level: str = "node"
    normalisation: str = "mean"  # what a tree's values are compared with; see advantages.normalise_paths
    baseline: str = "final_values"  # what mean and std are taken over; see advantages.tree_baseline
    soft_clip_max: float = 1.0  # q_max: bound of an intermediate node's value after the soft clip
    soft_clip_temperature: float = 1.0  # eps_q: raw value at which the clip bends; 0 switches the clip off
    overlong_max_length: int = 0  # tokens a response may have; only read if overlong_buffer > 0
    overlong_buffer: int = 0  # last tokens before that limit in which the penalty grows; 0 = no penalty
    overlong_factor: float = 1.0  # penalty at the limit, in units of reward
    std_epsilon: float = 1e-6  # added to a std before dividing by it
    alpha: float = 1.0  # factor of "alpha_scale"
    drop_uniform: bool = True  # a tree whose trajectories all got the same reward is not trained on

    def __post_init__(self) -> None:
        _check_choice("level", self.level, LEVELS)
        _check_choice("normalisation", self.normalisation, NORMALISATIONS)
        _check_choice("baseline", self.baseline, BASELINES)
        _check_at_least("soft_clip_temperature", self.soft_clip_temperature, 0.0, "; 0 switches the soft clip off")
        _check_at_least("overlong_buffer", self.overlong_buffer, 0, "; 0 switches the penalty off")
        _check_at_least("overlong_factor", self.overlong_factor, 0.0)
        if self.level == "siblings" and self.overlong_buffer:
            raise ValueError(
                f"overlong_buffer={self.overlong_buffer} with level={self.level!r}: the penalty is one of whole "
                "responses, siblings are compared by the best score below them; set overlong_buffer=0, or another level"
            )
        if not self.std_epsilon > 0:
            raise ValueError(f"std_epsilon={self.std_epsilon} must be positive, or equal values would divide by zero")
        if self.overlong_buffer and self.overlong_max_length < self.overlong_buffer:
            raise ValueError(
                f"overlong_max_length={self.overlong_max_length} is shorter than overlong_buffer="
                f"{self.overlong_buffer}; set it to the longest response in tokens"
            )


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """How log-probs and advantages become a loss (Eq. 14)."""

    clip_low: float = 0.2  # ratios below 1 - clip_low get no gradient where the advantage is negative
    clip_high: float = 0.28  # ratios above 1 + clip_high get no gradient where the advantage is positive
    dual_clip: float = 10.0  # with a negative advantage A the loss of a token is at most -dual_clip * A; 0 = no cap
    aggregation: str = "token_mean"  # how token losses become one number; see tree_grpo.token_weights
    norm_length: int = 0  # tokens "seq_mean_token_sum_norm" divides by; 0 = the width of the rows, padding included
    entropy_coefficient: float = 0.0  # the entropy times this is subtracted from the loss; 0 = only reported
    importance_cap: float = 0.0  # most that a token weighs for decode/train mismatch; 0 = off; see importance_weights
    kl_coefficient: float = 0.0  # the KL divergence from the policy before RL times this is added; 0 = no reference
    kl_estimator: str = "k3"  # of that divergence; see corrections.kl_estimate

    def __post_init__(self) -> None:
        _check_choice("aggregation", self.aggregation, AGGREGATIONS)
        if not 0 <= self.clip_low <= 1:
            raise ValueError(f"clip_low={self.clip_low} must be in [0, 1]: ratios are positive")
        _check_at_least("clip_high", self.clip_high, 0.0)
        _check_at_least("norm_length", self.norm_length, 0, "; 0 takes the width of the rows")
        _check_choice("kl_estimator", self.kl_estimator, KL_ESTIMATORS)
        _check_at_least("kl_coefficient", self.kl_coefficient, 0.0, "; 0 switches the penalty off")
        if self.importance_cap and not self.importance_cap >= 1:
            raise ValueError(
                f"importance_cap={self.importance_cap} must be at least 1, the weight without a mismatch (2 is usual), "
                "or 0 to switch the weights off"
            )
        if self.dual_clip and not self.dual_clip > 1:
            raise ValueError(f"dual_clip={self.dual_clip} must be above 1, the ratio on policy, or 0 to switch it off")
