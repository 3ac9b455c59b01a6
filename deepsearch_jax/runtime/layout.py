"""Which trees stand in which row of a batch, and the few shapes that batches of trees have."""

from collections.abc import Sequence
from typing import NamedTuple

from deepsearch_jax.policy import ModelConfig, target_backend
from deepsearch_jax.training import first_fit

# Operations (6 a parameter and token) of an update that takes a tenth of the time its program takes to compile: half
# a second of two CPU cores; about the same on an accelerator, where compiling takes minutes.
FEW_OPERATIONS, FEW_ON_ACCELERATORS = {"cpu": 2e10}, 1e14
PARTS, FEWEST_TOKENS = 8, 640  # micro-batches that a device's trees are cut into at the most; about the tokens of one


def fine_bucket(length: int, multiple: int) -> int:
    """Smallest size that is at least `length`, of those that cut each doubling in eight; a multiple of `multiple`.

    Padding is at most an eighth: with the two steps of `bucket` it could cost what the trees save.
    """
    step = max(2 ** ((length - 1).bit_length() - 4), 1)
    size = -(-length // step) * step
    return -(-size // multiple) * multiple


class Layout(NamedTuple):
    """Rows that hold all trees: the trees of each, the shape, and how many make a micro-batch (0 = all)."""

    rows: list[list[int]]
    num_rows: int
    length: int
    micro_batch_rows: int


def has_few_operations(model: ModelConfig, num_tokens: int) -> bool:
    """Whether an update on these tokens takes less than a compilation, so that few shapes matter more than padding."""
    return 6.0 * model.num_parameters * num_tokens < FEW_OPERATIONS.get(target_backend(), FEW_ON_ACCELERATORS)


def coarse_rows(longest: int, max_trees: int, multiple: int, num_devices: int, limit: int) -> tuple[int, int, int]:
    """The row length, the rows of a batch and those of a micro-batch that hold all trees an update may have.

    Lengths are `multiple` times a power of two. Without a limit a device goes through its rows in eight parts or fewer;
    those that only fill the batch up are skipped.
    Args:
      longest: tokens of the longest tree.
      limit: tokens of a device's micro-batch; 0 = no limit.
    """
    length = multiple
    while length < longest:
        length *= 2
    per_device = -(-max_trees // num_devices)
    at_least = max(-(-per_device // PARTS), -(-FEWEST_TOKENS // length))
    # Equal parts, so that a full batch has no row more than trees.
    micro_batch_rows = max(limit // length, 1) if limit else -(-per_device // max(-(-per_device // at_least), 1))
    unit = num_devices * micro_batch_rows
    return length, -(-max_trees // unit) * unit, micro_batch_rows


def choose_layout(
    lengths: Sequence[int],
    multiple: int,
    num_devices: int,
    micro_batch_tokens: int,
    *,
    max_trees: int = 0,
    is_coarse: bool = False,
) -> Layout:
    """The rows of a batch of trees.

    Where an update is much work, the row length that leaves the least padding of the few that are compiled, the
    shortest of equals: rows are as long as the longest tree or longer, and no longer than they need to be for one row
    a device, or for one row a micro-batch where that is more tokens than the longest tree has. Where it is little, the
    same few shapes for all batches. Micro-batches of filling are skipped, so that with any there is room for all trees
    that an update may have.
    Args:
      lengths: tokens of each tree.
      multiple: row lengths are `fine_bucket`s of it.
      micro_batch_tokens: tokens of a device's micro-batch; 0 = no limit.
      max_trees: of an update; default: those of this one.
      is_coarse: whether shapes are `coarse_rows`.
    """
    max_trees = max(max_trees, len(lengths))
    if is_coarse:
        length, num_rows, micro_batch_rows = coarse_rows(
            max(lengths), max_trees, multiple, num_devices, micro_batch_tokens
        )
        rows = _dealt(first_fit(lengths, length), num_rows, num_devices)
        return Layout(rows, num_rows, length, micro_batch_rows)
    length = fine_bucket(max(lengths), multiple)
    limit = min(-(-sum(lengths) // num_devices), micro_batch_tokens or sum(lengths))
    found: list[tuple[int, Layout]] = []
    while not found or length <= fine_bucket(limit, multiple):
        rows = first_fit(lengths, length)
        micro_batch_rows = max(micro_batch_tokens // length, 1) if micro_batch_tokens else 0
        unit = num_devices * max(micro_batch_rows, 1)
        computed = -(-len(rows) // unit) * unit if micro_batch_rows else fine_bucket(-(-len(rows) // unit), 1) * unit
        num_rows = -(-max_trees // unit) * unit if micro_batch_rows else computed
        found.append((computed, Layout(_dealt(rows, num_rows, num_devices), num_rows, length, micro_batch_rows)))
        length = fine_bucket(length + 1, multiple)
    return min(found, key=lambda case: (case[0] * case[1].length, case[1].length))[1]


def _dealt(rows: list[list[int]], num_rows: int, num_devices: int) -> list[list[int]]:
    """The rows in the order of a batch whose devices hold equal blocks: each device gets the next one in turn."""
    dealt: list[list[int]] = [[] for _ in range(num_rows)]
    for index, row in enumerate(rows):
        dealt[index % num_devices * (num_rows // num_devices) + index // num_devices] = row
    return dealt
