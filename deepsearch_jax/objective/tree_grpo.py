"""The Tree-GRPO loss (DeepSearch, arXiv 2509.25454, Eq. 14): PPO with clip-higher and dual clip, one value per token.

Everything is a pure function of one shard's rows and gives its terms of the loss; see `objective.terms`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepsearch_jax.objective.advantages import at_least_float32
from deepsearch_jax.objective.corrections import MAX_ABS_LOG_RATIO, importance_weights, kl_estimate, sampler_gap
from deepsearch_jax.objective.settings import LossSettings
from deepsearch_jax.objective.terms import LossTerms
from deepsearch_jax.types import TokenSums


class Surrogate(NamedTuple):
    """Per token: loss; whether a positive advantage's share of it is clipped, a negative one's clipped and capped."""

    losses: jax.Array
    is_clipped_above: jax.Array
    is_clipped_below: jax.Array
    is_capped: jax.Array


def clipped_surrogate(
    log_ratio: jax.Array, positive: jax.Array, negative: jax.Array, settings: LossSettings
) -> Surrogate:
    """Dual-clip loss of tokens, linear in a positive and a negative advantage.

    With r = exp(log_ratio) and c(r) = clip(r, 1 - clip_low, 1 + clip_high):
    loss = -positive min(r, c(r)) - negative min(max(r, c(r)), dual_clip). For a single advantage A, with
    positive = max(A, 0) and negative = min(A, 0), this is max(-A r, -A c(r)), capped at -A dual_clip where A < 0.
    The two may also be sums over several trajectories that share the token.

    Args:
      log_ratio: [...] float log_prob - old_log_prob, finite.
      positive, negative: [...] float, >= 0 and <= 0.
    Returns: Surrogate of [...].
    """
    ratio = jnp.exp(jnp.clip(log_ratio, -MAX_ABS_LOG_RATIO, MAX_ABS_LOG_RATIO))
    clipped = jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
    lower, upper = jnp.minimum(ratio, clipped), jnp.maximum(ratio, clipped)
    is_capped = jnp.zeros_like(ratio, bool)
    if settings.dual_clip:
        is_capped = upper > settings.dual_clip
        upper = jnp.minimum(upper, settings.dual_clip)
    return Surrogate(-positive * lower - negative * upper, clipped < ratio, clipped > ratio, is_capped)


def token_weights(
    mask: jax.Array, settings: LossSettings, row_mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Weight of each token's loss and the total their sum is divided by, by `settings.aggregation`.

    "token_mean": every token alike, over all rows. "seq_mean_token_sum": sum per row, mean over rows.
    "seq_mean_token_mean": mean per row, mean over rows (an empty row adds 0). "seq_mean_token_sum_norm": sum over all
    rows divided by the row width (or `norm_length`), as recorded.

    Args:
      mask: [R, T] bool.
      row_mask: [R] bool, False in rows that only fill up the batch and are no sequences; None = all rows count.
    Returns: [R, T] float32 and [] float32; the total is 0 where the sum is the loss.
    """
    weights = mask.astype(jnp.float32)
    num_rows = jnp.float32(mask.shape[0]) if row_mask is None else jnp.sum(row_mask).astype(jnp.float32)
    match settings.aggregation:
        case "token_mean":
            return weights, jnp.sum(weights)
        case "seq_mean_token_sum":
            return weights, num_rows
        case "seq_mean_token_mean":
            return weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1), num_rows
    return weights / (settings.norm_length or mask.shape[1]), jnp.float32(0)


def path_weights(lengths: np.ndarray, settings: LossSettings, row_width: int) -> tuple[np.ndarray, np.ndarray]:
    """What `token_weights` gives to whole trajectories, on the host: weight of each one's tokens, share of the divisor.

    Args:
      lengths: [M] int tokens that are trained on.
      row_width: tokens of the rows that the trajectories would stand in, padding included.
    Returns: two [M] float64.
    """
    lengths, ones = np.asarray(lengths, np.float64), np.ones(len(lengths))
    match settings.aggregation:
        case "token_mean":
            return ones, lengths
        case "seq_mean_token_sum":
            return ones, ones
        case "seq_mean_token_mean":
            return 1 / np.maximum(lengths, 1), ones
    return ones / (settings.norm_length or row_width), 0 * ones


