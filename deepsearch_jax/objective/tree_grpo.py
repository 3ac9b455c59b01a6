"""The Tree-GRPO loss (DeepSearch, arXiv 2509.25454, Eq. 14): PPO with clip-higher and dual clip, one value per token.

Everything is a pure function of one shard's rows. A loss is a sum and a weight that are added up over micro-batches
(`add_terms`) and devices (`reduce_loss`) and divided last, so that a token counts the same wherever it is computed.
Differentiate `weighted_sum`, add the gradients up likewise and divide by the total weight: the derivative of a psum
inside pmap would count every device's share as often as there are devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from deepsearch_jax.objective.advantages import at_least_float32
from deepsearch_jax.objective.settings import LossSettings

MAX_ABS_LOG_RATIO = 20.0  # exp(20) is past every clip and far from overflow, whose gradient would be NaN


@struct.dataclass
class LossTerms:
    """What one shard or micro-batch adds to the loss and to its metrics; all [] float32, sums unless said otherwise.

    Attributes:
      weighted_sum: sum of the weighted token losses; the loss is this divided by `weight`, or as it stands where the
        total weight is 0 (nothing to train on, or "seq_mean_token_sum_norm", whose divisor is a constant).
      weight: what the sum is to be divided by.
      num_tokens: tokens under the mask; the divisor of the sums below.
      clipped, capped: tokens whose loss is the clipped one; whose loss the dual clip caps.
      log_ratio: old - new log-prob (an estimate of the KL divergence from the behaviour policy).
      ratio, entropy, advantage: over the tokens.
      max_abs_log_ratio: the largest |new - old log-prob| (a maximum, not a sum).
    """

    weighted_sum: jax.Array
    weight: jax.Array
    num_tokens: jax.Array
    clipped: jax.Array
    capped: jax.Array
    log_ratio: jax.Array
    ratio: jax.Array
    entropy: jax.Array
    advantage: jax.Array
    max_abs_log_ratio: jax.Array


class Surrogate(NamedTuple):
    """Per token: loss; whether a positive advantage's share of it is clipped, a negative one's clipped and capped."""

    losses: jax.Array
    is_clipped_above: jax.Array
    is_clipped_below: jax.Array
    is_capped: jax.Array


class TokenSums(NamedTuple):
    """What the trajectories through each token add up to, [R, T] float; 0 at tokens that are not trained on.

    Attributes as those of `PackedBatch` of the same names.
    """

    positive: jax.Array
    negative: jax.Array
    weights: jax.Array
    num_positive: jax.Array
    num_negative: jax.Array
    num_paths: jax.Array
    advantages: jax.Array


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
) -> LossTerms:
    """One shard's share of the loss; `reduce_loss` makes it a number.

    Args:
      log_probs: [R, T] float log-prob of each token under the policy being trained (differentiable).
      old_log_probs: [R, T] float the same under the policy that sampled (no gradient).
      advantages: [R, T] float.
      mask: [R, T] bool or 0/1, tokens that are trained on. What stands elsewhere is never read, NaN included.
      entropy: [R, T] float exact entropy of the policy before each token, in nats; None = not known (reported as 0).
      row_mask: [R] bool, see `token_weights`.
    Returns: LossTerms.
    Raises:
      ValueError: an entropy coefficient is set and no entropy is given.
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
    return shared_grpo_loss(log_probs, old_log_probs, entropy, sums, weight, settings)


def shared_grpo_loss(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    entropy: jax.Array | None,
    sums: TokenSums,
    weight: jax.Array,
    settings: LossSettings,
) -> LossTerms:
    """`tree_grpo_loss` of tokens that may each belong to several trajectories.

    The ratio of a token depends on its path alone, so its trajectories have the same, and the loss is linear in the
    sums of their positive and of their negative advantages: loss and metrics are those of all trajectories apart.

    Args:
      log_probs, old_log_probs, entropy: [R, T], as for `tree_grpo_loss`; not read where no trajectory trains the token.
      sums: what the trajectories add up to, by token; constants.
      weight: [] float, what the sum of the losses is to be divided by.
    Raises:
      ValueError: an entropy coefficient is set and no entropy is given.
    """
    if entropy is None:
        if settings.entropy_coefficient:
            raise ValueError(f"entropy_coefficient={settings.entropy_coefficient} needs the entropy of the policy")
        entropy = jnp.zeros_like(log_probs)
    constant = jax.lax.stop_gradient
    mask, sums = sums.num_paths > 0, constant(sums)
    # Masked before anything else is computed: the gradient of a discarded NaN or overflow would still be NaN.
    log_ratio = jnp.where(mask, at_least_float32(log_probs) - constant(at_least_float32(old_log_probs)), 0)
    entropy = jnp.where(mask, at_least_float32(entropy), 0)
    surrogate = clipped_surrogate(log_ratio, sums.positive, sums.negative, settings)
    losses = surrogate.losses
    if settings.entropy_coefficient:
        losses = losses - settings.entropy_coefficient * sums.weights * entropy
    count = sums.num_paths
    clipped = surrogate.is_clipped_above * sums.num_positive + surrogate.is_clipped_below * sums.num_negative
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
        max_abs_log_ratio=constant(jnp.max(jnp.abs(log_ratio), initial=0)),
    )


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
        max_abs_log_ratio=zero,
    )


def add_terms(first: LossTerms, second: LossTerms) -> LossTerms:
    """Terms of two micro-batches together."""
    added = jax.tree.map(jnp.add, first, second)
    return added.replace(max_abs_log_ratio=jnp.maximum(first.max_abs_log_ratio, second.max_abs_log_ratio))


def sum_over_axis(terms: LossTerms, axis_name: str | tuple[str, ...] | None) -> LossTerms:
    """Terms of all shards together, inside a pmap or shard_map with that axis; None = as they are."""
    if axis_name is None:
        return terms
    largest = jax.lax.pmax(jax.lax.stop_gradient(terms.max_abs_log_ratio), axis_name)
    return jax.lax.psum(terms, axis_name).replace(max_abs_log_ratio=largest)


def divisor(weight: jax.Array) -> jax.Array:
    """What sums of losses and gradients are divided by: the total weight, or 1 where it is 0."""
    return jnp.where(weight > 0, weight, 1.0)


def reduce_loss(
    terms: LossTerms, axis_name: str | tuple[str, ...] | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss and its metrics, after summing over the mapped axis if there is one; never NaN for empty batches.

    Returns: [] float32 loss, and a dict of [] float32: pg_loss (the loss), pg_clipfrac, pg_clipfrac_lower, ppo_kl (mean
      of old - new log-prob), mean_ratio, max_abs_log_ratio, entropy, advantage_mean (means over tokens), num_tokens.
    """
    terms = sum_over_axis(terms, axis_name)
    loss = terms.weighted_sum / divisor(terms.weight)
    tokens = divisor(terms.num_tokens)
    metrics = {
        "pg_loss": loss,
        "pg_clipfrac": terms.clipped / tokens,
        "pg_clipfrac_lower": terms.capped / tokens,
        "ppo_kl": terms.log_ratio / tokens,
        "mean_ratio": terms.ratio / tokens,
        "max_abs_log_ratio": terms.max_abs_log_ratio,
        "entropy": terms.entropy / tokens,
        "advantage_mean": terms.advantage / tokens,
        "num_tokens": terms.num_tokens,
    }
    return loss, metrics
