"""How many rows a batch may have, and empty rows that fill it up."""

from typing import TypeVar

import jax
import numpy as np

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
