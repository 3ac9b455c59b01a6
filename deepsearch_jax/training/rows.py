"""How many rows a batch may have, empty rows that fill it up, and batches cut into pieces of few tokens."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from deepsearch_jax.types import PackedBatch, TokenBatch

Batch = TypeVar("Batch")


def num_rows_that_fit(num_rows: int, num_devices: int, micro_batch_rows: int) -> int:
    """The smallest number of rows >= num_rows that divides among devices and their micro-batches (0 = one each)."""
    unit = num_devices * max(micro_batch_rows, 1)
    return max(-(-num_rows // unit), 1) * unit


def check_rows(num_rows: int, num_devices: int, micro_batch_rows: int) -> None:
    """Raises: ValueError if the rows do not divide among devices and micro-batches."""
    fitting = num_rows_that_fit(num_rows, num_devices, micro_batch_rows)
    if fitting != num_rows:
        raise ValueError(
            f"a batch of {num_rows} rows cannot be shared by {num_devices} devices in micro-batches of "
            f"{max(micro_batch_rows, 1)} rows; the next size that fits is {fitting} (pad_rows fills a batch up)"
        )


def pad_rows(batch: Batch, num_rows: int) -> Batch:
    """Appends empty rows to every [R, ...] leaf of a batch on the host; they count in no loss and no mean.

    Raises:
      ValueError: the batch has more rows than that.
    """

    def pad(leaf: jax.Array) -> np.ndarray:
        missing = num_rows - leaf.shape[0]
        if missing < 0:
            raise ValueError(f"a batch of {leaf.shape[0]} rows cannot be filled up to {num_rows}; ask for more rows")
        return np.pad(np.asarray(leaf), [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))

    return jax.tree.map(pad, batch)


SHORTEST = 64  # rows are not cut to fewer tokens than these


class Cut(NamedTuple):
    """Rows of a batch that are computed together, the same number on every device.

    Attributes:
      rows: [n * devices] int numbers of the rows; -1 is an empty row.
      length: tokens that are kept of them.
    """

    rows: np.ndarray
    length: int


def row_lengths(batch: TokenBatch | PackedBatch) -> np.ndarray:
    """[R] int tokens of each row, its padding left out."""
    is_token = np.asarray(batch.tree_ids if isinstance(batch, PackedBatch) else batch.segment_ids) != 0
    return np.max(is_token * np.arange(1, is_token.shape[1] + 1), axis=1)


def cut_by_tokens(lengths: Sequence[int] | np.ndarray, width: int, num_tokens: int, num_devices: int) -> list[Cut]:
    """Rows in micro-batches of at most `num_tokens` on each device, padding included; empty rows are left out.

    The longest rows come first. A micro-batch is as long as its longest row, rounded up to one of few lengths, and has
    as many rows as fit, or a half, a quarter, ... of them where fewer rows are of that length: few shapes are compiled.
    Room that is left is taken by the next shorter rows. A row of more than `num_tokens` stands alone.
    Args:
      lengths: tokens of each row.
      width: of the batch: no row is made longer than that.
    """
    lengths = np.asarray(lengths)
    order = [int(row) for row in np.argsort(-lengths, kind="stable") if lengths[row] > 0]
    sizes = [_rounded(int(lengths[row]), width) for row in order]
    cuts, start = [], 0
    while start < len(order):
        length = sizes[start]
        num_alike = sizes[start:].count(length)
        rows = max(num_tokens // length, 1)
        while rows > 1 and -(-rows // 2) * num_devices >= num_alike:
            rows = -(-rows // 2)
        taken = order[start : start + rows * num_devices]
        filled = np.full(rows * num_devices, -1)
        filled[: len(taken)] = taken
        cuts.append(Cut(filled, length))
        start += len(taken)
    return cuts


def _rounded(length: int, width: int) -> int:
    """The smallest of SHORTEST * {1, 2, 3, 4, 6, 8, 12, 16, ...} that is at least `length`; `width` at most."""
    size = SHORTEST
    while size < length:
        size = size * 3 // 2 if size > SHORTEST and length <= size * 3 // 2 else 2 * size
    return min(size, width)


def take_rows(batch: Batch, cut: Cut) -> Batch:
    """The rows of a cut as a host batch."""
    is_row = cut.rows >= 0

    def of(leaf: Any) -> np.ndarray:
        host = np.asarray(leaf)
        host = host[cut.rows, : cut.length] if host.ndim > 1 else host[cut.rows]
        return np.where(is_row.reshape(-1, *[1] * (host.ndim - 1)), host, np.zeros((), host.dtype))

    return jax.tree.map(of, batch)
