"""What a search hands to learning: its credited trajectories."""

import jax
import jax.numpy as jnp
from flax import struct

from deepsearch_jax.tree.backup import rewards_of
from deepsearch_jax.tree.settings import SearchSettings
from deepsearch_jax.tree.state import ROOT, Tree, gather_segments, path_nodes


@struct.dataclass
class Trajectories:
    """The M credited trajectories of one tree in credit order; a batch of trees has a leading [B] axis on every field.

    T = D * S. Rows where `valid` is False are all zero (paths -1).

    Attributes:
      valid: [M] bool the trajectory exists.
      leaf: [M] int32 slot of its terminal.
      path: [M, D] int32 slots from depth 1 to the terminal, -1 after it.
      node_values: [M, D] V final q(s) along the path, 0 after it; the terminal's is its reward.
      segment_lengths: [M, D] int32 tokens of each segment, 0 after the path.
      score: [M] V reward of the terminal.
      outcome: [M] int32 Outcome.
      entropy: [M] V mean negative log-prob per token (nats).
      lengths: [M] int32 tokens.
      tokens: [M, T] int32, 0 after the end.
      log_probs: [M, T] float32 under the raw policy.
      sampling_log_probs: [M, T] float32 under the distribution sampled from.
    """

    valid: jax.Array
    leaf: jax.Array
    path: jax.Array
    node_values: jax.Array
    segment_lengths: jax.Array
    score: jax.Array
    outcome: jax.Array
    entropy: jax.Array
    lengths: jax.Array
    tokens: jax.Array
    log_probs: jax.Array
    sampling_log_probs: jax.Array


def extract_trajectories(tree: Tree, settings: SearchSettings) -> Trajectories:
    """Reads the credited trajectories off one tree."""

    def one(leaf: jax.Array) -> Trajectories:
        path = path_nodes(tree, leaf, settings)
        on_path = path >= ROOT
        valid, at = leaf >= ROOT, jnp.maximum(leaf, ROOT)
        return Trajectories(
            valid=valid,
            leaf=leaf,
            path=path,
            node_values=jnp.where(on_path, tree.value[path], 0.0),
            segment_lengths=jnp.where(on_path, tree.segment_lengths[path], 0),
            score=jnp.where(valid, rewards_of(tree.outcome[at], settings), 0.0),
            outcome=jnp.where(valid, tree.outcome[at], 0),
            entropy=jnp.where(valid, tree.path_entropy[at], 0.0),
            lengths=jnp.where(valid, tree.path_length[at], 0),
            tokens=gather_segments(tree.tokens, path),
            log_probs=gather_segments(tree.log_probs, path),
            sampling_log_probs=gather_segments(tree.sampling_log_probs, path),
        )

    return jax.vmap(one)(tree.credited)
