"""One step of the search: expansion, backup passes, choice of the next nodes, revisits; on one tree and on a batch."""

import dataclasses
import enum
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from deepsearch_jax.tree.backup import backup, candidates_at, choose_terminal, visit_open
from deepsearch_jax.tree.expand import add_children, child_slots, most_children, num_children_wanted
from deepsearch_jax.tree.frontier import select_frontier
from deepsearch_jax.tree.select import select_child
from deepsearch_jax.tree.settings import SearchSettings
from deepsearch_jax.tree.state import NO_NODE, ROOT, SearchStatus, Tree
from deepsearch_jax.types import Outcome, Segments


class Selection(enum.IntEnum):
    """How a cursor chose its next node; int32 in arrays."""

    STOP = 0  # the last trajectory wanted is credited, nothing was chosen
    LOCAL = 1  # among the children of its node, by UCT (lazy: the child just made)
    GLOBAL = 2  # by F over the whole tree
    UCT_ROOT = 3  # by UCT among the children of the root
    FALLBACK_FRONTIER = 4  # no child of its node is open, or it was idle: by F over the frontier


class PassInfo(NamedTuple):
    """What the turn of one cursor did; the search itself does not read it. Stacked: a leading [F] axis.

    candidates: slots considered, NO_NODE where there is none, [C] children just made or [W] children in a revisit;
    chosen: [] int32 the credited one or NO_NODE; how: [] int32 Selection; next_node: [] int32 selected node or NO_NODE.
    """

    candidates: jax.Array
    chosen: jax.Array
    how: jax.Array
    next_node: jax.Array


class _Visit(NamedTuple):
    """The turn of a cursor between its two halves: credit, then the choice of the next node.

    is_active: [] bool the turn takes place; candidates, chosen: see PassInfo; met_terminal: [] bool a terminal was
    among the candidates; child: [] int32 where a descent goes on below the cursor's node, NO_NODE if nowhere.
    """

    is_active: jax.Array
    candidates: jax.Array
    chosen: jax.Array
    met_terminal: jax.Array
    child: jax.Array

    @property
    def is_stuck(self) -> jax.Array:
        """[] bool the local choice has nothing to choose from; always so if the cursor was idle."""
        return ~self.met_terminal & (self.child == NO_NODE)


class _Move(NamedTuple):
    """Where one cursor goes.

    node: [] int32 NO_NODE if it becomes idle; status: [] int32 RUNNING if it goes somewhere, else what keeps it from
    going; num_promised: [] int32 nodes that its next expansion makes.
    """

    node: jax.Array
    status: jax.Array
    num_promised: jax.Array


def has_enough(tree: Tree, settings: SearchSettings) -> jax.Array:
    """[] bool whether the search has all trajectories it is to credit."""
    has_all = tree.num_credited >= settings.num_trajectories
    if not settings.trajectories_if_solved:
        return has_all
    at = jnp.maximum(tree.credited, ROOT)
    is_solved = ((tree.credited > ROOT) & (tree.outcome[at] == Outcome.CORRECT)).any()
    return has_all | (is_solved & (tree.num_credited >= settings.trajectories_if_solved))


def _credit(
    tree: Tree,
    cursor: int,
    is_active: jax.Array,
    key: jax.Array,
    settings: SearchSettings,
    fresh: jax.Array | None = None,
    taken: Sequence[jax.Array] = (),
) -> tuple[Tree, _Visit]:
    """First half of a turn, the backup pass: visits the open candidates and credits at most one terminal.

    Args:
      cursor: which one, static.
      fresh: [C] int32 the children just made for it, the candidates; None: every child that is not credited yet.
      taken: nodes at which other cursors wait by now.
    """
    node = jnp.where(is_active, tree.cursors[cursor], NO_NODE)
    candidates = candidates_at(tree, node) if fresh is None else jnp.where(is_active, fresh, NO_NODE)
    met_terminal = ((candidates > ROOT) & tree.is_terminal[candidates]).any()
    chosen = choose_terminal(tree, candidates, jax.random.fold_in(key, tree.num_passes), settings)
    after = backup(visit_open(tree, candidates), chosen, settings)
    after = dataclasses.replace(after, num_passes=after.num_passes + (node >= ROOT))
    if settings.is_lazy:
        child = _lazy_child(tree, candidates, settings, taken)
    else:
        child = select_child(after, jnp.maximum(node, ROOT), settings, taken)
        child = jnp.where(node >= ROOT, child, NO_NODE)
    return after, _Visit(is_active, candidates, chosen, met_terminal, child)


