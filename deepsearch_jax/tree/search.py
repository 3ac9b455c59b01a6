"""One step of the search: expansion, backup pass, choice of the next node, revisits; on one tree and on a batch."""

import dataclasses
import enum
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from deepsearch_jax.tree.backup import backup, candidates_at, choose_terminal, visit_open
from deepsearch_jax.tree.expand import add_children, num_children_wanted, width_at_depth
from deepsearch_jax.tree.frontier import select_frontier
from deepsearch_jax.tree.select import select_child
from deepsearch_jax.tree.settings import SearchSettings
from deepsearch_jax.tree.state import NO_NODE, ROOT, SearchStatus, Tree
from deepsearch_jax.types import Segments


class Selection(enum.IntEnum):
    """How a pass chose the next node; int32 in arrays."""

    STOP = 0  # the last trajectory wanted is credited, nothing was chosen
    LOCAL = 1  # by UCT among the children of the current node
    GLOBAL = 2  # by F over the whole tree
    UCT_ROOT = 3  # by UCT among the children of the root
    FALLBACK_FRONTIER = 4  # every child of the current node is terminal: by F over the frontier


class PassInfo(NamedTuple):
    """What one backup pass did; the search itself does not read it.

    candidates: [K] int32 slots considered, NO_NODE where there is none; chosen: [] int32 the credited one or NO_NODE;
    how: [] int32 Selection; next_node: [] int32 selected node or NO_NODE.
    """

    candidates: jax.Array
    chosen: jax.Array
    how: jax.Array
    next_node: jax.Array


def backup_pass(tree: Tree, key: jax.Array, settings: SearchSettings) -> tuple[Tree, PassInfo]:
    """Backs up among the children of `tree.current` and moves `current` on; sets the status if that ends the search.

    Every open child is visited and at most one terminal child is credited. Where a terminal was among the candidates,
    the next node is chosen over the whole tree (or by UCT at the root), else among the children of the current node.
    The other terminals wait for a revisit of their parent. A tree that has ended is left as it is.

    Args:
      key: typed PRNG key of the step; the draw of a pass derives from it and from `tree.num_passes`.
    """
    node = jnp.where(tree.is_running, tree.current, NO_NODE)
    candidates = candidates_at(tree, node)
    met_terminal = ((candidates > ROOT) & tree.is_terminal[candidates]).any()
    chosen = choose_terminal(tree, candidates, jax.random.fold_in(key, tree.num_passes), settings)
    after = backup(visit_open(tree, candidates), chosen, settings)
    next_node, how = choose_next(after, jnp.maximum(node, ROOT), met_terminal, settings)
    status = _status_at(after, next_node, settings)
    status = jnp.where(tree.is_running, status, tree.status)
    moved = dataclasses.replace(
        after,
        num_passes=after.num_passes + tree.is_running,
        current=jnp.where(status == SearchStatus.RUNNING, next_node, NO_NODE),
        status=status,
    )
    return moved, PassInfo(candidates, chosen, how, next_node)


def choose_next(
    tree: Tree, node: jax.Array, met_terminal: jax.Array, settings: SearchSettings
) -> tuple[jax.Array, jax.Array]:
    """Selects the node to go to after the backup pass at `node`.

    Args:
      node: [] int32 the node just processed.
      met_terminal: [] bool a terminal was among the candidates of the pass.

    Returns:
      next node, [] int32, NO_NODE if the search is finished or nothing can be selected; Selection, [] int32.
    """
    child = select_child(tree, node, settings)
    stuck = ~met_terminal & (child == NO_NODE)
    frontier = select_frontier(tree, stuck | settings.force_to_frontier, settings)
    if settings.backtrace == "uct":
        far, far_how = select_child(tree, jnp.int32(ROOT), settings), Selection.UCT_ROOT
    else:
        far, far_how = frontier, Selection.GLOBAL
    next_node = jnp.where(met_terminal, far, jnp.where(stuck, frontier, child))
    how = jnp.where(met_terminal, far_how, jnp.where(stuck, Selection.FALLBACK_FRONTIER, Selection.LOCAL))
    finished = tree.num_credited >= settings.num_trajectories
    return jnp.where(finished, NO_NODE, next_node), jnp.where(finished, Selection.STOP, how).astype(jnp.int32)


def _status_at(tree: Tree, next_node: jax.Array, settings: SearchSettings) -> jax.Array:
    """The status of a search that wants to go on at `next_node`, [] int32.

    An expansion needs expansion_width free slots (also where dynamic width makes fewer children), room in the node
    budget for the children it does make, and a token budget not yet used up. A revisit needs none of these.
    """
    at = jnp.maximum(next_node, ROOT)
    missing = width_at_depth(tree.depth[at], settings) - tree.num_children[at]
    out_of_nodes = tree.num_nodes + settings.expansion_width > settings.capacity
    if settings.node_budget:
        out_of_nodes |= tree.num_nodes + missing > settings.node_budget
    status = jnp.where((missing > 0) & out_of_nodes, SearchStatus.OUT_OF_NODES, SearchStatus.RUNNING)
    if settings.token_budget:
        out_of_tokens = (missing > 0) & (tree.num_tokens >= settings.token_budget)
        status = jnp.where(out_of_tokens, SearchStatus.OUT_OF_TOKENS, status)
    status = jnp.where(next_node == NO_NODE, SearchStatus.EXHAUSTED, status)
    finished = tree.num_credited >= settings.num_trajectories
    return jnp.where(finished, SearchStatus.FINISHED, status).astype(jnp.int32)


class _Revisit(NamedTuple):
    """The fields of a Tree that a pass changes. The others stay out of the loop, where a batch would copy them."""

    visit_count: jax.Array
    value: jax.Array
    is_credited: jax.Array
    credited: jax.Array
    num_credited: jax.Array
    num_passes: jax.Array
    current: jax.Array
    status: jax.Array

    @classmethod
    def of(cls, tree: Tree) -> "_Revisit":
        return cls(**{name: getattr(tree, name) for name in cls._fields})


def search_step(tree: Tree, segments: Segments, outcomes: jax.Array, key: jax.Array, settings: SearchSettings) -> Tree:
    """Expands `tree.current` with the sampled segments, backs up and selects; one tree.

    On return either the status is not RUNNING or `current` waits for its expansion: a node that selection reaches and
    that has all its children already gets its backup pass in here. A tree that is not RUNNING comes back unchanged.

    Args:
      segments: [K, ...] sampled at `tree.current`.
      outcomes: [K] int32 Outcome of the rows that `child_is_terminal` names.
      key: typed PRNG key, read only if negative_choice is "random".
    """
    tree, _ = backup_pass(add_children(tree, segments, outcomes, settings), key, settings)
    if not settings.can_revisit:
        return tree

    def is_revisit(carry: _Revisit) -> jax.Array:
        at = dataclasses.replace(tree, **carry._asdict())
        return at.is_running & (num_children_wanted(at, settings) == 0)

    def revisit(carry: _Revisit) -> _Revisit:
        return _Revisit.of(backup_pass(dataclasses.replace(tree, **carry._asdict()), key, settings)[0])

    return dataclasses.replace(tree, **lax.while_loop(is_revisit, revisit, _Revisit.of(tree))._asdict())


def batched_search_step(
    trees: Tree, segments: Segments, outcomes: jax.Array, keys: jax.Array, settings: SearchSettings
) -> Tree:
    """`search_step` with a leading axis [B] on every argument; jit it with static `settings` and donated `trees`."""
    return jax.vmap(functools.partial(search_step, settings=settings))(trees, segments, outcomes, keys)
