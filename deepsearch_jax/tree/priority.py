"""What the KV page of a node is worth to the rest of the search."""

import jax
import jax.numpy as jnp

from deepsearch_jax.tree.frontier import can_be_selected, frontier_scores
from deepsearch_jax.tree.settings import SearchSettings
from deepsearch_jax.tree.state import ROOT, Tree


def page_priority(tree: Tree, settings: SearchSettings) -> jax.Array:
    """How soon the page of each node may be read again: the highest F of a place at the node or below it.

    +inf at nodes where a cursor waits and at their ancestors: they are read next. -inf where no child can be made any
    more at the node or below it (terminals, full subtrees), in free slots, at the root (the prompt has pages of its
    own) and in trees that have ended. Apart from the root an ancestor's priority is never below a descendant's, so
    pages dropped from the lowest priority up are missing at the ends of paths. Own definition.

    Returns:
      [N] float32.
    """
    scores = frontier_scores(tree, settings).astype(jnp.float32)
    priority = jnp.where(can_be_selected(tree, True, settings), scores, -jnp.inf)
    slots = jnp.where(tree.cursors >= ROOT, tree.cursors, settings.capacity)
    priority = priority.at[slots].set(jnp.inf, mode="drop")
    # The maximum over the subtree by doubling: after round k a node has seen all that is less than 2^k levels below it,
    # and `above` is its ancestor 2^k levels up. So all is seen after log2(max_depth) rounds of O(N).
    above = jnp.where(tree.parent >= ROOT, tree.parent, settings.capacity)
    for _ in range((settings.max_depth - 1).bit_length()):
        priority = priority.at[above].max(priority, mode="drop")
        above = above.at[above].get(mode="fill", fill_value=settings.capacity)
    return jnp.where(tree.is_running, priority.at[ROOT].set(-jnp.inf), -jnp.inf)
