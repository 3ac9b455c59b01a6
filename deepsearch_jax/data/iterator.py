"""A resumable, shuffled, endless stream of problem batches on grain."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

STATE_VERSION = 1
_MIXTURE_VERSION = 2
_SMALL = 1024  # fewer problems than grain shuffles in good time


class ProblemIterator(Iterator[np.ndarray]):
    """Batches of problem positions, shuffled anew every epoch, without end.

    The order depends on (seed, round_index) and on `indices` alone. No problem occurs twice in a batch, as its samples
    would be the same: the rest of an epoch that does not fill a batch is left out, others each time. Only if there are
    fewer problems than places in a batch are they repeated.

    A mixture draws its components in turn so that each has its share of the problems as closely as whole numbers allow,
    over any stretch of batches. Components without a problem among `indices` are left out and the others take their
    place in proportion; one with fewer problems than its share of a batch gives all it has, the others fill up.

    Args:
      indices: [N] positions in the problem list that take part, such as the round's hard subset.
      batch_size: problems per batch.
      seed: of the run, at least 0.
      round_index: of the round, at least 0; each round has its own order.
      components: [N] int, the component of a mixture that each of `indices` belongs to; None mixes nothing.
      weights: of the components, positive, on any scale.
      fingerprint: of the whole problem list (`problems.fingerprint`), guards against resuming on another one.
    Raises:
      ValueError: no problems, or a size out of range.
    """

    def __init__(
        self,
        indices: Sequence[int] | np.ndarray,
        *,
        batch_size: int,
        seed: int,
        round_index: int = 0,
        fingerprint: str = "",
        components: Sequence[int] | np.ndarray | None = None,
        weights: Sequence[float] = (),
    ):
        self.indices = np.asarray(indices, np.int32)
        if self.indices.ndim != 1 or not self.indices.size:
            raise ValueError(f"no problems to iterate over: indices has shape {self.indices.shape}, expected [N >= 1]")
        for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0), ("round_index", round_index, 0)):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        self.batch_size = int(batch_size)
        self._identity: dict[str, Any] = {
            "version": STATE_VERSION,
            "problem_set": fingerprint,
            "indices": hashlib.sha256(self.indices.tobytes()).hexdigest(),
            "num_indices": int(self.indices.size),
            "batch_size": self.batch_size,
            "seed": int(seed),
            "round_index": int(round_index),
        }
        # grain takes 32 bits of seed; SeedSequence mixes the two numbers so that (0, 1) and (1, 0) differ.
        grain_seed = int(np.random.SeedSequence((seed, round_index)).generate_state(1)[0])
        self._is_mixed = components is not None and len(weights) > 0
        if self._is_mixed:
            of_index = np.asarray(components, np.int32)
            of_components = hashlib.sha256(of_index.tobytes()).hexdigest()
            self._identity["mixture"] = [list(map(float, weights)), of_components, _MIXTURE_VERSION]
            dataset = _mixture(self.indices, of_index, weights, grain_seed)  # one by one, see __next__
        else:
            dataset = grain.MapDataset.source(self.indices).seed(grain_seed).shuffle()
            if self.indices.size >= batch_size:
                dataset = dataset.batch(batch_size, drop_remainder=True).repeat()
            else:
                dataset = dataset.repeat().batch(batch_size)
        # No threads: picking integers is faster than handing them over, and a saved state has nothing in flight.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        self._batches = iter(dataset.to_iter_dataset(options))

    def __next__(self) -> np.ndarray:
        """[batch_size] int32 positions in the problem list."""
        if not self._is_mixed:
            return next(self._batches)
        # Components begin their epochs at different times, so a batch may meet a problem a second time: it is passed.
        wanted, batch = min(self.batch_size, self.indices.size), set[int]()
        found: list[int] = []
        while len(found) < wanted:
            position = int(next(self._batches))
            if position not in batch:
                batch.add(position)
                found.append(position)
        return np.resize(np.asarray(found, np.int32), self.batch_size)

    @property
    def batches_per_epoch(self) -> int:
        """Batches until every problem (but the dropped rest) has come once; at least 1."""
        return max(1, self.indices.size // self.batch_size)

    def get_state(self) -> dict[str, Any]:
        """Position and identity as plain JSON values."""
        return {**self._identity, "grain": dict(self._batches.get_state())}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues exactly behind the batch after which `state` was taken.

        Raises:
          ValueError: the state belongs to another problem set, subset, batch size, seed or round; says which.
        """
        changed = [
            f"{name} (saved {state.get(name)!r}, now {value!r})"
            for name, value in self._identity.items()
            if state.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"the saved position does not fit this problem iterator; changed: {', '.join(changed)}. "
                "Restore the former setting or file, or start in a new workdir"
            )
        position = state.get("grain")
        if not isinstance(position, Mapping) or not isinstance(position.get("next_index"), int):
            raise ValueError(f"the saved position of the problem iterator is damaged: {position!r}")
        self._batches.set_state(dict(position))


def _mixture(
    indices: np.ndarray, components: np.ndarray, weights: Sequence[float], seed: int
) -> "grain.MapDataset[np.int32]":
    """Single positions without end: every component shuffled anew each epoch, drawn by its weight."""
    if components.shape != indices.shape or not all(0 <= c < len(weights) for c in set(components.tolist())):
        raise ValueError(
            f"components of shape {components.shape} with {len(weights)} weights do not fit {indices.size} problems"
        )
    present = sorted(set(components.tolist()))
    parts = [_shuffled(indices[components == c], seed + i).repeat() for i, c in enumerate(present)]
    return grain.MapDataset.mix(parts, weights=[float(weights[c]) for c in present])


def _shuffled(values: np.ndarray, seed: int) -> "grain.MapDataset[np.int32]":
    """Epochs of `values`, each in an order of its own.

    grain finds a place in a shuffled order within a range of 2^16 numbers, which takes 5 ms for one of four values.
    Epochs of few values are written down instead, about 1,024 numbers of them.
    """
    if len(values) >= _SMALL:
        return grain.MapDataset.source(values).seed(seed).shuffle()
    draw = np.random.default_rng(seed)
    return grain.MapDataset.source(np.concatenate([draw.permutation(values) for _ in range(-(-_SMALL // len(values)))]))
