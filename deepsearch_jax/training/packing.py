"""Host side of the tree-packed update: trajectories of one prompt become a tree of tokens, trees become rows.

All is plain numpy on the host; the records that come out are those of `types.PackedBatch`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from deepsearch_jax.objective import LossSettings, path_weights
from deepsearch_jax.types import PackedBatch, TokenSums


@dataclasses.dataclass(frozen=True)
class Paths:
    """Trajectories with a common prompt.

    Attributes:
      prompt: [P] int token ids.
      responses: token ids [T_m] of each trajectory; all of them are trained on.
      advantages: [T_m] float advantage of each of those tokens.
      log_probs: [T_m] float as the sampler computed them, None where they are not known.
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
      tokens, positions, parents, ends: [X] int32, and sums: [X] float32, as in `PackedBatch` for a row that holds this
        tree alone.
      sampler_log_probs: [X] float32, NaN where no trajectory knows it.
      divisor: what the tree adds to the divisor of the loss.
      places: [T_m] int index of each trained token, by trajectory, as far as they are in the tree.
    """

    tokens: np.ndarray
    positions: np.ndarray
    parents: np.ndarray
    ends: np.ndarray
    sums: TokenSums
    sampler_log_probs: np.ndarray
    divisor: float
    places: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.tokens)


SUMS = tuple(field.name for field in dataclasses.fields(TokenSums))


def token_tree(paths: Paths, settings: LossSettings, row_width: int) -> TokenTree:
    """Merges equal beginnings of the trajectories, whatever nodes they came from.

    What the sampler gave a token depends on its path alone: what one trajectory knows of a shared token holds for all
    (a cached solution that begins like a fresh response), and where several know it they differ by the rounding of a
    decoder that computed it more than once, and their mean is taken.
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
    places: list[np.ndarray] = [np.zeros(0, np.int32)] * len(texts)
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
        trained, advantage = path[start : len(text)].copy(), np.asarray(paths.advantages[m], np.float64)
        added = (
            shares[m] * np.maximum(advantage, 0), shares[m] * np.minimum(advantage, 0), shares[m],
            advantage > 0, advantage < 0, 1, advantage,
        )  # fmt: skip
        for name, values in zip(SUMS, added, strict=True):
            sums[name][trained] += values  # no index is twice on a path
        places[m] = trained
        known = paths.log_probs[m]
        if known is not None:
            log_probs[trained] += known
            num_known[trained] += 1
    ends[path[: len(before)]] = count
    mean = np.where(num_known > 0, log_probs / np.maximum(num_known, 1), np.nan)
    return TokenTree(
        tokens[:count], positions[:count], parents[:count], ends[:count],
        TokenSums(**{name: total[:count].astype(np.float32) for name, total in sums.items()}),  # type: ignore[arg-type]
        sampler_log_probs=mean[:count].astype(np.float32),
        divisor=float(divisors.sum()),
        places=places,
    )  # fmt: skip


def without_idle_ends(tree: TokenTree) -> TokenTree:
    """The tree without tokens that neither have an advantage themselves nor stand before one that has.

    They add nothing to the gradient of the policy's part of the loss, and no other token attends to them. What they add
    to divisor and weights stays. A tree without any advantage is left as it is.
    """
    has_advantage = (tree.sums.positive != 0) | (tree.sums.negative != 0)
    before = np.concatenate([[0], np.cumsum(has_advantage)])
    stays = before[tree.ends] > before[:-1]  # in preorder what is behind a token stands from it to its end
    if stays.all() or not stays.any():
        return tree
    number = np.concatenate([[0], np.cumsum(stays)]).astype(np.int32)  # of tokens that stay, before each one
    return TokenTree(
        tree.tokens[stays], tree.positions[stays],
        np.where(tree.parents >= 0, number[tree.parents], -1).astype(np.int32)[stays], number[tree.ends][stays],
        TokenSums(**{name: getattr(tree.sums, name)[stays] for name in SUMS}),
        sampler_log_probs=tree.sampler_log_probs[stays],
        divisor=tree.divisor,
        places=[number[place[stays[place]]] for place in tree.places],
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
    """Rows of trees as host arrays [num_rows, length]; the old log-probs are those of the sampler, 0 if not known.

    Args:
      rows: the trees of each row, by number; see `first_fit`.
    """
    shape = num_rows, length
    tokens, tree_ids, positions, ends = (np.zeros(shape, np.int32) for _ in range(4))
    parents, sampled = np.full(shape, -1, np.int32), np.full(shape, np.nan, np.float32)
    sums, divisors = {name: np.zeros(shape, np.float32) for name in SUMS}, np.zeros(num_rows, np.float32)
    for r, row in enumerate(rows):
        start = 0
        for number, tree in enumerate((trees[index] for index in row), 1):
            place = r, slice(start, start + len(tree))
            tokens[place], tree_ids[place], positions[place] = tree.tokens, number, tree.positions
            parents[place] = np.where(tree.parents >= 0, tree.parents + start, -1)
            ends[place] = tree.ends + start
            sampled[place] = tree.sampler_log_probs
            for name in SUMS:
                sums[name][place] = getattr(tree.sums, name)
            start += len(tree)
        divisors[r] = sum(trees[index].divisor for index in row)
    # Host arrays on purpose: the update places them.
    return PackedBatch(
        tokens, tree_ids, positions, parents, ends, TokenSums(**sums),  # type: ignore[arg-type]
        old_log_probs=np.where(np.isnan(sampled), np.float32(0), sampled), divisors=divisors, sampler_log_probs=sampled,  # type: ignore[arg-type]
    )  # fmt: skip
