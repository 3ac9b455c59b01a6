"""Global selection over the nodes of the whole tree that may still be expanded."""

import chex
import jax
import jax.numpy as jnp

from deepsearch_jax.tree.expand import width_at_depth
from deepsearch_jax.tree.settings import SearchSettings
from deepsearch_jax.tree.state import NO_NODE, ROOT, Tree


def depth_bonus(depth: jax.Array, settings: SearchSettings) -> jax.Array:
    """D(d) of Eq. 7: sqrt(d / d_T), ln(d + 1) or d itself; same shape as `depth`, V."""
    depth = depth.astype(settings.value_dtype)
    if settings.depth_bonus == "sqrt":
        return jnp.sqrt(depth / settings.max_depth)
    if settings.depth_bonus == "log":
        return jnp.log(depth + 1.0)
    return depth


def frontier_scores(tree: Tree, settings: SearchSettings) -> jax.Array:
    """F(s) = l1 tanh(Q(parent)) + l4 tanh(Q(s)) + l2 H(s) + l3 D(depth) of every node (Eq. 6; l4 is not in the paper).

    Returns:
      [N] V; meaningless at the root and in free slots, which `select_frontier` masks.
    """
    chex.assert_rank(tree.parent, 1)
    squashed = jnp.tanh(tree.q_value)
    scores = settings.frontier_value_weight * squashed[jnp.maximum(tree.parent, ROOT)]
    if settings.frontier_own_value_weight > 0.0:
        scores = scores + settings.frontier_own_value_weight * squashed
    if settings.frontier_entropy_weight != 0.0:
        scores = scores + settings.frontier_entropy_weight * tree.mean_nll.astype(scores.dtype)
    return scores + settings.frontier_depth_weight * depth_bonus(tree.depth, settings)


def can_be_selected(tree: Tree, only_frontier: jax.Array | bool, settings: SearchSettings) -> jax.Array:
    """Returns [N] bool: nodes, neither terminal nor the root; with `only_frontier` only those with missing children."""
    slots = jnp.arange(settings.capacity, dtype=jnp.int32)
    is_inner = (slots > ROOT) & (slots < tree.num_nodes) & ~tree.is_terminal
    has_room = tree.num_children < width_at_depth(tree.depth, settings)
    return is_inner & (has_room | ~jnp.asarray(only_frontier))


def select_frontier(tree: Tree, only_frontier: jax.Array | bool, settings: SearchSettings) -> jax.Array:
    """Returns [] int32: the selectable node of the highest F, among equals the first in depth-first order.

    NO_NODE if there is none. The order is that of the recorded searches and independent of when a node was made.
    """
    candidates = can_be_selected(tree, only_frontier, settings)
    scores = jnp.where(candidates, frontier_scores(tree, settings), -jnp.inf)
    is_best = candidates & (scores == scores.max())
    first = jnp.min(jnp.where(is_best, tree.preorder, settings.capacity))
    slots = jnp.arange(settings.capacity, dtype=jnp.int32)
    return jnp.max(jnp.where(is_best & (tree.preorder == first), slots, NO_NODE))
