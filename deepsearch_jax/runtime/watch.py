"""Looks at some trees of a search from iteration to iteration, without being part of it.

The compiled iteration of a search is the same whether anybody watches or not: a watched tree is copied out of the state
before each call, and what the call is about to do to it is computed once more, for this tree alone.
"""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from deepsearch_jax.runtime.search_device import SearchState
from deepsearch_jax.tree import SearchSettings, Tree, batched_search_step, can_be_selected, frontier_scores


class Frame(NamedTuple):
    """What an iteration of a search may change in a tree whose nodes stay.

    Attributes:
      num_nodes, num_credited: [] int32.
      cursors: [F] int32 nodes about to be expanded.
      value, visit_count: [N].
      scores: [N] float32 F(s) of the places of the frontier, -inf at other nodes.
    """

    num_nodes: jax.Array
    num_credited: jax.Array
    cursors: jax.Array
    value: jax.Array
    visit_count: jax.Array
    scores: jax.Array


class Change(NamedTuple):
    """A frame as the difference to the one before it.

    Attributes:
      num_nodes, num_credited: after it.
      cursors: [F] int32 after it.
      nodes: [X] int32 slots whose numbers changed; value, scores: [X] float32, visit_count: [X] int32 theirs.
        Scores are NaN off the frontier.
    """

    num_nodes: int
    num_credited: int
    cursors: np.ndarray
    nodes: np.ndarray
    value: np.ndarray
    visit_count: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass
class WatchedTree:
    """A tree that has ended, on the host, and how it came to be; `changes` holds one record an iteration."""

    tree: Tree
    changes: list[Change]


@dataclasses.dataclass
class _Trail:
    """A tree that is followed; `latest` and `pending` are still on the device."""

    latest: Tree
    pending: list[Frame]
    seen: Frame | None = None
    changes: list[Change] = dataclasses.field(default_factory=list)

    def read(self) -> None:
        """Fetches the frames whose computation has ended by now, since a later call has been read."""
        for frame in jax.device_get(self.pending):
            self.changes.append(_change(self.seen, frame))
            self.seen = frame
        self.pending = []


class TreeWatch:
    """Follows the trees of some of the problems of one search."""

    def __init__(self, problems: Collection[int], search: SearchSettings):
        """
        Args:
          problems: numbers in the caller's list.
          search: settings of the search.
        """
        self._problems, self._search = frozenset(problems), search
        self._trails: dict[int, _Trail] = {}

    def advance(self, state: SearchState, problem: np.ndarray, outcomes: np.ndarray) -> None:
        """Called before an iteration takes over the state.

        Args:
          problem: [B] the problems in the slots.
          outcomes: [B, F, C] that the iteration is about to get.
        """
        layout = state.trees.parent.sharding
        everywhere = NamedSharding(layout.mesh, PartitionSpec()) if isinstance(layout, NamedSharding) else None
        for row, number in enumerate(problem.tolist()):
            if number not in self._problems:
                continue
            verdicts, place = jax.device_put((outcomes, np.int32(row)), everywhere)
            before, after, tree = _step_of(
                state.trees, state.segments, state.problems.prompts.keys, verdicts, place, search=self._search
            )
            if number in self._trails:
                trail = self._trails[number]
                trail.read()
                trail.latest, trail.pending = tree, [after]
            else:
                self._trails[number] = _Trail(tree, [before, after])

    def collect(self) -> dict[int, WatchedTree]:
        """The trees by the number of their problem, once the search has ended."""
        for trail in self._trails.values():
            trail.read()
        return {number: WatchedTree(jax.device_get(t.latest), t.changes) for number, t in self._trails.items()}


@functools.partial(jax.jit, static_argnames="search")
def _step_of(
    trees: Tree, segments: Any, keys: jax.Array, outcomes: jax.Array, row: jax.Array, *, search: SearchSettings
) -> tuple[Frame, Frame, Tree]:
    """The tree in slot `row` before and after the search step that the iteration to come makes, and the whole of it."""

    def pick(leaf: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(leaf, row, 1)

    tree, own, outcome, key = jax.tree.map(pick, (trees, segments, outcomes, keys))
    # The key of the step, as the iteration derives it.
    stepped = jax.vmap(jax.random.fold_in)(key, search.capacity + tree.num_nodes)
    after = batched_search_step(tree, own, outcome, stepped, search)
    after = jax.tree.map(lambda leaf: leaf[0], after)
    return _frame(jax.tree.map(lambda leaf: leaf[0], tree), search), _frame(after, search), after


def _frame(tree: Tree, search: SearchSettings) -> Frame:
    is_place = can_be_selected(tree, True, search)
    scores = jnp.where(is_place, frontier_scores(tree, search), -jnp.inf).astype(jnp.float32)
    return Frame(tree.num_nodes, tree.num_credited, tree.cursors, tree.value, tree.visit_count, scores)


def _change(before: Frame | None, after: Frame) -> Change:
    """Host frames in; of the first one everything counts as changed."""
    num_nodes = int(after.num_nodes)
    is_changed = np.ones(num_nodes, bool)
    if before is not None:
        known = int(before.num_nodes)
        is_changed[:known] = (
            (before.value[:known] != after.value[:known])
            | (before.visit_count[:known] != after.visit_count[:known])
            | (before.scores[:known] != after.scores[:known])
        )
    nodes = np.flatnonzero(is_changed).astype(np.int32)
    return Change(
        num_nodes, int(after.num_credited), np.asarray(after.cursors, np.int32), nodes,
        np.asarray(after.value[nodes], np.float32), np.asarray(after.visit_count[nodes], np.int32),
        np.where(np.isneginf(after.scores[nodes]), np.float32(np.nan), after.scores[nodes]),
    )  # fmt: skip
