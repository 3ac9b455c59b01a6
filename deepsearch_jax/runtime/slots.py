"""Continuous trees: problems flow through a fixed number of slots, verdicts are found while the device decodes.

The slots form one or two batches. While the device works on one batch, the host reads the other one, asks the task for
verdicts and sends it back; a finished tree's slot takes the next problem within the same compiled call.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from deepsearch_jax.decode import StopTable
from deepsearch_jax.runtime import device
from deepsearch_jax.runtime.search_device import (
    Counters,
    FinishedTrees,
    Problems,
    Program,
    SearchState,
    View,
    empty_state,
)
from deepsearch_jax.runtime.search_device import search_iteration as _search_iteration
from deepsearch_jax.runtime.watch import TreeWatch
from deepsearch_jax.tree import Samples
from deepsearch_jax.types import Outcome

# Verdicts of terminals: (problem, response tokens, whether it ended by itself) -> Outcome of each.
Verify = Callable[[list[tuple[int, np.ndarray, bool]]], Sequence[Outcome]]

# Fields of a View that are read after every iteration.
_SMALL = ("problem", "left", "is_terminal", "lengths", "is_eos", "path_lengths", "counters")


@dataclasses.dataclass
class SlotStatistics:
    """Sums over the iterations of a search.

    Attributes:
      iterations: compiled calls.
      slot_steps: slots times iterations; busy_slots: those of them that held a running tree.
      expansions, fed_tokens, recomputed_tokens, evictions, prompt_tokens: see search_device.Counters.
      peak_pages: most pages in use after a call, over all devices and batches.
      generated_tokens: tokens sampled.
      entropy: sum over these of the exact entropy of the raw distribution (nats); 0 if it is not computed.
    """

    iterations: int = 0
    slot_steps: int = 0
    busy_slots: int = 0
    expansions: int = 0
    fed_tokens: int = 0
    recomputed_tokens: int = 0
    evictions: int = 0
    prompt_tokens: int = 0
    peak_pages: int = 0
    generated_tokens: int = 0
    entropy: float = 0.0


@dataclasses.dataclass
class _Batch:
    """Slots that go through the device together."""

    state: SearchState
    view: View | None = None  # of the call in flight
    offered: list[int] = dataclasses.field(default_factory=list)  # problems that the call in flight may take
    deepest: int = 0


class Slots:
    """Runs one search over any number of problems."""

    def __init__(
        self, program: Program, bucket_of: Callable[[int], int], *, num_slots: int, num_batches: int,
        run_key: jax.Array, stop_table: StopTable | None, verify: Verify,
        finish: Callable[[int, FinishedTrees, int], None], check_stop: Callable[[], None],
        advance: Callable[[int, int], None], watch: TreeWatch | None = None,
    ):  # fmt: skip
        """
        Args:
          program: of the iterations; its path_bucket is chosen anew each time.
          bucket_of: longest path in nodes -> the bucket that holds it.
          num_slots: over all devices and batches; divisible by num_batches times the devices.
          finish: called with (problem index, finished trees, row) as each tree ends; rows come in no special order.
          check_stop: may raise between iterations.
          advance: called with (trees finished, tokens generated).
          watch: looks at some of the trees as they grow.
        """
        self._program, self._bucket_of = program, bucket_of
        self._num_batches, self._size = num_batches, num_slots // num_batches
        self._shards = 1 if program.mesh is None else program.mesh.size
        everywhere = None if program.mesh is None else NamedSharding(program.mesh, PartitionSpec())
        self._run_key, self._stop_table = jax.device_put((run_key, stop_table), everywhere)
        self._verify, self._finish, self._check_stop, self._advance = verify, finish, check_stop, advance
        self._watch = watch
        self._sharding = None if program.mesh is None else NamedSharding(program.mesh, device.ROWS)
        self._copies = jax.default_backend() != "cpu"
        self._offers: tuple[list[int], Problems] | None = None
        self.statistics = SlotStatistics()

    def run(
        self, params: Any, prompts: Sequence[Sequence[int]], keys: jax.Array, prompt_length: int, *,
        entropy_weight: float = 0.0, samples: Samples | None = None,
    ) -> None:  # fmt: skip
        """Searches one tree a problem.

        Args:
          prompts: token ids of each problem.
          keys: [number of problems] typed keys.
          prompt_length: P, room for the longest prompt.
          entropy_weight: lambda2 of the trees, read where search.confidence is "adaptive".
          samples: [number of problems, G, ...] host arrays; the trees start from these direct samples.
        """
        search = self._program.search
        # Plain numbers: a typed key array cannot be indexed without asking the device.
        self._prompts, self._prompt_length = prompts, prompt_length
        self._entropy_weight, self._samples = entropy_weight, samples
        self._key_data = jax.device_get(jax.random.key_data(keys))
        self._queue = collections.deque(range(len(prompts)))
        self._offers = None
        grid = (self._size, search.picks_per_step, search.children_per_expansion)
        in_flight: collections.deque[_Batch] = collections.deque()
        num_finished = 0
        for _ in range(self._num_batches):
            if self._queue:
                batch = _Batch(
                    empty_state(self._run_key, program=self._program, num_slots=self._size, prompt_length=prompt_length)
                )
                self._dispatch(params, batch, np.full(grid, Outcome.NONE, np.int32))
                in_flight.append(batch)
        while in_flight:
            self._check_stop()
            batch = in_flight.popleft()
            assert batch.view is not None
            view = _fetch(batch.view)
            batch.deepest = int(Counters(*view.counters.T).deepest.max())
            taken = set(view.problem.tolist())
            self._queue.extendleft(reversed([index for index in batch.offered if index not in taken]))
            if (view.problem >= 0).any() or self._queue:
                self._dispatch(params, batch, self._verdicts(view))
                in_flight.append(batch)
            # The rest is not needed for the next call, which runs meanwhile.
            self._count(view)
            num_finished += self._hand_over(view)
            self._advance(num_finished, self.statistics.generated_tokens)

    def _dispatch(self, params: Any, batch: _Batch, outcomes: np.ndarray) -> None:
        """Starts an iteration of the batch and the transfer of what the host will read of it."""
        waiting, batch.offered = self._offer()
        if self._samples is not None and batch.offered:  # paths of samples end in a terminal
            longest = int(self._samples.lengths[batch.offered].max())
            batch.deepest = max(batch.deepest, -(-longest // self._program.search.segment_length) - 1)
        if self._watch is not None and batch.view is not None:
            self._watch.advance(batch.state, np.asarray(batch.view.problem), outcomes)
        # The children that wait for their verdicts may be one deeper than what was open when they were sampled.
        program = self._program._replace(path_bucket=self._bucket_of(batch.deepest))
        batch.state, batch.view = _search_iteration(
            params, batch.state, self._placed(outcomes), waiting, self._stop_table, program=program
        )
        # What every iteration reads; finished trees are rare and fetched when there are some. On CPU nothing is copied.
        for name in (*_SMALL, "tokens", "path_tokens") if self._copies else ():
            for leaf in jax.tree.leaves(getattr(batch.view, name)):
                leaf.copy_to_host_async()

    def _offer(self) -> tuple[Problems, list[int]]:
        """The next problems, dealt out over the shards; near the end of the queue each batch is offered its share."""
        count = min(self._size, -(-len(self._queue) // self._num_batches))
        offered = [self._queue.popleft() for _ in range(count)]
        if self._offers is None or self._offers[0] != offered:  # most iterations take no problem
            self._offers = offered, self._problems(offered)
        return self._offers[1], offered

    def _problems(self, offered: list[int]) -> Problems:
        size = self._size // self._shards
        places = np.full((self._shards, size), -1, np.int32)
        for place, problem in enumerate(offered):
            places[place % self._shards, place // self._shards] = problem
        index = places.reshape(-1)
        tokens = np.zeros((self._size, self._prompt_length), np.int32)
        lengths = np.zeros(self._size, np.int32)
        for row in np.flatnonzero(index >= 0):
            prompt = self._prompts[index[row]]
            tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
        prompts = device.Prompts(*map(_on_host, (tokens, lengths, self._key_data[np.maximum(index, 0)])))
        weights = _on_host(np.full(self._size, self._entropy_weight, np.float32))
        samples = None
        if self._samples is not None:
            samples = jax.tree.map(lambda field: field[np.maximum(index, 0)], self._samples)
        return self._placed(Problems(_on_host(index), prompts, weights, samples))

    def _placed(self, arrays: Any) -> Any:
        """Host arrays where the compiled call takes them."""
        return jax.device_put(arrays, self._sharding)

    def _verdicts(self, view: View) -> np.ndarray:
        """[B, F, C] int32 outcomes of the new terminals."""
        outcomes = np.full(view.is_terminal.shape, Outcome.NONE, np.int32)
        places = [tuple(place) for place in np.argwhere(view.is_terminal)]
        items = []
        for row, pick, child in places:
            own = view.tokens[row, pick, child, : view.lengths[row, pick, child]]
            path = view.path_tokens[row, pick, : view.path_lengths[row, pick]]
            has_ended = bool(view.is_eos[row, pick, child])
            items.append((int(view.problem[row]), np.concatenate([path, own]), has_ended))
        for place, outcome in zip(places, self._verify(items) if items else (), strict=True):
            outcomes[place] = outcome
        return outcomes

    def _hand_over(self, view: View) -> int:
        """Gives the trees that have left to the caller; how many they are."""
        rows = np.flatnonzero(view.left >= 0)
        if rows.size:
            finished = jax.device_get(view.finished)
            for row in rows:
                self._finish(int(view.left[row]), finished, int(row))
        return len(rows)

    def _count(self, view: View) -> None:
        counters, statistics = Counters(*view.counters.T), self.statistics
        statistics.iterations += 1
        statistics.slot_steps += self._size
        statistics.busy_slots += int((view.problem >= 0).sum())
        statistics.generated_tokens += int(view.lengths.sum())
        for name in ("expansions", "fed_tokens", "recomputed_tokens", "evictions", "prompt_tokens"):
            setattr(statistics, name, getattr(statistics, name) + int(getattr(counters, name).sum()))
        statistics.entropy += float(counters.entropy.sum())
        statistics.peak_pages = max(statistics.peak_pages, int(counters.resident_pages.sum()))


def _on_host(array: np.ndarray) -> Any:
    """A host array where the device takes any; jit moves it."""
    return array


def _fetch(view: View) -> View:
    """Waits for the call and reads of its results what is of any use."""
    view = view._replace(**jax.device_get({name: getattr(view, name) for name in _SMALL}))
    if view.is_terminal.any():
        tokens, path_tokens = jax.device_get((view.tokens, view.path_tokens))
        view = view._replace(tokens=tokens, path_tokens=path_tokens)
    return view
