"""Log-probs of given tokens, without ever holding logits for more than one chunk of tokens."""

import jax
import jax.numpy as jnp

from deepsearch_jax.policy.config import ModelConfig
from deepsearch_jax.policy.model import Params, hidden_states, logits


def token_log_probs(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    segment_ids: jax.Array,
    *,
    chunk_size: int = 1024,
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of each token given the tokens before it in its segment, and the entropy it was drawn at.

    log_probs[:, t] = log softmax(logits[:, t - 1] / temperature)[tokens[:, t]]. The vocabulary is walked chunk by chunk
    of tokens and recomputed in the backward pass: memory is chunk_size * V, not R * T * V.
    Args:
      tokens, segment_ids: [R, T] int32; segment id 0 is padding.
      chunk_size: tokens per chunk.
      temperature: > 0, divides the logits.
    Returns: two [R, T] float32 arrays, log_probs and entropies in nats; both 0 at the first token of a segment and in
      padding. Differentiable.
    """
    hidden = hidden_states(config, params, tokens, segment_ids)[:, :-1].reshape(-1, config.hidden_size)
    taken, entropy = _log_probs_after(params, hidden, tokens[:, 1:].reshape(-1), chunk_size, temperature)
    predicted = (segment_ids[:, 1:] != 0) & (segment_ids[:, 1:] == segment_ids[:, :-1])

    def rows(values: jax.Array) -> jax.Array:
        return jnp.pad(jnp.where(predicted, values.reshape(predicted.shape), 0), ((0, 0), (1, 0)))

    return rows(taken), rows(entropy)


def tree_log_probs(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    tree_ids: jax.Array,
    positions: jax.Array,
    parents: jax.Array,
    ends: jax.Array,
    *,
    chunk_size: int = 1024,
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of each token of packed trees given the tokens on its path, and the entropy it was drawn at.

    Memory as in `token_log_probs`.
    Args:
      tokens, tree_ids, positions, parents, ends: [R, T] int32, see `PackedBatch`.
      chunk_size: tokens per chunk.
    Returns: two [R, T] float32 arrays, both 0 at tokens without a parent. Differentiable.
    """
    hidden = hidden_states(config, params, tokens, tree_ids, positions, ends)
    before = jnp.take_along_axis(hidden, jnp.maximum(parents, 0)[..., None], axis=1).reshape(-1, config.hidden_size)
    values = _log_probs_after(params, before, tokens.reshape(-1), chunk_size, 1.0)
    taken, entropy = (jnp.where(parents >= 0, x.reshape(tokens.shape), 0) for x in values)
    return taken, entropy


def _log_probs_after(
    params: Params, hidden: jax.Array, targets: jax.Array, chunk_size: int, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of each target [X] after its hidden state [X, E], and the entropy there; chunk by chunk."""
    num_chunks = max(1, -(-targets.size // chunk_size))
    chunk_size = -(-targets.size // num_chunks)  # even chunks waste less padding
    padding = num_chunks * chunk_size - targets.size
    ends = {name: part for name, part in params.items() if name != "layers"}  # the backward pass sums only these

    @jax.checkpoint
    def of_chunk(ends: Params, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_probs = jax.nn.log_softmax(logits(ends, hidden) / temperature, axis=-1)
        taken = jnp.take_along_axis(log_probs, targets[:, None], axis=-1)[:, 0]
        return taken, -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    chunks = (
        jnp.pad(hidden, ((0, padding), (0, 0))).reshape(num_chunks, chunk_size, -1),
        jnp.pad(targets, (0, padding)).reshape(num_chunks, chunk_size),
    )
    taken, entropy = jax.lax.map(lambda chunk: of_chunk(ends, *chunk), chunks)
    return taken.reshape(-1)[: targets.size], entropy.reshape(-1)[: targets.size]
