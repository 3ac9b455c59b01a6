"""The terms of a loss, added up over micro-batches and devices, and what they come to.

A loss is a sum and a weight that are added up over micro-batches (`add_terms`) and devices (`reduce_loss`) and divided
last, so that a token counts the same wherever it is computed. Differentiate `weighted_sum`, add the gradients up
likewise and divide by the total weight: the derivative of a psum inside pmap would count every device's share as often
as there are devices.
"""

import jax
import jax.numpy as jnp
from flax import struct

MAXIMA = ("max_abs_log_ratio", "max_importance", "max_sampler_gap")  # terms that are maxima, not sums


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
      reference_kl: the KL divergence from the reference policy; 0 if it is not in the loss.
      importance, num_truncated: the importance weights of the tokens; those above the cap.
      num_sampled: tokens whose log-prob by the sampler is known; sampler_gap: |log_prob - the sampler's| over these.
      max_abs_log_ratio, max_importance, max_sampler_gap: the largest |new - old log-prob|, importance weight before
        truncation (1 or more: that of a token whose sampler is not known), and |log_prob - the sampler's|; no sums.
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
    reference_kl: jax.Array
    importance: jax.Array
    num_truncated: jax.Array
    num_sampled: jax.Array
    sampler_gap: jax.Array
    max_abs_log_ratio: jax.Array
    max_importance: jax.Array
    max_sampler_gap: jax.Array


def add_terms(first: LossTerms, second: LossTerms) -> LossTerms:
    """Terms of two micro-batches together."""
    added = jax.tree.map(jnp.add, first, second)
    return added.replace(**{name: jnp.maximum(getattr(first, name), getattr(second, name)) for name in MAXIMA})


def sum_over_axis(terms: LossTerms, axis_name: str | tuple[str, ...] | None) -> LossTerms:
    """Terms of all shards together, inside a pmap or shard_map with that axis; None = as they are."""
    if axis_name is None:
        return terms
    maxima = {name: jax.lax.stop_gradient(getattr(terms, name)) for name in MAXIMA}
    return jax.lax.psum(terms, axis_name).replace(**jax.lax.pmax(maxima, axis_name))


def divisor(weight: jax.Array) -> jax.Array:
    """What sums of losses and gradients are divided by: the total weight, or 1 where it is 0."""
    return jnp.where(weight > 0, weight, 1.0)


def reduce_loss(
    terms: LossTerms, axis_name: str | tuple[str, ...] | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss and its metrics, after summing over the mapped axis if there is one; never NaN for empty batches.

    Returns: [] float32 loss, and a dict of [] float32: pg_loss (the loss), pg_clipfrac, pg_clipfrac_lower, ppo_kl (mean
      of old - new log-prob), mean_ratio, max_abs_log_ratio, entropy, advantage_mean (means over tokens), num_tokens;
      kl_to_reference and importance_weight_mean (means over tokens), importance_weight_max (before truncation),
      importance_capped_share; sampler_gap_mean and sampler_gap_max (|log_prob - the sampler's|), num_sampled.
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
        "kl_to_reference": terms.reference_kl / tokens,
        "importance_weight_mean": terms.importance / tokens,
        "importance_weight_max": terms.max_importance,
        "importance_capped_share": terms.num_truncated / tokens,
        "sampler_gap_mean": terms.sampler_gap / divisor(terms.num_sampled),
        "sampler_gap_max": terms.max_sampler_gap,
        "num_sampled": terms.num_sampled,
    }
    return loss, metrics
