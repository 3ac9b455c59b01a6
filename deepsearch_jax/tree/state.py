"""The search tree as arrays, and what can be read off it without searching."""

import enum

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from deepsearch_jax.tree.settings import SearchSettings
from deepsearch_jax.types import Outcome

ROOT = 0
NO_NODE = -1


class SearchStatus(enum.IntEnum):
    """Why a search goes on or has ended; int32 in arrays."""

    RUNNING = 0
    FINISHED = 1  # num_trajectories terminals are credited, or trajectories_if_solved and a correct one among them
    EXHAUSTED = 2  # no node is left that selection could go to
    OUT_OF_NODES = 3  # the next expansion does not fit the capacity or the node budget
    OUT_OF_TOKENS = 4  # the token budget is used up


@struct.dataclass
class Tree:
    """One search tree with room for N nodes; a batch of trees has a leading [B] axis on every field.

    Node slots fill from the left and are never reused; slot 0 is the root (the prompt, depth 0, no segment). Free slots
    hold what `init_tree` put there. V is `SearchSettings.value_dtype`; W, F and the other sizes are named there too.

    Attributes:
      parent: [N] int32 slot of the parent; NO_NODE at the root and in free slots.
      child_rank: [N] int32 position among the siblings; NO_NODE at the root and in free slots.
      children: [N, W + G] int32 slots of the children by rank; NO_NODE where there is none (yet). G is num_grafts.
      num_children: [N] int32 children made so far.
      num_grafted: [N] int32 those of them that came from direct samples of the problem (`graft_samples`).
      depth: [N] int32 segments from the root.
      preorder: [N] int32 rank of the node in depth-first order, children by rank.
      visit_count: [N] int32 N(s), see `backup`.
      value: [N] V small q(s), the rewards backed up so far; one reward is at most 1 in size.
      is_terminal: [N] bool no expansion below: the sequence ended, or depth = max_depth.
      is_credited: [N] bool the terminal has been backed up.
      outcome: [N] int32 Outcome; NONE at non-terminals.
      segment_lengths: [N] int32 sampled tokens of the node's own segment, end of sequence counted.
      mean_nll: [N] float32 H(s), mean negative log-prob per token of the node's own segment (nats).
      path_length: [N] int32 sampled tokens from the root to the end of the node.
      path_log_prob: [N] V sum of their raw log-probs (nats).
      path_entropy: [N] V mean negative log-prob per token from the root to the end of the node (nats).
      tokens: [N, S] int32 the node's segment; 0 after its end.
      log_probs: [N, S] float32 under the raw policy.
      sampling_log_probs: [N, S] float32 under the distribution sampled from.
      credited: [M] int32 credited terminals in order; NO_NODE from `num_credited` on.
      num_credited: [] int32.
      num_nodes: [] int32 slots in use.
      num_tokens: [] int32 tokens sampled for the tree, those of direct samples not counted.
      num_passes: [] int32 backup passes so far, revisits counted.
      cursors: [F] int32 nodes that wait for an expansion; NO_NODE at idle cursors and once the search has ended. Lazily
        several may wait at one node, each for a child of its own, unless siblings are distinct.
      status: [] int32 SearchStatus.
      entropy_weight: [] float32 lambda2 of the frontier where `confidence` is "adaptive"; else it is not read.
    """

    parent: jax.Array
    child_rank: jax.Array
    children: jax.Array
    num_children: jax.Array
    num_grafted: jax.Array
    depth: jax.Array
    preorder: jax.Array
    visit_count: jax.Array
    value: jax.Array
    is_terminal: jax.Array
    is_credited: jax.Array
    outcome: jax.Array
    segment_lengths: jax.Array
    mean_nll: jax.Array
    path_length: jax.Array
    path_log_prob: jax.Array
    path_entropy: jax.Array
    tokens: jax.Array
    log_probs: jax.Array
    sampling_log_probs: jax.Array
    credited: jax.Array
    num_credited: jax.Array
    num_nodes: jax.Array
    num_tokens: jax.Array
    num_passes: jax.Array
    cursors: jax.Array
    status: jax.Array
    entropy_weight: jax.Array

    @property
    def q_value(self) -> jax.Array:
        """[N] capital Q(s) = q(s) / N(s); 0 where the node was never visited."""
        return self.value / jnp.maximum(self.visit_count, 1).astype(self.value.dtype)

    @property
    def current(self) -> jax.Array:
        """[] int32 the node of the first cursor."""
        return self.cursors[..., 0]

    @property
    def is_running(self) -> jax.Array:
        """[] bool the search wants another expansion."""
        return self.status == SearchStatus.RUNNING


