"""Local selection among the children of one node, by UCT."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from deepsearch_jax.tree.settings import SearchSettings
from deepsearch_jax.tree.state import NO_NODE, ROOT, Tree


def uct_scores(tree: Tree, node: jax.Array, settings: SearchSettings) -> jax.Array:
    """Scores the children of `node`:  UCT(s) = Q(s) + exploration * sqrt(ln N(node) / N(s)).

    Source: DeepSearch (arXiv 2509.25454), local selection. What the formula leaves open is as recorded: the second term
    is 0 where either count is 0, and a terminal child cannot be selected.

    Args:
      node: [] int32 slot.

    Returns:
      [W] float32 by child rank, -inf where there is no child or it is terminal. Float32 also where values are float64:
      that is how the recorded searches compare, and it decides their ties.
    """
    chex.assert_rank([tree.parent, node], [1, 0])
    children = tree.children[node]
    visits = tree.visit_count[children].astype(tree.value.dtype)
    parent_visits = tree.visit_count[node].astype(tree.value.dtype)
    ratio = jnp.log(jnp.maximum(parent_visits, 1.0)) / jnp.maximum(visits, 1.0)
    bonus = jnp.where(visits > 0.0, settings.exploration * jnp.sqrt(ratio), 0.0)
    q_value = tree.value[children] / jnp.maximum(visits, 1.0)
    can_be_chosen = (children > ROOT) & ~tree.is_terminal[children]
    return jnp.where(can_be_chosen, q_value + bonus, -jnp.inf).astype(jnp.float32)


def select_child(tree: Tree, node: jax.Array, settings: SearchSettings, taken: Sequence[jax.Array] = ()) -> jax.Array:
    """Returns [] int32: the child of the highest UCT score, the first of equals; NO_NODE if all are terminal.

    Args:
      taken: nodes ([] int32 each) at which other cursors wait; they are left out.
    """
    scores = uct_scores(tree, node, settings)
    for other in taken:
        scores = jnp.where(tree.children[node] == other, -jnp.inf, scores)
    best = jnp.argmax(scores)
    return jnp.where(scores[best] > -jnp.inf, tree.children[node, best], NO_NODE)
