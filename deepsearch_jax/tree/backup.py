"""Which terminal a backup pass credits, and what its reward does to the values on its path."""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from deepsearch_jax.tree.settings import SearchSettings
from deepsearch_jax.tree.state import NO_NODE, ROOT, Tree, path_nodes
from deepsearch_jax.types import Outcome


def rewards_of(outcome: jax.Array, settings: SearchSettings) -> jax.Array:
    """The reward of each Outcome (Eq. 4); V, shape of `outcome`."""
    reward = jnp.where(outcome == Outcome.INCORRECT, -1.0, 0.0)
    reward = jnp.where(outcome == Outcome.INCOMPLETE, settings.incomplete_score, reward)
    return jnp.where(outcome == Outcome.CORRECT, 1.0, reward).astype(settings.value_dtype)


def candidates_at(tree: Tree, node: jax.Array) -> jax.Array:
    """Returns [W] int32: the children of `node` that are not credited yet, NO_NODE elsewhere. NO_NODE has none."""
    children = tree.children[jnp.maximum(node, ROOT)]
    is_open = (node >= ROOT) & (children > ROOT) & ~tree.is_credited[children]
    return jnp.where(is_open, children, NO_NODE)


def choose_terminal(tree: Tree, candidates: jax.Array, key: jax.Array, settings: SearchSettings) -> jax.Array:
    """The terminal that one backup pass credits (Eq. 1-2): a correct one if there is one, else a wrong one.

    The terminals form classes by reward: 1, then -1, then the rest (incomplete_score other than -1). Of the first class
    that is not empty the one of lowest path_entropy is taken, of a wrong class the one that `negative_choice` names;
    ties go to the earliest candidate. The paper takes every correct one; here, as recorded, one per pass.

    Args:
      candidates: [C] int32 slots, NO_NODE where there is none.
      key: typed PRNG key, consumed only if negative_choice is "random".

    Returns:
      [] int32 slot, NO_NODE if no candidate is terminal.
    """
    chex.assert_rank([candidates, tree.is_terminal], 1)
    is_terminal = (candidates > ROOT) & tree.is_terminal[candidates]
    reward = rewards_of(tree.outcome[candidates], settings)
    reward_class = jnp.where(reward == 1.0, 0, jnp.where(reward == -1.0, 1, 2))
    reward_class = jnp.where(is_terminal, reward_class, 3)
    best_class = reward_class.min()
    cost = tree.path_entropy[candidates]
    if settings.negative_choice == "least_confident":
        cost = jnp.where(best_class == 0, cost, -cost)
    elif settings.negative_choice == "random":
        drawn = jax.random.uniform(key, cost.shape, jnp.float32).astype(cost.dtype)
        cost = jnp.where(best_class == 0, cost, drawn)
    chosen = candidates[jnp.argmin(jnp.where(reward_class == best_class, cost, jnp.inf))]
    return jnp.where(is_terminal.any(), chosen, NO_NODE)


def visit_open(tree: Tree, candidates: jax.Array) -> Tree:
    """Every candidate [C] that is not terminal gets a visit of value 0; the node expanded gets none."""
    is_open = (candidates > ROOT) & ~tree.is_terminal[candidates]
    slots = jnp.where(is_open, candidates, tree.parent.size)
    return dataclasses.replace(tree, visit_count=tree.visit_count.at[slots].add(1, mode="drop"))


def backup(tree: Tree, leaf: jax.Array, settings: SearchSettings) -> Tree:
    """Credits the terminal `leaf`: one visit and the weighted reward for it and for each of its ancestors.

    With r the reward and g = max((depth + 1) / (leaf depth + 1), min_depth_weight), q of a node becomes (Eq. 3, 5)
      q + g r   if q r >= 0
      g r       if q < 0 < r (a node seen on a correct path forgets its negatives)
      q         if r < 0 < q
    or, with backup_rule "vanilla", max(q + g r, 0) above the leaf; the leaf's own q is always its reward. The recorded
    weight counts the root as the first node; root_counts_in_depth_weight=False gives the paper's depth / leaf depth.

    Args:
      leaf: [] int32 slot of a terminal; with NO_NODE nothing changes.
    """
    chex.assert_rank([tree.value, leaf], [1, 0])
    found = leaf > ROOT
    at = jnp.maximum(leaf, ROOT)
    path = jnp.pad(path_nodes(tree, leaf, settings), (1, 0), constant_values=ROOT)
    on_path = found & (path >= ROOT)
    level = jnp.arange(path.size, dtype=jnp.int32)
    first = 1 if settings.root_counts_in_depth_weight else 0
    dtype = tree.value.dtype
    span = jnp.maximum(tree.depth[at] + first, 1).astype(dtype)
    weight = jnp.maximum((level + first).astype(dtype) / span, settings.min_depth_weight)
    reward = rewards_of(tree.outcome[at], settings)
    gain = weight * reward
    value = tree.value[path]
    if settings.backup_rule == "vanilla":
        updated = jnp.where(level == tree.depth[at], gain, jnp.maximum(value + gain, 0.0))
    else:
        updated = jnp.where(value * reward >= 0.0, value + gain, jnp.where(reward > 0.0, gain, value))
    slots = jnp.where(on_path, path, tree.parent.size)
    place = jnp.where(found, tree.num_credited, tree.credited.size)
    return dataclasses.replace(
        tree,
        visit_count=tree.visit_count.at[slots].add(1, mode="drop"),
        value=tree.value.at[slots].set(updated, mode="drop"),
        is_credited=tree.is_credited.at[at].set(tree.is_credited[at] | found),
        credited=tree.credited.at[place].set(leaf, mode="drop"),
        num_credited=tree.num_credited + found,
    )
