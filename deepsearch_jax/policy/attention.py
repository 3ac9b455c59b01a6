"""Attention over rows of segments and of trees: dense for short rows, block by block for long ones.

A row holds its tokens so that everything below a token follows it directly: a text in reading order, or a tree in
depth-first preorder. `ends[j]` is the first index behind the subtree of token j. Token i then attends to token j
(an ancestor or itself) if and only if j <= i < ends[j]; for a text `ends` is where the text ends. In a layer with a
window the two must also be less than the window apart in position, which is the depth.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Rows of at most this many tokens attend densely. On one CPU core blocks are as fast at 128 tokens, 3 times as fast at
# 512 and 7 times at 2048, forward and backward (`python -m benchmarks.update --prices`).
DENSE_LENGTH = {"cpu": 128}
DENSE_ON_ACCELERATORS = 1024  # not measured: there the small products of blocks pay later
HIDDEN = -1e30  # a score that is never attended to; finite, so that rows of padding stay finite
NO_WINDOW = jnp.iinfo(jnp.int32).max
FAR = 1 << 30  # a position behind all others, half of the integers away from overflow


class Blocks(NamedTuple):
    """How a row is cut into pairs of a query block and a key block."""

    size: int  # tokens of a block
    at_once: int  # pairs computed at a time


_planned_backend: contextvars.ContextVar[str] = contextvars.ContextVar("planned_backend", default="")


@contextlib.contextmanager
def compiling_for(backend: str) -> Iterator[None]:
    """Programs traced within get the form that they have on that backend, whatever backend compiles them."""
    token = _planned_backend.set(backend)
    try:
        yield
    finally:
        _planned_backend.reset(token)


def target_backend() -> str:
    """The backend that programs get the form for; see `compiling_for`."""
    return _planned_backend.get() or jax.default_backend()


def blocks_for(length: int) -> Blocks | None:
    """What suits rows of `length` tokens on this backend; None = dense."""
    backend = target_backend()
    if length <= DENSE_LENGTH.get(backend, DENSE_ON_ACCELERATORS):
        return None
    # One pair at a time stays in the cache of a CPU core; an accelerator needs many to be busy (not measured).
    return Blocks(64 if length < 512 else 128, 1) if backend == "cpu" else Blocks(128, 64)


def segment_ends(segment_ids: jax.Array) -> jax.Array:
    """[R, T] int32 first index behind the run of equal segment ids that a token is in; 0 (seen by none) in padding."""
    length = segment_ids.shape[1]
    index = jnp.broadcast_to(jnp.arange(1, length + 1, dtype=jnp.int32)[None], segment_ids.shape)
    is_last = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (0, 1)), constant_values=True)
    ends = jax.lax.cummin(jnp.where(is_last, index, length), axis=1, reverse=True)
    return jnp.where(segment_ids == 0, 0, ends)


def row_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    ends: jax.Array,
    positions: jax.Array,
    window: jax.Array | None = None,
    blocks: Blocks | None = None,
) -> jax.Array:
    """softmax(query key^T / sqrt(Dh)) value over the tokens that each token attends to.

    Args:
      query: [R, T, Hq, Dh]; key, value: [R, T, Hkv, Dh], Hkv a divisor of Hq.
      ends: [R, T] int32, 0 in padding; see the module.
      positions: [R, T] int32, read only with a window.
      window: [] int32 tokens attended back to, the own one included; None = all.
      blocks: None = all pairs of tokens at once, in O(R T^2) memory; otherwise O(R T), by blocks that are not hidden.
    Returns: [R, T, Hq, Dh]; finite values without meaning in padding.
    """
    if blocks is None:
        index = jnp.arange(query.shape[1], dtype=jnp.int32)
        mask = (index[None, :, None] >= index[None, None, :]) & (index[None, :, None] < ends[:, None, :])
        if window is not None:
            mask &= positions[:, :, None] - positions[:, None, :] < window
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None])
    R, T, heads, size = query.shape
    groups, padding = heads // key.shape[2], -T % blocks.size
    query = query * jnp.asarray(size**-0.5, query.dtype)

    def cut(x: jax.Array) -> jax.Array:
        """[R, T, ...] to [R * T / block, block, ...]."""
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(-1, blocks.size, *x.shape[2:])

    def by_head(x: jax.Array) -> jax.Array:
        """[R, T, Hkv * G, Dh] to [R * T / block, Hkv, G * block, Dh]."""
        x = cut(x).reshape(-1, blocks.size, key.shape[2], x.shape[2] // key.shape[2], size)
        return x.transpose(0, 2, 3, 1, 4).reshape(x.shape[0], key.shape[2], -1, size)

    geometry = Geometry(cut(ends), cut(positions), jnp.int32(NO_WINDOW) if window is None else window)
    attended = _attend(by_head(query), by_head(key), by_head(value), geometry, blocks, (T + padding) // blocks.size)
    attended = attended.reshape(-1, key.shape[2], groups, blocks.size, size).transpose(0, 3, 1, 2, 4)
    return attended.reshape(R, T + padding, heads, size)[:, :T]


class Geometry(NamedTuple):
    """Who may see whom: ends and positions [N, block] of N = rows * blocks per row, and the window []."""

    ends: jax.Array
    positions: jax.Array
    window: jax.Array


class Pairs(NamedTuple):
    """Pairs of a query block and a key block that see anything of each other, `at_once` to a chunk.

    No block is twice in a chunk on the same side, so that what a chunk adds to it is added once and in a fixed order.

    Attributes:
      query, key: [chunks, at_once] int32 blocks, N where a chunk is not full.
      num_chunks: [] int32 chunks in use, in front.
    """

    query: jax.Array
    key: jax.Array
    num_chunks: jax.Array


def block_pairs(geometry: Geometry, blocks_per_row: int, at_once: int) -> Pairs:
    """The pairs of all rows, by their distance: first each block with itself, last the first block of a row."""
    N, n = geometry.ends.shape[0], blocks_per_row
    size, rows = geometry.ends.shape[1], N // n
    is_real = geometry.ends > 0
    last = jnp.max(geometry.ends, axis=1).reshape(rows, n)  # the last token that sees anything of a key block, + 1
    shallowest = jnp.min(jnp.where(is_real, geometry.positions, FAR), axis=1).reshape(rows, n)
    deepest = jnp.max(jnp.where(is_real, geometry.positions, -1), axis=1).reshape(rows, n)

    block = jnp.arange(n, dtype=jnp.int32)
    distance, key = block[:, None], block[None] - block[:, None]  # [n distances, n query blocks]
    seen = (key >= 0)[:, None] & (last[:, key].swapaxes(0, 1) > (block * size)[None, None])
    near = (shallowest[None] - deepest[:, key].swapaxes(0, 1)) < geometry.window
    seen = (seen & (near | (distance == 0)[:, None])).reshape(n, N)  # the blocks of one distance are all different

    counts = -(-jnp.sum(seen, axis=1, dtype=jnp.int32) // at_once)  # chunks of each distance
    starts = jnp.cumsum(counts) - counts
    slot = starts[:, None] * at_once + jnp.cumsum(seen, axis=1, dtype=jnp.int32) - 1
    capacity = sum(-(-rows * (n - d) // at_once) for d in range(n)) * at_once
    slot = jnp.where(seen, slot, capacity)
    query = jnp.broadcast_to(jnp.arange(N, dtype=jnp.int32)[None], (n, N))

    def listed(blocks: jax.Array) -> jax.Array:
        filled = jnp.full(capacity, N, jnp.int32).at[slot.reshape(-1)].set(blocks.reshape(-1), mode="drop")
        return filled.reshape(-1, at_once)

    return Pairs(listed(query), listed(query - distance), jnp.sum(counts))


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    """[C, ...] blocks of x; block N gives zeros."""
    return x.at[index].get(mode="fill", fill_value=0)


def _put(x: jax.Array, index: jax.Array, blocks: jax.Array) -> jax.Array:
    """x with its blocks replaced; block N is nowhere."""
    return x.at[index].set(blocks, mode="drop")


def _scores(query: jax.Array, key: jax.Array, geometry: Geometry, at: tuple[jax.Array, jax.Array], n: int) -> jax.Array:
    """[C, Hkv, G * block, block] scores of the pairs of one chunk, HIDDEN where a token is not attended to."""
    ends = _take(geometry.ends, at[1])
    index = jnp.arange(ends.shape[1], dtype=jnp.int32)
    i, j = ((a % n)[:, None] * ends.shape[1] + index[None] for a in at)
    behind = _take(geometry.positions, at[0])[:, :, None] - _take(geometry.positions, at[1])[:, None, :]
    mask = (j[:, None] <= i[:, :, None]) & (i[:, :, None] < ends[:, None]) & (behind < geometry.window)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("chqd,chkd->chqk", query, key, preferred_element_type=wide)
    C, H, rows, size = scores.shape
    split = scores.reshape(C, H, rows // size, size, size)
    return jnp.where(mask[:, None, None], split, HIDDEN).reshape(scores.shape)


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, geometry: Geometry, blocks: Blocks, n: int
) -> tuple[jax.Array, jax.Array]:
    """Attended values and log of the sum of exponentials; online softmax over the pairs (arXiv 2205.14135)."""
    pairs = block_pairs(geometry, n, blocks.at_once)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    largest = jnp.full(query.shape[:-1], HIDDEN, wide)
    state = largest, jnp.zeros_like(largest), jnp.zeros(query.shape, wide)

    def step(chunk: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        at = pairs.query[chunk], pairs.key[chunk]
        scores = _scores(_take(query, at[0]), _take(key, at[1]), geometry, at, n)
        largest, total, attended = (_take(x, at[0]) for x in state)
        larger = jnp.maximum(largest, jnp.max(scores, axis=-1))
        shrink, weights = jnp.exp(largest - larger), jnp.exp(scores - larger[..., None])
        total = total * shrink + jnp.sum(weights, axis=-1)
        added = jnp.einsum(
            "chqk,chkd->chqd", weights.astype(value.dtype), _take(value, at[1]), preferred_element_type=wide
        )
        new = larger, total, attended * shrink[..., None] + added
        return tuple(_put(x, at[0], y) for x, y in zip(state, new, strict=True))

    largest, total, attended = jax.lax.fori_loop(0, pairs.num_chunks, step, state)
    total = jnp.where(total > 0, total, 1)  # blocks of padding are in no pair
    return (attended / total[..., None]).astype(value.dtype), largest + jnp.log(total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, geometry: Geometry, blocks: Blocks, n: int
) -> jax.Array:
    """Attention of blocks [N, Hkv, G * block, Dh] to [N, Hkv, block, Dh], n blocks to a row; queries are scaled."""
    return _forward(query, key, value, geometry, blocks, n)[0]


def _attend_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, geometry: Geometry, blocks: Blocks, n: int
) -> tuple[jax.Array, tuple]:
    attended, log_sum = _forward(query, key, value, geometry, blocks, n)
    return attended, (query, key, value, geometry, attended, log_sum)


def _attend_backward(blocks: Blocks, n: int, residuals: tuple, gradient: jax.Array) -> tuple:
    """Weights are computed again from the log-sum; all three gradients in one pass (arXiv 2307.08691)."""
    query, key, value, geometry, attended, log_sum = residuals
    pairs = block_pairs(geometry, n, blocks.at_once)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    product = functools.partial(jnp.einsum, preferred_element_type=wide)
    inner = jnp.sum(gradient.astype(wide) * attended.astype(wide), axis=-1)
    state = tuple(jnp.zeros(x.shape, wide) for x in (query, key, value))

    def step(chunk: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        at = pairs.query[chunk], pairs.key[chunk]
        q, k, v, g = _take(query, at[0]), _take(key, at[1]), _take(value, at[1]), _take(gradient, at[0])
        weights = jnp.exp(_scores(q, k, geometry, at, n) - _take(log_sum, at[0])[..., None])
        slopes = weights * (product("chqd,chkd->chqk", g, v) - _take(inner, at[0])[..., None])
        slopes = slopes.astype(q.dtype)
        added = (
            product("chqk,chkd->chqd", slopes, k),
            product("chqk,chqd->chkd", slopes, q),
            product("chqk,chqd->chkd", weights.astype(v.dtype), g),
        )
        where = at[0], at[1], at[1]
        return tuple(_put(x, i, _take(x, i) + y) for x, i, y in zip(state, where, added, strict=True))

    gradients = jax.lax.fori_loop(0, pairs.num_chunks, step, state)
    return *(g.astype(x.dtype) for g, x in zip(gradients, (query, key, value), strict=True)), None


_attend.defvjp(_attend_forward, _attend_backward)
