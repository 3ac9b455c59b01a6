"""What joins the policy loss of a token: a weight for the sampler's numerics, a pull towards a reference policy."""

import jax
import jax.numpy as jnp

from deepsearch_jax.objective.advantages import at_least_float32

MAX_ABS_LOG_RATIO = 20.0  # exp(20) is past every clip and far from overflow, whose gradient would be NaN


def sampler_gap(log_probs: jax.Array, sampler_log_probs: jax.Array | None, mask: jax.Array) -> jax.Array:
    """log_prob - sampler's log-prob of each token, [...] float32, constant; 0 where the sampler's is unknown (NaN).

    Args:
      log_probs: [...] float.
      sampler_log_probs: [...] float; None = known nowhere.
      mask: [...] bool; what stands elsewhere is not read.
    """
    if sampler_log_probs is None:
        return jnp.zeros(mask.shape, jnp.float32)
    sampled = at_least_float32(sampler_log_probs)
    is_known = mask & ~jnp.isnan(sampled)
    gap = at_least_float32(log_probs) - jnp.where(is_known, sampled, 0)
    return jax.lax.stop_gradient(jnp.where(is_known, gap, 0))


def importance_weights(log_weights: jax.Array, cap: float) -> tuple[jax.Array, jax.Array]:
    """Truncated importance weights min(exp(log_weights), cap), and what they are before truncation.

    Decode and training compute the log-prob of the same token by different programs (batching, low precision, 8-bit
    weights), so that samples come from a policy that is slightly another than the one that is trained. Weighting each
    token's loss by train / decode corrects that in expectation, and the cap bounds its variance (truncated importance
    sampling: Ionides 2008; Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy training").

    Args:
      log_weights: [...] float log-prob of the behaviour policy by the training forward less that by the decode engine,
        both of the raw policy: a sampling temperature or a truncation is meant, no mismatch. See `sampler_gap`.
      cap: >= 1; 0 gives weights of 1.
    Returns: two [...] float32, weights and exp(log_weights).
    """
    raw = jnp.exp(jnp.clip(log_weights, -MAX_ABS_LOG_RATIO, MAX_ABS_LOG_RATIO))
    return (jnp.minimum(raw, cap) if cap else jnp.ones_like(raw)), raw


def kl_estimate(log_probs: jax.Array, reference_log_probs: jax.Array, estimator: str) -> jax.Array:
    """KL(policy || reference) of each token from the one that was sampled (J. Schulman, "Approximating KL divergence").

    With d = log_prob - reference log-prob: "k1" d, unbiased, but its gradient is 0 in expectation on the policy's own
    samples, so that it reports without pulling; "k2" d^2 / 2; "k3" exp(-d) - 1 + d, unbiased and never negative.

    Args:
      log_probs, reference_log_probs: [...] float; only the first is differentiated.
    Returns: [...] float32 nats.
    """
    difference = at_least_float32(log_probs) - jax.lax.stop_gradient(at_least_float32(reference_log_probs))
    match estimator:
        case "k1":
            return difference
        case "k2":
            return difference**2 / 2
    return jnp.exp(jnp.clip(-difference, max=MAX_ABS_LOG_RATIO)) - 1 + difference