def _lazy_child(tree: Tree, fresh: jax.Array, settings: SearchSettings, taken: Sequence[jax.Array]) -> jax.Array:
    """Returns [] int32: the child just made, [1], if the descent can go on there; NO_NODE if others took its places."""
    child = fresh[0]
    at = jnp.maximum(child, ROOT)
    places = settings.max_children if settings.are_distinct else 1
    num_waiting = sum((jnp.where(other == at, places, 0) for other in taken), jnp.int32(0))
    has_room = tree.num_children[at] + num_waiting < most_children(tree, at, settings)
    return jnp.where((child > ROOT) & ~tree.is_terminal[at] & has_room, child, NO_NODE)


def _needs_frontier(tree: Tree, visit: _Visit, settings: SearchSettings) -> jax.Array:
    """Returns [] bool: the second half of the turn will read what `_frontier` selects."""
    needed = visit.is_stuck if settings.backtrace == "uct" else visit.is_stuck | visit.met_terminal
    return visit.is_active & needed & ~has_enough(tree, settings)


def _frontier(tree: Tree, visit: _Visit, settings: SearchSettings, taken: Sequence[jax.Array] = ()) -> jax.Array:
    return select_frontier(tree, visit.is_stuck | settings.force_to_frontier, settings, taken)


def _next_move(
    tree: Tree, visit: _Visit, frontier: jax.Array, settings: SearchSettings, num_promised: jax.Array | int = 0
) -> tuple[_Move, PassInfo]:
    """Second half of a turn: chooses the next node of the cursor.

    Where a terminal was among the candidates, the next node is `frontier`, the choice over the whole tree (or the best
    child of the root by UCT), else the best child of the cursor's node.

    Args:
      num_promised: nodes that the next expansions of the cursors before this one make.
    """
    if settings.backtrace == "uct":
        far, far_how = select_child(tree, jnp.int32(ROOT), settings), Selection.UCT_ROOT
    else:
        far, far_how = frontier, Selection.GLOBAL
    next_node = jnp.where(visit.met_terminal, far, jnp.where(visit.is_stuck, frontier, visit.child))
    how = jnp.where(visit.is_stuck, Selection.FALLBACK_FRONTIER, Selection.LOCAL)
    how = jnp.where(visit.met_terminal, far_how, how)
    is_finished = has_enough(tree, settings)
    next_node = jnp.where(is_finished, NO_NODE, next_node)
    how = jnp.where(is_finished, Selection.STOP, how).astype(jnp.int32)
    move = _move_to(tree, next_node, num_promised, settings)
    return move, PassInfo(visit.candidates, visit.chosen, how, next_node)


def _move_to(tree: Tree, next_node: jax.Array, num_promised: jax.Array | int, settings: SearchSettings) -> _Move:
    """The move to `next_node`, if the budgets allow it.

    An expansion needs children_per_expansion free slots (also where dynamic width makes fewer children), room in the
    node budget for the children it does make, and a token budget not yet used up. A revisit needs none of these.
    """
    at = jnp.maximum(next_node, ROOT)
    missing = most_children(tree, at, settings) - tree.num_children[at]
    missing = jnp.clip(missing, 0, settings.children_per_expansion)
    num_nodes = tree.num_nodes + num_promised
    if settings.num_grafts:
        num_nodes = num_nodes - tree.num_grafted.sum(dtype=jnp.int32)  # these have room of their own
    out_of_nodes = num_nodes + settings.children_per_expansion > settings.capacity - settings.grafted_room
    if settings.node_budget:
        out_of_nodes |= num_nodes + missing > settings.node_budget
    status = jnp.where((missing > 0) & out_of_nodes, SearchStatus.OUT_OF_NODES, SearchStatus.RUNNING)
    if settings.token_budget:
        out_of_tokens = (missing > 0) & (tree.num_tokens >= settings.token_budget)
        status = jnp.where(out_of_tokens, SearchStatus.OUT_OF_TOKENS, status)
    status = jnp.where(next_node == NO_NODE, SearchStatus.EXHAUSTED, status).astype(jnp.int32)
    goes = status == SearchStatus.RUNNING
    return _Move(jnp.where(goes, next_node, NO_NODE), status, jnp.where(goes, missing, 0))


