"""Draws one token from logits; written for one row, vmapped by the engine.

A vocabulary of 152k makes the usual Gumbel-argmax draw 152k random numbers per token, which on a CPU costs as much as
part of the model. Here the vocabulary is cut into about sqrt(V) blocks: a block is drawn by its total mass, then a
token within the block. The product of the two probabilities is the token's own, so the draw is exact.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepsearch_jax.decode.settings import DecodeSettings
from deepsearch_jax.decode.siblings import without_siblings


class Sample(NamedTuple):
    """One drawn token.

    Attributes:
      token: [] int32.
      log_prob: [] float32 under the raw policy (temperature 1, nothing cut off).
      sampling_log_prob: [] float32 under the distribution drawn from, siblings or not; 0 at temperature 0.
      exact_entropy: [] float32 of the raw policy, in nats; None if it was not asked for.
    """

    token: jax.Array
    log_prob: jax.Array
    sampling_log_prob: jax.Array
    exact_entropy: jax.Array | None = None


def sample_token(
    key: jax.Array,
    logits: jax.Array,
    settings: DecodeSettings,
    siblings: tuple[jax.Array, jax.Array, jax.Array] | None = None,
) -> Sample:
    """Draws a token from softmax(logits / temperature), cut by top k, then by top p, then by min p (see `cut_tail`).

    Args:
      key: [] typed PRNG key; consumed here.
      logits: [V] float32.
      siblings: [W] tokens, log masses and ends of segments that the row must not become (see `without_siblings`); not
        at temperature 0.
    """
    raw_blocks = _in_blocks(logits)
    raw_masses = jax.nn.logsumexp(raw_blocks, axis=-1)
    raw_normaliser = jax.nn.logsumexp(raw_masses)
    entropy = _entropy(raw_blocks, raw_normaliser) if settings.entropy else None
    if settings.temperature == 0:
        del key
        block = jnp.argmax(raw_blocks.max(axis=-1))  # the lowest id among equals, like a plain argmax
        token = block * raw_blocks.shape[1] + jnp.argmax(raw_blocks[block])
        return Sample(token.astype(jnp.int32), logits[token] - raw_normaliser, jnp.zeros((), logits.dtype), entropy)
    scaled, masses, normaliser = logits, raw_masses, raw_normaliser
    if settings.temperature != 1 or _is_cut(settings):
        scaled = cut_tail(logits / settings.temperature, settings.top_k, settings.top_p, settings.min_p)
        masses = jax.nn.logsumexp(_in_blocks(scaled), axis=-1)
        normaliser = jax.nn.logsumexp(masses)
    drawn_from = scaled
    if siblings is not None:
        drawn_from = without_siblings(scaled, normaliser, *siblings)
        masses = jax.nn.logsumexp(_in_blocks(drawn_from), axis=-1)
    blocks = _in_blocks(drawn_from)
    noise = jax.random.gumbel(key, (sum(blocks.shape),))
    block = jnp.argmax(masses + noise[: masses.size])
    token = block * blocks.shape[1] + jnp.argmax(blocks[block] + noise[masses.size :])
    return Sample(token.astype(jnp.int32), logits[token] - raw_normaliser, scaled[token] - normaliser, entropy)


def cut_tail(logits: jax.Array, top_k: int, top_p: float, min_p: float = 0.0) -> jax.Array:
    """Sets to -inf all but the top_k largest logits, then all but the fewest of those that hold top_p of the mass, then
    all with less than min_p times the probability of the most likely token.

    All cuts are thresholds on the logit, the first two found by bisection without sorting; ties are kept. The order is
    the one of transformers; min p: arXiv 2407.01082.
    Args:
      logits: [V] float32, divided by the temperature.
      top_k: 0 keeps all.
      top_p: 1 keeps all.
      min_p: 0 keeps all.
    """
    if 0 < top_k < logits.size:
        logits = _keep_largest(logits, jnp.ones_like(logits), top_k)
    if top_p < 1:
        logits = _keep_largest(logits, jax.nn.softmax(logits), top_p)
    if min_p > 0:
        logits = jnp.where(logits >= logits.max() + math.log(min_p), logits, -jnp.inf)
    return logits


def _is_cut(settings: DecodeSettings) -> bool:
    return settings.top_k > 0 or settings.top_p < 1 or settings.min_p > 0


def _keep_largest(logits: jax.Array, weights: jax.Array, target: float) -> jax.Array:
    """Keeps logits >= the largest threshold whose kept weights sum to at least target.

    Bisects on the bits of the float, as integers of the same order: 32 halvings end at the exact threshold.
    """
    bits = jax.lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.int32)
    ranks = jnp.where(bits >= 0, bits, bits ^ jnp.int32(0x7FFFFFFF))

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # enough weight is kept at low, too little at high
        middle = (low & high) + ((low ^ high) >> 1)  # the mean without overflow
        enough = jnp.sum(jnp.where(ranks >= middle, weights, 0)) >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    # Rounding may leave the sum of all weights below target: then low never moves and everything is kept.
    low, _ = jax.lax.fori_loop(0, 32, halve, (ranks.min(), ranks.max() + 1))
    return jnp.where(ranks >= low, logits, -jnp.inf)


def _entropy(logits: jax.Array, normaliser: jax.Array) -> jax.Array:
    """-sum p log p over all of `logits`, whose log-sum-exp is `normaliser`; logits of -inf count as nothing."""
    log_probs = logits - normaliser
    return -jnp.sum(jnp.exp(log_probs) * jnp.where(jnp.isneginf(log_probs), 0, log_probs))


def _in_blocks(logits: jax.Array) -> jax.Array:
    """[V] -> [number of blocks, block length], padded with -inf where V has no divisor near its square root."""
    size = logits.size
    root = max(1, int(size**0.5))
    length = next((n for n in range(root, root // 4, -1) if size % n == 0), None)
    if length is None:
        length = root
        logits = jnp.pad(logits, (0, -size % length), constant_values=-jnp.inf)
    return logits.reshape(-1, length)
