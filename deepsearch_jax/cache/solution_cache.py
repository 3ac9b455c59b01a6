"""Solution cache on the device (DeepSearch, arXiv 2509.25454, Eq. 10): problem -> correct solutions found so far.

Fixed-capacity arrays and pure functions that can be jitted, vmapped (`lookup`, `contains`) and saved like any pytree.
When every slot is taken, the problem whose last insertion is the oldest goes; among equals the one in the lowest slot.

Sharding: every field has the capacity as its leading axis, and that axis is split over the mesh axis "data"
(`shard_cache`). What a call returns does not depend on the number of devices. Under jit on a mesh of automatic axes the
compiler finds slots by a reduction over C numbers and moves only the looked-up or inserted rows between devices.
"""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

EMPTY = -1


@struct.dataclass
class SolutionCache:
    """Room for C problems with P solutions of at most G pages x S tokens each.

    Attributes:
      problem_ids: [C] int32 problem in the slot; EMPTY in free slots.
      rounds: [C] int32 round of the slot's last insertion; meaningless in free slots.
      counts: [C] int32 solutions in the slot, 0..P, stored in its first rows.
      lengths: [C, P] int32 tokens of each solution; 0 in unused rows.
      tokens: [C, P, G, S] int32 response tokens; 0 after the end of a solution.
    """

    problem_ids: jax.Array
    rounds: jax.Array
    counts: jax.Array
    lengths: jax.Array
    tokens: jax.Array


class CachedPaths(NamedTuple):
    """tokens [P, G * S] int32, lengths [P] int32, num_paths [] int32, found [] bool; zeros where nothing was found."""

    tokens: jax.Array
    lengths: jax.Array
    num_paths: jax.Array
    found: jax.Array


def init_cache(capacity: int, paths_per_problem: int, num_pages: int, page_length: int) -> SolutionCache:
    """An empty cache of capacity * paths_per_problem * num_pages * page_length * 4 bytes.

    Args:
      capacity: C, problems.
      paths_per_problem: P, solutions kept of each.
      num_pages, page_length: G and S; G * S is the longest solution in tokens.
    Raises:
      ValueError: a size below 1.
    """
    sizes = {
        "capacity": capacity,
        "paths_per_problem": paths_per_problem,
        "num_pages": num_pages,
        "page_length": page_length,
    }
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1; a run without a cache must not make one")
    return SolutionCache(
        problem_ids=jnp.full(capacity, EMPTY, jnp.int32),
        rounds=jnp.zeros(capacity, jnp.int32),
        counts=jnp.zeros(capacity, jnp.int32),
        lengths=jnp.zeros((capacity, paths_per_problem), jnp.int32),
        tokens=jnp.zeros((capacity, paths_per_problem, num_pages, page_length), jnp.int32),
    )


def cache_sharding(mesh: Mesh, axis: str = "data") -> NamedSharding:
    """Sharding of every field of a cache: capacity over `axis`, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(axis))


def shard_cache(cache: SolutionCache, mesh: Mesh, axis: str = "data") -> SolutionCache:
    """The cache spread over the devices of a mesh axis.

    Raises:
      ValueError: the capacity does not divide among the devices.
    """
    capacity, num_devices = cache.problem_ids.shape[0], mesh.shape[axis]
    if capacity % num_devices:
        raise ValueError(
            f"a cache capacity of {capacity} cannot be shared by {num_devices} devices; "
            f"the next size that fits is {-(-capacity // num_devices) * num_devices}"
        )
    return jax.device_put(cache, cache_sharding(mesh, axis))


def _find(cache: SolutionCache, problem_id: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Slot of a problem and whether it is there; the slot is 0 where it is not."""
    matches = (cache.problem_ids == problem_id) & (problem_id >= 0)  # EMPTY matches free slots, so ids must be >= 0
    return jnp.argmax(matches), jnp.any(matches)


def _read(cache: SolutionCache, slot: jax.Array) -> SolutionCache:
    """The fields of one slot, without the leading axis."""
    # A list of one index and not a scalar: the compiler slices a sharded axis by gathering the whole cache first, but
    # lets every device look up the listed rows that it holds.
    return jax.tree.map(lambda field: field[slot[None]][0], cache)


def contains(cache: SolutionCache, problem_id: jax.Array) -> jax.Array:
    """Whether the cache has solutions of a problem: [] int32 to [] bool. A negative id is never found."""
    return _find(cache, problem_id)[1]


def lookup(cache: SolutionCache, problem_id: jax.Array) -> CachedPaths:
    """Solutions of a problem: [] int32 id to CachedPaths. A negative id is never found."""
    slot, found = _find(cache, problem_id)
    row = _read(cache, slot)
    return CachedPaths(
        tokens=jnp.where(found, row.tokens.reshape(row.lengths.shape[0], -1), 0),
        lengths=jnp.where(found, row.lengths, 0),
        num_paths=jnp.where(found, row.counts, 0),
        found=found,
    )


