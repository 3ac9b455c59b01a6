"""Attention of rows of trees against masks found by walking from token to parent, in all forms."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax.policy import Blocks, blocks_for, row_attention, segment_ends
from deepsearch_jax.policy.attention import Geometry, block_pairs


def tree_row(seed, length, num_real, branching=0.2):
    """parents, ends, positions [T] of random trees in preorder: after each token a leaf may be left for an ancestor."""
    rng = np.random.default_rng(seed)
    parents, ends, positions = np.full(length, -1), np.zeros(length, int), np.zeros(length, int)
    path: list[int] = []
    for index in range(num_real):
        if path and rng.random() < branching:
            path = path[: rng.integers(0, len(path) + 1)]
        parents[index] = path[-1] if path else -1
        positions[index] = len(path)
        path.append(index)
        for ancestor in path:
            ends[ancestor] = index + 1
    return parents, ends, positions


def ancestors(parents, num_real):
    """[T, T] bool mask of each token's ancestors and itself."""
    mask = np.zeros((parents.size, parents.size), bool)
    for index in range(num_real):
        at = index
        while at >= 0:
            mask[index, at] = True
            at = parents[at]
    return mask


def make_rows(length, reals, seed=0):
    rows = [tree_row(seed + r, length, real) for r, real in enumerate(reals)]
    parents, ends, positions = (np.stack(x).astype(np.int32) for x in zip(*rows))
    return parents, ends, positions, np.stack([ancestors(p, n) for p, n in zip(parents, reals)])


def make_heads(rows, length, dtype=jnp.float32, heads=4, kv_heads=2, size=8):
    keys = jax.random.split(jax.random.key(1), 4)
    shapes = [(rows, length, h, size) for h in (heads, kv_heads, kv_heads, heads)]
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes)]


def plain(query, key, value, mask):
    """Softmax over an explicit mask, one query head at a time."""
    heads = []
    for head in range(query.shape[2]):
        shared = head // (query.shape[2] // key.shape[2])
        scores = jnp.einsum("rqd,rkd->rqk", query[:, :, head], key[:, :, shared]) / query.shape[3] ** 0.5
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9), axis=-1)
        heads.append(jnp.einsum("rqk,rkd->rqd", weights, value[:, :, shared]))
    return jnp.stack(heads, axis=2)


FORMS = [None, Blocks(8, 1), Blocks(8, 3), Blocks(16, 64), Blocks(128, 1)]


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("blocks", FORMS)
def test_values_and_gradients_are_those_of_the_ancestors(blocks, window):
    reals = (50, 33, 8, 0)
    _, ends, positions, mask = make_rows(50, reals)
    *inputs, slope = make_heads(len(reals), 50)
    if window:
        mask = mask & (positions[:, :, None] - positions[:, None] < window)
    real = (np.arange(50)[None] < np.array(reals)[:, None])[..., None, None]
    slope = jnp.where(real, slope, 0)

    def value_and_slopes(attend):
        return jax.jit(lambda q, k, v: (attend(q, k, v), jax.vjp(attend, q, k, v)[1](slope)))(*inputs)

    limit = None if window is None else jnp.int32(window)
    got = value_and_slopes(lambda q, k, v: row_attention(q, k, v, ends, positions, limit, blocks))
    want = value_and_slopes(lambda q, k, v: plain(q, k, v, mask))
    assert np.isfinite(got[0]).all()
    chex.assert_trees_all_close((jnp.where(real, got[0], 0), got[1]), (jnp.where(real, want[0], 0), want[1]), atol=2e-6)


@pytest.mark.parametrize("at_once", [1, 4])
def test_only_pairs_that_see_each_other_are_listed_and_once(at_once):
    size, length = 4, 64
    reals = (64, 41, 0)
    _, ends, positions, mask = make_rows(length, reals, seed=7)
    for window in (2**31 - 1, 6):
        near = positions[:, :, None] - positions[:, None] < window
        tiles = (mask & near).reshape(3, 16, size, 16, size).any((2, 4))
        cut = Geometry(ends.reshape(-1, size), positions.reshape(-1, size), jnp.int32(window))
        pairs = jax.tree.map(
            np.asarray, jax.jit(functools.partial(block_pairs, blocks_per_row=16, at_once=at_once))(cut)
        )
        used = pairs.query[: pairs.num_chunks], pairs.key[: pairs.num_chunks]
        listed = [(q // 16, q % 16, k % 16) for q, k in zip(*(x.ravel() for x in used)) if q < 48]
        assert len(listed) == len(set(listed))
        needed = set(zip(*map(tuple, np.argwhere(tiles).T)))
        assert needed <= set(listed)
        if window > length:  # without a window not one more
            assert needed == set(listed)
            num_listed = len(listed)
        else:
            assert len(listed) < num_listed
        for query, key in zip(*used):  # a block is at most once on its side of a chunk
            assert len(set(query[query < 48])) == (query < 48).sum() == (key < 48).sum() == len(set(key[key < 48]))


def test_segments_end_where_the_next_begins_and_padding_is_seen_by_none():
    got = segment_ends(jnp.array([[1, 1, 1, 2, 2, 0], [3, 0, 0, 0, 0, 0], [4, 4, 4, 4, 4, 4]]))
    np.testing.assert_array_equal(got, [[3, 3, 3, 5, 5, 0], [1, 0, 0, 0, 0, 0], [6] * 6])


@pytest.mark.parametrize("blocks", [None, Blocks(16, 2)])
def test_bfloat16_accumulates_in_float32(blocks):
    _, ends, positions, mask = make_rows(64, (64, 64))
    query, key, value, _ = make_heads(2, 64, jnp.bfloat16)
    got = row_attention(query, key, value, ends, positions, None, blocks)
    want = plain(*(x.astype(jnp.float32) for x in (query, key, value)), mask)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), want, atol=0.03)


def test_it_runs_under_vmap_and_checkpoint_and_shard_map():
    _, ends, positions, _ = make_rows(32, (32,) * 8)
    *inputs, slope = make_heads(8, 32)

    def gradients(query, key, value, ends, positions, slope):
        def total(query, key, value):
            attend = jax.checkpoint(lambda q, k, v: row_attention(q, k, v, ends, positions, None, Blocks(8, 2)))
            return jnp.sum(attend(query, key, value) * slope)

        return jax.grad(total, argnums=(0, 1, 2))(query, key, value)

    arguments = (*inputs, ends, positions, slope)
    want = jax.jit(gradients)(*arguments)
    alone = jax.vmap(lambda *row: jax.tree.map(lambda x: x[0], gradients(*(x[None] for x in row))))
    chex.assert_trees_all_close(jax.jit(alone)(*arguments), want, atol=1e-6)
    mesh, rows = (
        jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)),
        jax.sharding.PartitionSpec("data"),
    )
    spread = jax.jit(jax.shard_map(gradients, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False))
    chex.assert_trees_all_close(jax.device_get(spread(*arguments)), jax.device_get(want), atol=1e-6)


def test_memory_grows_with_the_length_and_not_with_its_square():
    def bytes_of(length):
        arguments = make_heads(1, length, heads=2, kv_heads=1)
        ends, positions = jnp.full((1, length), length), jnp.arange(length)[None]

        def total(query, key, value, slope):
            return jnp.sum(row_attention(query, key, value, ends, positions, None, Blocks(128, 1)) * slope)

        compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = bytes_of(2048), bytes_of(8192)
    assert long < 4.5 * short
    assert long < 8192 * 8192 / 8  # not even a bit for every pair of tokens


def test_short_rows_are_dense():
    assert blocks_for(64) is None
    assert blocks_for(4096) is not None