def _settle(tree: Tree, is_active: jax.Array, moves: Sequence[_Move], settings: SearchSettings) -> Tree:
    """Puts every cursor where it goes, and ends the search if it is finished or none of them goes anywhere.

    Then the reason is the token budget, the nodes, or that no place is left, in this order (that of the statuses).
    """
    status = jnp.stack([move.status for move in moves])
    status = jnp.where((status == SearchStatus.RUNNING).any(), SearchStatus.RUNNING, status.max())
    is_finished = has_enough(tree, settings)
    status = jnp.where(is_finished, SearchStatus.FINISHED, status).astype(jnp.int32)
    cursors = jnp.where(is_finished, NO_NODE, jnp.stack([move.node for move in moves]))
    return dataclasses.replace(
        tree,
        cursors=jnp.where(is_active, cursors, tree.cursors),
        status=jnp.where(is_active, status, tree.status),
    )


def place_cursors(tree: Tree, settings: SearchSettings) -> Tree:
    """Sends every cursor where a pass that has met a terminal sends it, and sets the status if that ends the search."""
    nowhere = jnp.int32(NO_NODE)
    visit = _Visit(jnp.bool_(True), nowhere[None], nowhere, met_terminal=jnp.bool_(True), child=nowhere)
    promised = jnp.int32(0)
    moves: list[_Move] = []
    for _ in range(settings.picks_per_step):
        frontier = _frontier(tree, visit, settings, [move.node for move in moves])
        move, _ = _next_move(tree, visit, frontier, settings, promised)
        promised = promised + move.num_promised
        moves.append(move)
    return _settle(tree, visit.is_active, moves, settings)


def backup_passes(
    tree: Tree, key: jax.Array, settings: SearchSettings, fresh: jax.Array | None = None
) -> tuple[Tree, PassInfo]:
    """Cursor by cursor, a backup pass and the move to the next place; sets the status if that ends the search.

    Without a terminal among the children just made the descent goes on below: to the best of them by UCT, or, where
    expansion makes one child, to that one. Otherwise, and where the cursors before took all places there, it goes to
    the best free place of the whole tree. If there is none, or its expansion does not fit the budgets beside those of
    the cursors before, the cursor is idle until its turn in the next step. At most one terminal is credited per pass;
    the others wait for a revisit of their parent. Once the last trajectory is credited, the children of the cursors
    behind stay without a pass. A tree that has ended is left as it is.

    Args:
      key: typed PRNG key of the step; the draw of a pass derives from it and from `tree.num_passes`.
      fresh: [F, C] int32 slots of the children just made (`child_slots` before them), NO_NODE for none; None where
        expansion is eager: then the candidates are all children of the cursor's node that are not credited.

    Returns:
      the tree, and PassInfo with a leading [F] axis.
    """
    if fresh is None and settings.is_lazy:
        raise ValueError('expansion="lazy" backs up the children just made only; give their slots as fresh')
    is_running, promised = tree.is_running, jnp.int32(0)
    moves: list[_Move] = []
    infos: list[PassInfo] = []
    for cursor in range(settings.picks_per_step):
        taken = [move.node for move in moves]
        is_active = is_running & ~has_enough(tree, settings) if cursor else is_running
        rows = None if fresh is None else fresh[cursor]
        tree, visit = _credit(tree, cursor, is_active, key, settings, rows, taken)
        move, info = _next_move(tree, visit, _frontier(tree, visit, settings, taken), settings, promised)
        promised = promised + move.num_promised
        moves.append(move)
        infos.append(info)
    return _settle(tree, is_running, moves, settings), jax.tree.map(lambda *rows: jnp.stack(rows), *infos)