def remove(cache: SolutionCache, problem_id: jax.Array) -> SolutionCache:
    """Frees the slot of a problem ([] int32); a problem that is not there changes nothing."""
    matches = (cache.problem_ids == problem_id) & (problem_id >= 0)
    return dataclasses.replace(
        cache,
        problem_ids=jnp.where(matches, EMPTY, cache.problem_ids),
        counts=jnp.where(matches, 0, cache.counts),
        lengths=jnp.where(matches[:, None], 0, cache.lengths),
    )


def _first_distinct(tokens: jax.Array, lengths: jax.Array, keep: jax.Array) -> jax.Array:
    """[X, L] tokens, [X] lengths and [X] bool to [X] bool: kept rows that repeat no earlier kept row."""
    same = (lengths[:, None] == lengths[None, :]) & jnp.all(tokens[:, None] == tokens[None, :], axis=-1)
    is_earlier = jnp.tri(keep.shape[0], k=-1, dtype=bool)
    return keep & ~jnp.any(same & is_earlier & keep[None, :], axis=1)


def insert(
    cache: SolutionCache,
    problem_id: jax.Array,
    tokens: jax.Array,
    lengths: jax.Array,
    keep: jax.Array,
    round_index: jax.Array,
) -> SolutionCache:
    """Adds solutions of a problem; new ones first, then those it had, equal ones once, cut at P.

    Newer solutions are closer to the present policy, so they displace older ones. The slot's round becomes
    `round_index`. Nothing to keep (or a negative id) leaves the cache as it is.

    Args:
      problem_id: [] int32.
      tokens: [M, G * S] int32 response tokens; what stands after the end is not stored.
      lengths: [M] int32 tokens of each.
      keep: [M] bool which of them to store; empty ones and ones longer than G * S never are.
      round_index: [] int32, >= 0 and never falling.
    """
    capacity, num_paths, num_pages, page_length = cache.tokens.shape
    width = num_pages * page_length
    chex.assert_shape(tokens, (None, width))
    chex.assert_equal_shape([lengths, keep])
    keep = keep & (lengths > 0) & (lengths <= width)
    changes = (problem_id >= 0) & jnp.any(keep)

    found_slot, found = _find(cache, problem_id)
    is_free = cache.problem_ids == EMPTY
    oldest_slot = jnp.argmin(jnp.where(is_free, jnp.iinfo(jnp.int32).min, cache.rounds))  # a free slot first
    slot = jnp.where(found, found_slot, oldest_slot)

    old = _read(cache, slot)
    new_tokens = jnp.where(jnp.arange(width)[None, :] < lengths[:, None], tokens.astype(jnp.int32), 0)
    all_tokens = jnp.concatenate([new_tokens, old.tokens.reshape(num_paths, width)])
    all_lengths = jnp.concatenate([lengths.astype(jnp.int32), old.lengths])
    had = found & (jnp.arange(num_paths) < old.counts)
    stored = _first_distinct(all_tokens, all_lengths, jnp.concatenate([keep, had]))
    order = jnp.argsort(~stored, stable=True)[:num_paths]
    is_used = stored[order]
    row = SolutionCache(
        problem_ids=jnp.asarray(problem_id, jnp.int32),
        rounds=jnp.asarray(round_index, jnp.int32),
        counts=jnp.sum(is_used, dtype=jnp.int32),
        lengths=jnp.where(is_used, all_lengths[order], 0),
        tokens=jnp.where(is_used[:, None], all_tokens[order], 0).reshape(num_paths, num_pages, page_length),
    )
    # An index past the end drops the write, so that no-ops cost no copy.
    target = jnp.where(changes, slot, capacity)[None]  # a list for the reason given in `_read`
    return jax.tree.map(lambda field, value: field.at[target].set(value[None], mode="drop"), cache, row)


def insert_many(
    cache: SolutionCache,
    problem_ids: jax.Array,
    tokens: jax.Array,
    lengths: jax.Array,
    keep: jax.Array,
    round_index: jax.Array,
) -> SolutionCache:
    """`insert` of B problems one after the other; each argument but the round has a leading [B] axis."""

    def step(carry: SolutionCache, problem: tuple[jax.Array, ...]) -> tuple[SolutionCache, None]:
        one_id, one_tokens, one_lengths, one_keep = problem
        return insert(carry, one_id, one_tokens, one_lengths, one_keep, round_index), None

    return jax.lax.scan(step, cache, (problem_ids, tokens, lengths, keep))[0]
