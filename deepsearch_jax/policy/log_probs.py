"""Log-probs of given tokens, without ever holding logits for more than one chunk of tokens."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from deepsearch_jax.policy.config import ModelConfig
from deepsearch_jax.policy.model import Params, hidden_states, logits
from deepsearch_jax.policy.sharding import gathered, num_row_parts, row_axes


def token_log_probs(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    segment_ids: jax.Array,
    *,
    chunk_size: int = 1024,
    temperature: float = 1.0,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of each token given the tokens before it in its segment, and the entropy it was drawn at.

    log_probs[:, t] = log softmax(logits[:, t - 1] / temperature)[tokens[:, t]]. The vocabulary is walked chunk by chunk
    of tokens and recomputed in the backward pass: memory is chunk_size * V, not R * T * V.
    Args:
      tokens, segment_ids: [R, T] int32; segment id 0 is padding.
      chunk_size: tokens per chunk.
      temperature: > 0, divides the logits.
      mesh: see `hidden_states`; every device then walks over the tokens of its own rows.
    Returns: two [R, T] float32 arrays, log_probs and entropies in nats; both 0 at the first token of a segment and in
      padding. Differentiable.
    """
    hidden = hidden_states(config, params, tokens, segment_ids, mesh=mesh)[:, :-1].reshape(-1, config.hidden_size)
    taken, entropy = _log_probs_after(config, params, hidden, tokens[:, 1:].reshape(-1), chunk_size, temperature, mesh)
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
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of each token of packed trees given the tokens on its path, and the entropy it was drawn at.

    Memory as in `token_log_probs`.
    Args:
      tokens, tree_ids, positions, parents, ends: [R, T] int32, see `PackedBatch`.
      chunk_size: tokens per chunk.
      mesh: as in `token_log_probs`.
    Returns: two [R, T] float32 arrays, both 0 at tokens without a parent. Differentiable.
    """
    hidden = hidden_states(config, params, tokens, tree_ids, positions, ends, mesh)
    before = jnp.take_along_axis(hidden, jnp.maximum(parents, 0)[..., None], axis=1).reshape(-1, config.hidden_size)
    values = _log_probs_after(config, params, before, tokens.reshape(-1), chunk_size, 1.0, mesh)
    taken, entropy = (jnp.where(parents >= 0, x.reshape(tokens.shape), 0) for x in values)
    return taken, entropy


def _log_probs_after(
    config: ModelConfig,
    params: Params,
    hidden: jax.Array,
    targets: jax.Array,
    chunk_size: int,
    temperature: float,
    mesh: Mesh | None,
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of each target [X] after its hidden state [X, E], and the entropy there; chunk by chunk."""
    names = {"head" if "head" in params else "embed", "head_copy"}
    head = {name: part for name, part in params.items() if name in names}  # the backward pass sums only these
    in_chunks = functools.partial(_in_chunks, chunk_size=chunk_size, temperature=temperature)
    if mesh is None:
        return in_chunks(head, hidden, targets)
    # Every device walks over tokens of its own with the whole head and the gradients are summed once; the compiler
    # would sum them over the devices in every chunk. The devices of `tensor` share out the tokens of their rows.
    head = gathered(config, head, mesh, axes=("fsdp", "tensor"), keep_dtype=True)
    axes, parts, tensor = row_axes(mesh), num_row_parts(mesh), mesh.shape.get("tensor", 1)
    size = targets.size // parts
    padding = -size % tensor
    by_token = PartitionSpec(axes, "tensor" if "tensor" in mesh.shape else None)

    def of_device(head: Params, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
        values = in_chunks(head, hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1))
        return tuple(x.reshape(targets.shape) for x in values)

    def cut(x: jax.Array) -> jax.Array:
        x = x.reshape(parts, size, *x.shape[1:])
        return jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))

    specs = (PartitionSpec(), by_token, by_token)
    values = jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=by_token, check_vma=False)(
        head, cut(hidden), cut(targets)
    )
    taken, entropy = (x[:, :size].reshape(-1) for x in values)
    return taken, entropy


def _in_chunks(
    head: Params, hidden: jax.Array, targets: jax.Array, *, chunk_size: int, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """As `_log_probs_after`, on one device."""
    num_chunks = max(1, -(-targets.size // chunk_size))
    chunk_size = -(-targets.size // num_chunks)  # even chunks waste less padding
    padding = num_chunks * chunk_size - targets.size

    @jax.checkpoint
    def of_chunk(head: Params, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_probs = jax.nn.log_softmax(logits(head, hidden) / temperature, axis=-1)
        taken = jnp.take_along_axis(log_probs, targets[:, None], axis=-1)[:, 0]
        return taken, -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    chunks = (
        jnp.pad(hidden, ((0, padding), (0, 0))).reshape(num_chunks, chunk_size, -1),
        jnp.pad(targets, (0, padding)).reshape(num_chunks, chunk_size),
    )
    taken, entropy = jax.lax.map(lambda chunk: of_chunk(head, *chunk), chunks)
    return taken.reshape(-1)[: targets.size], entropy.reshape(-1)[: targets.size]
