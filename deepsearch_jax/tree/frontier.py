"""Global selection over the places of the whole tree where children may still be made.

A *place* is what one cursor takes. Eager: a node whose missing children are made all at once, the root excepted. Lazy:
"the next child of node s", for every s that is not terminal, the root too; s has as many places as it lacks children.
Lazy expansion and its frontier are definitions of this project, not of the paper.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from deepsearch_jax.tree.expand import most_children
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


def frontier_entropies(tree: Tree, settings: SearchSettings) -> jax.Array:
    """H(s) of every node, [N] V, nats per token (but for "excess"); 0 at a root without children.

    `frontier_entropy` says whose tokens it is a mean over: "own" those of the node's segment (Eq. 7), "path" those
    from the root to the end of the node, "children" those of the segments of its children, each token with the same
    weight, and as "path" where it has none. "excess" is no mean per token but nats in all,

      H(s) = -ln pi(s) - ln m(s) - h |s|

    with m(s) = `next_child_mass`, |s| the tokens of the prefix and h the mean negative log-prob per token of all first
    children, the only ones that were drawn whatever their siblings are: by how much the likeliest prefix that a next
    child can make falls behind a usual one. Least H first (l2 < 0) is best-first search in likelihood; it
    needs siblings="distinct", or it asks for the likeliest child again and again. All but "own" are definitions of this
    project.
    """
    if settings.frontier_entropy == "own":
        return tree.mean_nll.astype(settings.value_dtype)
    if settings.frontier_entropy == "path":
        return tree.path_entropy
    if settings.frontier_entropy == "excess":
        lengths = jnp.where(tree.child_rank == 0, tree.segment_lengths, 0).astype(tree.path_log_prob.dtype)
        usual = (tree.mean_nll * lengths).sum() / jnp.maximum(lengths.sum(), 1)
        return -tree.path_log_prob - jnp.log(next_child_mass(tree, settings)) - usual * tree.path_length
    # Sums over the children: their path sums less that of the node. The root and free slots have no parent.
    parent = jnp.where(tree.parent >= ROOT, tree.parent, settings.capacity)
    before = jnp.maximum(tree.parent, ROOT)
    total = (
        jnp.zeros_like(tree.path_log_prob).at[parent].add(tree.path_log_prob - tree.path_log_prob[before], mode="drop")
    )
    count = jnp.zeros_like(tree.path_length).at[parent].add(tree.segment_lengths, mode="drop")
    mean = -total / jnp.maximum(count, 1).astype(total.dtype)
    return jnp.where(tree.num_children > 0, mean, tree.path_entropy)


def next_child_mass(tree: Tree, settings: SearchSettings) -> jax.Array:
    """What the next child of a node may have for probability given the node, under the raw policy; [N] V.

    No more than the children there are leave of 1, and no more than the least likely of them has: drawn without
    replacement at a low temperature they come nearly in the order of their probabilities. 1 where there is none; at
    least 1e-6, below which a sum of float32 probabilities says nothing.
    """
    is_child = tree.parent >= ROOT
    mass = jnp.where(is_child, jnp.exp(-tree.mean_nll * tree.segment_lengths), 0.0)
    parent = jnp.where(is_child, tree.parent, settings.capacity)
    used = jnp.zeros(settings.capacity, mass.dtype).at[parent].add(mass, mode="drop")
    least = jnp.ones(settings.capacity, mass.dtype).at[parent].min(mass, mode="drop")
    return jnp.maximum(jnp.minimum(1.0 - used, least), 1e-6).astype(settings.value_dtype)


def frontier_scores(tree: Tree, settings: SearchSettings) -> jax.Array:
    """F of the places at every node.

    Eager, the place "expand s" (Eq. 6; l4 is not in the paper):
      F(s) = l1 tanh(Q(parent of s)) + l4 tanh(Q(s)) + l2 H(s) + l3 D(depth of s)
    Lazy, the place "next child of s" (own definition). The node to come has s for its parent, and no entropy yet:
      F(s) = l1 tanh(Q(s)) + l4 tanh(Q(s)) + l2 H(s) + l3 D(depth of s)
    H is `frontier_entropies`; where `confidence` is "adaptive", l2 is the tree's own `entropy_weight`.

    Returns:
      [N] V; meaningless where `can_be_selected` is False.
    """
    chex.assert_rank(tree.parent, 1)
    squashed = jnp.tanh(tree.q_value)
    parents = squashed if settings.is_lazy else squashed[jnp.maximum(tree.parent, ROOT)]
    scores = settings.frontier_value_weight * parents
    if settings.frontier_own_value_weight > 0.0:
        scores = scores + settings.frontier_own_value_weight * squashed
    if settings.confidence == "adaptive":
        scores = scores + tree.entropy_weight.astype(scores.dtype) * frontier_entropies(tree, settings)
    elif settings.frontier_entropy_weight != 0.0:
        scores = scores + settings.frontier_entropy_weight * frontier_entropies(tree, settings)
    return scores + settings.frontier_depth_weight * depth_bonus(tree.depth, settings)


def can_be_selected(
    tree: Tree, only_frontier: jax.Array | bool, settings: SearchSettings, taken: Sequence[jax.Array] = ()
) -> jax.Array:
    """Returns [N] bool: nodes that are not terminal, and in an eager tree not the root.

    The root of an eager tree that started from fewer direct samples than it should have children is one for them.

    Args:
      only_frontier: only those with a place that is free.
      taken: nodes ([] int32 each, NO_NODE for none) at which other cursors wait; each takes one place there.
    """
    slots = jnp.arange(settings.capacity, dtype=jnp.int32)
    first = ROOT if settings.is_lazy else ROOT + 1
    is_inner = (slots >= first) & (slots < tree.num_nodes) & ~tree.is_terminal
    num_children = tree.num_children
    for other in taken:
        # Distinct children of one node are made one after the other, so a node has no place beside one that is taken.
        places = settings.max_children if settings.are_distinct else settings.children_per_expansion
        num_children = num_children + jnp.where(slots == other, places, 0)
    has_room = num_children < most_children(tree, slots, settings)
    can_be = is_inner & (has_room | ~jnp.asarray(only_frontier))
    return can_be | ((slots == ROOT) & has_room) if settings.num_grafts else can_be


def select_frontier(
    tree: Tree, only_frontier: jax.Array | bool, settings: SearchSettings, taken: Sequence[jax.Array] = ()
) -> jax.Array:
    """Returns [] int32: the selectable node of the highest F, among equals the first in depth-first order.

    NO_NODE if there is none. The order is that of the recorded searches and independent of when a node was made.
    `taken` as for `can_be_selected`.
    """
    candidates = can_be_selected(tree, only_frontier, settings, taken)
    scores = jnp.where(candidates, frontier_scores(tree, settings), -jnp.inf)
    is_best = candidates & (scores == scores.max())
    first = jnp.min(jnp.where(is_best, tree.preorder, settings.capacity))
    slots = jnp.arange(settings.capacity, dtype=jnp.int32)
    return jnp.max(jnp.where(is_best & (tree.preorder == first), slots, NO_NODE))
