"""One step of the search: expansion, backup pass, choice of the next node, revisits; on one tree and on a batch."""

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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


class _Visit(NamedTuple):
    """A backup pass between its two halves: credit, then the choice of the next node.

    is_active: [] bool the pass takes place; candidates, chosen: see PassInfo; met_terminal: [] bool a terminal was
    among the candidates; child: [] int32 the best child of the current node, NO_NODE if all are terminal.
    """

    is_active: jax.Array
    candidates: jax.Array
    chosen: jax.Array
    met_terminal: jax.Array
    child: jax.Array

    @property
    def is_stuck(self) -> jax.Array:
        """[] bool the local choice has nothing to choose from."""
        return ~self.met_terminal & (self.child == NO_NODE)


def _credit(tree: Tree, is_active: jax.Array, key: jax.Array, settings: SearchSettings) -> tuple[Tree, _Visit]:
    """First half of a pass at `tree.current`: visits the open children and credits at most one terminal child."""
    candidates = candidates_at(tree, jnp.where(is_active, tree.current, NO_NODE))
    met_terminal = ((candidates > ROOT) & tree.is_terminal[candidates]).any()
    chosen = choose_terminal(tree, candidates, jax.random.fold_in(key, tree.num_passes), settings)
    after = backup(visit_open(tree, candidates), chosen, settings)
    after = dataclasses.replace(after, num_passes=after.num_passes + is_active)
    node = jnp.maximum(tree.current, ROOT)
    return after, _Visit(is_active, candidates, chosen, met_terminal, select_child(after, node, settings))


def _needs_frontier(tree: Tree, visit: _Visit, settings: SearchSettings) -> jax.Array:
    """Returns [] bool: the second half of the pass will read what `_frontier` selects."""
    needed = visit.is_stuck if settings.backtrace == "uct" else visit.is_stuck | visit.met_terminal
    return visit.is_active & needed & (tree.num_credited < settings.num_trajectories)


def _frontier(tree: Tree, visit: _Visit, settings: SearchSettings) -> jax.Array:
    return select_frontier(tree, visit.is_stuck | settings.force_to_frontier, settings)


def _move_on(tree: Tree, visit: _Visit, frontier: jax.Array, settings: SearchSettings) -> tuple[Tree, PassInfo]:
    """Second half of a pass: chooses the next node and moves `current` there, or ends the search.

    Where a terminal was among the candidates, the next node is `frontier`, the choice over the whole tree (or the best
    child of the root by UCT), else the best child of the current node.
    """
    if settings.backtrace == "uct":
        far, far_how = select_child(tree, jnp.int32(ROOT), settings), Selection.UCT_ROOT
    else:
        far, far_how = frontier, Selection.GLOBAL
    next_node = jnp.where(visit.met_terminal, far, jnp.where(visit.is_stuck, frontier, visit.child))
    how = jnp.where(visit.is_stuck, Selection.FALLBACK_FRONTIER, Selection.LOCAL)
    how = jnp.where(visit.met_terminal, far_how, how)
    is_finished = tree.num_credited >= settings.num_trajectories
    next_node = jnp.where(is_finished, NO_NODE, next_node)
    how = jnp.where(is_finished, Selection.STOP, how).astype(jnp.int32)
    status = _status_at(tree, next_node, settings)
    goes_to = jnp.where(status == SearchStatus.RUNNING, next_node, NO_NODE)
    moved = dataclasses.replace(
        tree,
        current=jnp.where(visit.is_active, goes_to, tree.current),
        status=jnp.where(visit.is_active, status, tree.status),
    )
    return moved, PassInfo(visit.candidates, visit.chosen, how, next_node)


def backup_pass(tree: Tree, key: jax.Array, settings: SearchSettings) -> tuple[Tree, PassInfo]:
    """Backs up among the children of `tree.current` and moves `current` on; sets the status if that ends the search.

    At most one terminal is credited per pass; the others wait for a revisit of their parent. A tree that has ended is
    left as it is.

    Args:
      key: typed PRNG key of the step; the draw of a pass derives from it and from `tree.num_passes`.
    """
    tree, visit = _credit(tree, tree.is_running, key, settings)
    return _move_on(tree, visit, _frontier(tree, visit, settings), settings)


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


class _Revisited(NamedTuple):
    """The fields of a Tree that a pass changes; the others stay out of the loop over revisits."""

    visit_count: jax.Array
    value: jax.Array
    is_credited: jax.Array
    credited: jax.Array
    num_credited: jax.Array
    num_passes: jax.Array
    current: jax.Array
    status: jax.Array

    @classmethod
    def of(cls, tree: Tree) -> "_Revisited":
        return cls(**{name: getattr(tree, name) for name in cls._fields})

    def into(self, tree: Tree) -> Tree:
        return dataclasses.replace(tree, **self._asdict())


def batched_search_step(
    trees: Tree, segments: Segments, outcomes: jax.Array, keys: jax.Array, settings: SearchSettings
) -> Tree:
    """Expands the current node of every tree with the sampled segments, backs up and selects the next.

    On return a tree is either not RUNNING or its `current` waits for an expansion: a node that selection reaches and
    that has all its children already gets its backup pass in here. Trees that are not RUNNING come back unchanged. Jit
    it with static `settings` and donated `trees`.

    Args:
      trees: Tree with a leading [B] axis on every field, like all arguments.
      segments: [B, K, ...] sampled at `trees.current`.
      outcomes: [B, K] int32 Outcome of the rows that `child_is_terminal` names.
      keys: [B] typed PRNG keys, read only if negative_choice is "random".
    """

    def over_trees(function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(functools.partial(function, settings=settings))

    def first(tree: Tree, segments: Segments, outcomes: jax.Array, key: jax.Array) -> Tree:
        return backup_pass(add_children(tree, segments, outcomes, settings), key, settings)[0]

    trees = jax.vmap(first)(trees, segments, outcomes, keys)
    if not settings.can_revisit:
        return trees

    def waits_at_expanded(trees: Tree) -> jax.Array:
        return trees.is_running & (over_trees(num_children_wanted)(trees) == 0)

    # The loop is over the batch, not mapped over trees: a mapped loop would copy its state in every round, and could
    # not leave out the choice over the whole tree in the rounds where no tree needs it.
    def revisit(state: _Revisited) -> _Revisited:
        after, visits = over_trees(_credit)(state.into(trees), waits_at_expanded(state.into(trees)), keys)
        frontier = lax.cond(
            over_trees(_needs_frontier)(after, visits).any(),
            over_trees(_frontier),
            lambda trees, _: jnp.full_like(trees.current, NO_NODE),
            after,
            visits,
        )
        return _Revisited.of(over_trees(_move_on)(after, visits, frontier)[0])

    def any_waits(state: _Revisited) -> jax.Array:
        return waits_at_expanded(state.into(trees)).any()

    return lax.while_loop(any_waits, revisit, _Revisited.of(trees)).into(trees)


def search_step(tree: Tree, segments: Segments, outcomes: jax.Array, key: jax.Array, settings: SearchSettings) -> Tree:
    """`batched_search_step` of a single tree: no argument has a batch axis."""
    trees, rows, verdicts, keys = jax.tree.map(lambda field: field[None], (tree, segments, outcomes, key))
    return jax.tree.map(lambda field: field[0], batched_search_step(trees, rows, verdicts, keys, settings))