class _Revisited(NamedTuple):
    """The fields of a Tree that a pass changes; the others stay out of the loop over revisits."""

    visit_count: jax.Array
    value: jax.Array
    is_credited: jax.Array
    credited: jax.Array
    num_credited: jax.Array
    num_passes: jax.Array
    cursors: jax.Array
    status: jax.Array

    @classmethod
    def of(cls, tree: Tree) -> "_Revisited":
        return cls(**{name: getattr(tree, name) for name in cls._fields})

    def into(self, tree: Tree) -> Tree:
        return dataclasses.replace(tree, **self._asdict())


def batched_search_step(
    trees: Tree, segments: Segments, outcomes: jax.Array, keys: jax.Array, settings: SearchSettings
) -> Tree:
    """Expands the nodes of every tree's cursors with the sampled segments, backs up and selects the next ones.

    On return a tree is either not RUNNING or at least one of its cursors waits for an expansion: a node that selection
    reaches and that has all its children already gets its backup pass in here. Trees that are not RUNNING come back
    unchanged. Jit it with static `settings` and donated `trees`.

    Args:
      trees: Tree with a leading [B] axis on every field, like all arguments.
      segments: [B, F, C, ...] sampled at `trees.cursors`.
      outcomes: [B, F, C] int32 Outcome of the rows that `child_is_terminal` names.
      keys: [B] typed PRNG keys, read only if negative_choice is "random".
    """

    def over_trees(function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(functools.partial(function, settings=settings))

    def first(tree: Tree, segments: Segments, outcomes: jax.Array, key: jax.Array) -> Tree:
        fresh = child_slots(tree, settings) if settings.is_lazy else None
        return backup_passes(add_children(tree, segments, outcomes, settings), key, settings, fresh)[0]

    trees = jax.vmap(first)(trees, segments, outcomes, keys)
    if not settings.can_revisit:
        return trees

    def waits_at_expanded(trees: Tree) -> jax.Array:
        return trees.is_running & (over_trees(num_children_wanted)(trees)[:, 0] == 0)

    # Only searches with a single cursor revisit. The loop is over the batch, not mapped over trees: a mapped loop would
    # copy its state in every round, and could not leave out the choice over the whole tree where no tree needs it.
    def revisit(state: _Revisited) -> _Revisited:
        before = state.into(trees)
        is_active = waits_at_expanded(before)
        after, visits = over_trees(functools.partial(_credit, cursor=0))(before, is_active=is_active, key=keys)
        frontier = lax.cond(
            over_trees(_needs_frontier)(after, visits).any(),
            over_trees(_frontier),
            lambda trees, _: jnp.full_like(trees.current, NO_NODE),
            after,
            visits,
        )
        moves, _ = over_trees(_next_move)(after, visits, frontier)
        settled = jax.vmap(lambda tree, active, move: _settle(tree, active, [move], settings))(after, is_active, moves)
        return _Revisited.of(settled)

    def any_waits(state: _Revisited) -> jax.Array:
        return waits_at_expanded(state.into(trees)).any()

    return lax.while_loop(any_waits, revisit, _Revisited.of(trees)).into(trees)


def search_step(tree: Tree, segments: Segments, outcomes: jax.Array, key: jax.Array, settings: SearchSettings) -> Tree:
    """`batched_search_step` of a single tree: no argument has a batch axis."""
    trees, rows, verdicts, keys = jax.tree.map(lambda field: field[None], (tree, segments, outcomes, key))
    return jax.tree.map(lambda field: field[0], batched_search_step(trees, rows, verdicts, keys, settings))