def init_tree(settings: SearchSettings) -> Tree:
    """Returns a tree that holds the root alone, which is to be expanded first.

    The first cursor starts there; the others are idle, or in a lazy tree start there too while it has room.

    Raises:
      ValueError: value_dtype is float64 and jax has 64-bit types switched off.
    """
    if settings.value_dtype == "float64" and jax.dtypes.canonicalize_dtype("float64") != jnp.float64:
        raise ValueError(
            'value_dtype="float64" needs 64-bit types, which are off; wrap the search in jax.enable_x64(True) '
            'or use value_dtype="float32"'
        )
    N, S, M = settings.capacity, settings.segment_length, settings.num_trajectories
    V = settings.value_dtype

    # A fresh array per field: two donated arguments must not share a buffer.
    def filled(shape: tuple[int, ...], fill: int = 0, dtype: str = "int32") -> jax.Array:
        return jnp.full(shape, fill, dtype)

    num_started = min(settings.picks_per_step, settings.expansion_width, settings.max_nodes - 1)
    num_started = num_started if settings.is_lazy and not settings.are_distinct else 1
    is_started = jnp.arange(settings.picks_per_step) < num_started
    return Tree(
        parent=filled((N,), NO_NODE),
        child_rank=filled((N,), NO_NODE),
        children=filled((N, settings.max_children), NO_NODE),
        num_children=filled((N,)),
        num_grafted=filled((N,)),
        depth=filled((N,)),
        preorder=filled((N,)),
        visit_count=filled((N,)),
        value=filled((N,), dtype=V),
        is_terminal=filled((N,), dtype="bool"),
        is_credited=filled((N,), dtype="bool"),
        outcome=filled((N,), int(Outcome.NONE)),
        segment_lengths=filled((N,)),
        mean_nll=filled((N,), dtype="float32"),
        path_length=filled((N,)),
        path_log_prob=filled((N,), dtype=V),
        path_entropy=filled((N,), dtype=V),
        tokens=filled((N, S)),
        log_probs=filled((N, S), dtype="float32"),
        sampling_log_probs=filled((N, S), dtype="float32"),
        credited=filled((M,), NO_NODE),
        num_credited=filled(()),
        num_nodes=filled((), 1),
        num_tokens=filled(()),
        num_passes=filled(()),
        cursors=jnp.where(is_started, jnp.int32(ROOT), jnp.int32(NO_NODE)),
        status=filled((), int(SearchStatus.RUNNING)),
        entropy_weight=jnp.float32(settings.frontier_entropy_weight),
    )


def path_nodes(tree: Tree, node: jax.Array, settings: SearchSettings) -> jax.Array:
    """Returns [D] int32: the node at depth d on the way from the root to `node` at index d - 1, NO_NODE below `node`.

    Args:
      node: [] int32 slot; NO_NODE and the root have an empty path.
    """
    chex.assert_rank([tree.parent, node], [1, 0])
    depths = jnp.arange(1, settings.max_depth + 1, dtype=jnp.int32)

    # A walk down from the deepest level: it stands still until it meets the level of `node`, then follows the parents.
    def step(at: jax.Array, depth: jax.Array) -> tuple[jax.Array, jax.Array]:
        here = (at > ROOT) & (tree.depth[at] == depth)
        return jnp.where(here, tree.parent[at], at), jnp.where(here, at, NO_NODE)

    _, path = lax.scan(step, node, depths, reverse=True)
    return path


def path_tokens(tree: Tree, node: jax.Array, settings: SearchSettings) -> tuple[jax.Array, jax.Array]:
    """The tokens sampled from the root to the end of `node`.

    Only full segments are ever expanded, so the segments of a path lie one behind the other without gaps.

    Returns:
      tokens: [D * S] int32, 0 after the end; length: [] int32.
    """
    tokens = gather_segments(tree.tokens, path_nodes(tree, node, settings))
    return tokens, jnp.where(node >= ROOT, tree.path_length[node], 0)


def gather_segments(field: jax.Array, path: jax.Array) -> jax.Array:
    """Returns [D * S]: the rows of `field` [N, S] at the slots `path` [D], zeros where the path has ended."""
    rows = jnp.where((path >= ROOT)[:, None], field[jnp.maximum(path, ROOT)], 0)
    return rows.reshape(-1)