def tree_grpo_loss(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    entropy: jax.Array | None,
    settings: LossSettings,
    row_mask: jax.Array | None = None,
    *,
    sampler_log_probs: jax.Array | None = None,
    reference_log_probs: jax.Array | None = None,
) -> LossTerms:
    """One shard's share of the loss; `reduce_loss` makes it a number.

    Args:
      log_probs: [R, T] float log-prob of each token under the policy being trained (differentiable).
      old_log_probs: [R, T] float the same under the policy that sampled (no gradient).
      advantages: [R, T] float.
      mask: [R, T] bool or 0/1, tokens that are trained on. What stands elsewhere is never read, NaN included.
      entropy: [R, T] float exact entropy of the policy before each token, in nats; None = not known (reported as 0).
      row_mask: [R] bool, see `token_weights`.
      sampler_log_probs: [R, T] float as the sampler computed them, NaN where that is not known; None = nowhere.
      reference_log_probs: [R, T] float under the reference policy.
    Returns: LossTerms.
    Raises:
      ValueError: the settings need an entropy, sampler or reference log-probs that are not given.
    """
    mask = jnp.asarray(mask).astype(bool)
    advantages = jax.lax.stop_gradient(jnp.where(mask, at_least_float32(advantages), 0))
    weights, weight = token_weights(mask, settings, row_mask)
    sums = TokenSums(
        positive=weights * jnp.maximum(advantages, 0),
        negative=weights * jnp.minimum(advantages, 0),
        weights=weights,
        num_positive=(advantages > 0).astype(jnp.float32),
        num_negative=(advantages < 0).astype(jnp.float32),
        num_paths=mask.astype(jnp.float32),
        advantages=advantages,
    )
    return shared_grpo_loss(
        log_probs, old_log_probs, entropy, sums, weight, settings,
        sampler_log_probs=sampler_log_probs, reference_log_probs=reference_log_probs,
    )  # fmt: skip


