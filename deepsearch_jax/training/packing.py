"""Host side of the tree-packed update: trajectories of one prompt become a tree of tokens, trees become rows.

All is plain numpy on the host; the records that come out are those of `types.PackedBatch`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from deepsearch_jax.objective import LossSettings, path_weights
from deepsearch_jax.types import PackedBatch


@dataclasses.dataclass(frozen=True)
class Paths:
    """Trajectories with a common prompt.

    Attributes:
      prompt: [P] int token ids.
      responses: token ids [T_m] of each trajectory; all of them are trained on.
      advantages: [T_m] float advantage of each of those tokens.
      log_probs: [T_m] float under the behaviour policy, None where they are not known.
    """

    prompt: Sequence[int]
    responses: Sequence[np.ndarray]
    advantages: Sequence[np.ndarray]
    log_probs: Sequence[np.ndarray | None]

    @property
    def lengths(self) -> np.ndarray:
        """[M] tokens of each trajectory, prompt included."""
        return np.array([len(self.prompt) + len(response) for response in self.responses])


@dataclasses.dataclass(frozen=True)
class TokenTree:
    """The tokens of trajectories, equal beginnings once, in depth-first preorder.

    Attributes:
      tokens, positions, parents, ends: [X] int32, and positive, negative, weights, num_positive, num_negative,
        num_paths, advantages, old_log_probs: [X] float32, as in `PackedBatch` for a row that holds this tree alone.
      divisor: what the tree adds to the divisor of the loss.
    """

    tokens: np.ndarray
    positions: np.ndarray
    parents: np.ndarray
    ends: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    weights: np.ndarray
    num_positive: np.ndarray
    num_negative: np.ndarray
    num_paths: np.ndarray
    advantages: np.ndarray
    old_log_probs: np.ndarray
    divisor: float

    def __len__(self) -> int:
        return len(self.tokens)


SUMS = ("positive", "negative", "weights", "num_positive", "num_negative", "num_paths", "advantages")


def token_tree(paths: Paths, settings: LossSettings, row_width: int) -> TokenTree:
    """Merges equal beginnings of the trajectories, whatever nodes they came from.

    A shared token's old log-prob is the mean over the trajectories that know it: they are the same number but for the
    rounding of decoders that computed it more than once.
    Args:
      settings: what a trajectory's tokens weigh (`aggregation`).
      row_width: see `path_weights`.
    """
    start = len(paths.prompt)
    texts = [np.concatenate([np.asarray(paths.prompt, np.int32), r]).astype(np.int32) for r in paths.responses]
    shares, divisors = path_weights(np.array([len(r) for r in paths.responses]), settings, row_width)
    size, longest = sum(map(len, texts)), max(map(len, texts), default=0)
    tokens, positions, parents, ends = (np.zeros(size, np.int32) for _ in range(4))
    sums = {name: np.zeros(size) for name in SUMS}
    log_probs, num_known = np.zeros(size), np.zeros(size)
    path = np.full(longest, -1, np.int32)  # index of each token of the trajectory that was laid out last
    count, before = 0, np.zeros(0, np.int32)
    # In the order of their tokens, beginnings first, what two trajectories share was laid out for the one before.
    for m in sorted(range(len(texts)), key=lambda m: texts[m].astype(">u4").tobytes()):
        text = texts[m]
        shared = common_length(before, text)
        ends[path[shared : len(before)]] = count
        new = np.arange(count, count + len(text) - shared, dtype=np.int32)
        tokens[new], positions[new] = text[shared:], np.arange(shared, len(text))
        parents[new] = new - 1
        parents[new[:1]] = path[shared - 1] if shared else -1
        path[shared : len(text)], count, before = new, count + len(new), text
        trained, advantage = path[start : len(text)], np.asarray(paths.advantages[m], np.float64)
        added = (
            shares[m] * np.maximum(advantage, 0), shares[m] * np.minimum(advantage, 0), shares[m],
            advantage > 0, advantage < 0, 1, advantage,
        )  # fmt: skip
        for name, values in zip(SUMS, added, strict=True):
            sums[name][trained] += values  # no index is twice on a path
        known = paths.log_probs[m]
        if known is not None:
            log_probs[trained] += known
            num_known[trained] += 1
    ends[path[: len(before)]] = count
    return TokenTree(
        tokens[:count], positions[:count], parents[:count], ends[:count],
        **{name: total[:count].astype(np.float32) for name, total in sums.items()},
        old_log_probs=(log_probs / np.maximum(num_known, 1))[:count].astype(np.float32),
        divisor=float(divisors.sum()),
    )  # fmt: skip


def common_length(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two texts begin with alike."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if different.size else length


def first_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Which trees stand in which row: the longest first, each in the first row that has room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for tree in sorted(range(len(lengths)), key=lambda tree: -lengths[tree]):
        row = next((r for r, free in enumerate(room) if free >= lengths[tree]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_length)
        rows[row].append(tree)
        room[row] -= lengths[tree]
    return rows


def pack_rows(trees: Sequence[TokenTree], rows: Sequence[Sequence[int]], num_rows: int, length: int) -> PackedBatch:
    """Rows of trees as host arrays [num_rows, length].

    Args:
      rows: the trees of each row, by number; see `first_fit`.
    """
    names = [field.name for field in dataclasses.fields(PackedBatch) if field.name not in ("tree_ids", "divisors")]
    dtypes = {"tokens": np.int32, "positions": np.int32, "parents": np.int32, "ends": np.int32}
    arrays = {name: np.zeros((num_rows, length), dtypes.get(name, np.float32)) for name in names}
    arrays["parents"][:] = -1
    tree_ids, divisors = np.zeros((num_rows, length), np.int32), np.zeros(num_rows, np.float32)
    for r, row in enumerate(rows):
        start = 0
        for number, tree in enumerate((trees[index] for index in row), 1):
            place = slice(start, start + len(tree))
            for name in names:
                arrays[name][r, place] = getattr(tree, name)
            arrays["parents"][r, place] += np.where(tree.parents >= 0, start, 0)
            arrays["ends"][r, place] += start
            tree_ids[r, place] = number
            start += len(tree)
        divisors[r] = sum(trees[index].divisor for index in row)
    return PackedBatch(tree_ids=tree_ids, divisors=divisors, **arrays)  # type: ignore[arg-type]  # host arrays