def shared_grpo_loss(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    entropy: jax.Array | None,
    sums: TokenSums,
    weight: jax.Array,
    settings: LossSettings,
    *,
    sampler_log_probs: jax.Array | None = None,
    reference_log_probs: jax.Array | None = None,
) -> LossTerms:
    """`tree_grpo_loss` of tokens that may each belong to several trajectories.

    The ratio of a token depends on its path alone, so its trajectories have the same, and the loss is linear in the
    sums of their positive and of their negative advantages: loss and metrics are those of all trajectories apart.

    With importance_cap the surrogate (not the entropy and the KL divergence) is weighted by
    min(exp(old log-prob - sampler's), cap), 1 where the sampler's is not known. Weight times ratio is new / sampler:
    where the old log-probs are themselves the sampler's, the ratio holds the correction and the weight is 1.

    Args:
      log_probs, old_log_probs, entropy: [R, T], as for `tree_grpo_loss`; not read where no trajectory trains the token.
      sums: what the trajectories add up to, by token; constants.
      weight: [] float, what the sum of the losses is to be divided by.
      sampler_log_probs, reference_log_probs: as for `tree_grpo_loss`.
    Raises:
      ValueError: the settings need an entropy, sampler or reference log-probs that are not given.
    """
    for name, value, given in (
        ("entropy_coefficient", settings.entropy_coefficient, entropy),
        ("importance_cap", settings.importance_cap, sampler_log_probs),
        ("kl_coefficient", settings.kl_coefficient, reference_log_probs),
    ):
        if value and given is None:
            raise ValueError(f"{name}={value} needs the {_NEEDED[name]} of each token, which is not given")
    constant = jax.lax.stop_gradient
    mask, sums = sums.num_paths > 0, constant(sums)
    # Masked before anything else is computed: the gradient of a discarded NaN or overflow would still be NaN.
    log_probs = jnp.where(mask, at_least_float32(log_probs), 0)
    old_log_probs = jnp.where(mask, constant(at_least_float32(old_log_probs)), 0)
    log_ratio = log_probs - old_log_probs
    entropy = jnp.zeros_like(log_probs) if entropy is None else jnp.where(mask, at_least_float32(entropy), 0)
    surrogate = clipped_surrogate(log_ratio, sums.positive, sums.negative, settings)
    losses = surrogate.losses
    importance, raw_importance = importance_weights(
        sampler_gap(old_log_probs, sampler_log_probs, mask), settings.importance_cap
    )
    if settings.importance_cap:
        losses = losses * importance
    if settings.entropy_coefficient:
        losses = losses - settings.entropy_coefficient * sums.weights * entropy
    reference_kl = jnp.zeros_like(log_probs)
    if settings.kl_coefficient and reference_log_probs is not None:
        reference = jnp.where(mask, at_least_float32(reference_log_probs), 0)
        reference_kl = kl_estimate(log_probs, reference, settings.kl_estimator)
        losses = losses + settings.kl_coefficient * sums.weights * reference_kl
    count = sums.num_paths
    clipped = surrogate.is_clipped_above * sums.num_positive + surrogate.is_clipped_below * sums.num_negative
    gap = jnp.abs(sampler_gap(log_probs, sampler_log_probs, mask))
    is_sampled = jnp.zeros_like(mask) if sampler_log_probs is None else mask & ~jnp.isnan(sampler_log_probs)
    return LossTerms(
        weighted_sum=jnp.sum(losses),
        weight=weight,
        num_tokens=jnp.sum(count),
        clipped=jnp.sum(clipped),
        capped=jnp.sum(surrogate.is_capped * sums.num_negative),
        log_ratio=constant(jnp.sum(-log_ratio * count)),
        ratio=constant(jnp.sum(jnp.exp(jnp.clip(log_ratio, max=MAX_ABS_LOG_RATIO)) * count)),
        entropy=constant(jnp.sum(entropy * count)),
        advantage=jnp.sum(sums.advantages),
        reference_kl=constant(jnp.sum(reference_kl * count)),
        importance=jnp.sum(importance * count),
        num_truncated=jnp.sum((importance < raw_importance) * count) if settings.importance_cap else 0 * weight,
        num_sampled=jnp.sum(is_sampled * count),
        sampler_gap=jnp.sum(gap * count),
        max_abs_log_ratio=constant(jnp.max(jnp.abs(log_ratio), initial=0)),
        max_importance=jnp.max(raw_importance, initial=0, where=mask),
        max_sampler_gap=jnp.max(gap, initial=0),
    )


_NEEDED = {
    "entropy_coefficient": "entropy",
    "importance_cap": "sampler's log-prob",
    "kl_coefficient": "reference policy's log-prob",
}


def supervised_loss(log_probs: jax.Array, mask: jax.Array, entropy: jax.Array | None = None) -> LossTerms:
    """Cross-entropy of the tokens under the mask, mean over tokens, as LossTerms like those of the policy loss.

    Args:
      log_probs: [R, T] float; mask: [R, T] bool; entropy: [R, T] float or None.
    Returns: LossTerms with ratio 1 and no clipping.
    """
    mask = jnp.asarray(mask).astype(bool)
    log_probs = jnp.where(mask, at_least_float32(log_probs), 0)
    count, zero = jnp.sum(mask).astype(jnp.float32), jnp.zeros((), log_probs.dtype)
    total_entropy = zero if entropy is None else jnp.sum(jnp.where(mask, at_least_float32(entropy), 0))
    return LossTerms(
        weighted_sum=-jnp.sum(log_probs),
        weight=count,
        num_tokens=count,
        clipped=zero,
        capped=zero,
        log_ratio=zero,
        ratio=count,
        entropy=jax.lax.stop_gradient(total_entropy),
        advantage=zero,
        reference_kl=zero,
        importance=count,
        num_truncated=zero,
        num_sampled=zero,
        sampler_gap=zero,
        max_abs_log_ratio=zero,
        max_importance=zero + 1,
        max_sampler_gap=zero,
    )
