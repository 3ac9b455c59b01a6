"""Kernels stored [out, in] or in tiles give the products of kernels stored [in, out], however many rows there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax import policy
from deepsearch_jax.policy.layout import LONG_ROW, MANY_ROWS, TILED_ROWS, tile_shape


@pytest.mark.parametrize("size_in", [24, LONG_ROW])
@pytest.mark.parametrize("shape", [(), (1, 1), (2, 3), (MANY_ROWS,)])
def test_product_equals_numpys(shape, size_in):
    generator = np.random.default_rng(0)
    x, kernel = generator.normal(size=(*shape, size_in)), generator.normal(size=(size_in, 5))
    got = jax.jit(policy.Transposed.matmul)(policy.Transposed(jnp.float32(kernel.T)), jnp.float32(x))
    assert got.shape == (*shape, 5)
    np.testing.assert_allclose(got, x @ kernel, atol=2e-5 * size_in**0.5)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(), (1, 1), (2, 3), (TILED_ROWS,), (2, TILED_ROWS)])
def test_product_of_tiles_equals_numpys(shape, pieces, dtype):
    generator = np.random.default_rng(0)
    x, kernel = generator.normal(size=(*shape, 48)), generator.normal(size=(48, 64))
    tiles = np.stack([np.stack(np.split(part, pieces)) for part in np.split(kernel, 2, axis=1)])
    got = jax.jit(policy.Tiled.matmul, static_argnums=2)(policy.Tiled(jnp.float32(tiles)), dtype(x), jnp.float32)
    assert got.shape == (*shape, 64)
    assert got.dtype == jnp.float32
    rounded = np.float64(dtype(x)) @ np.float64(dtype(kernel))
    np.testing.assert_allclose(got, rounded, atol=2e-4)


@pytest.mark.parametrize(
    ("size_in", "size_out", "rows", "expected"),
    [
        (896, 4864, 1, (896, 32)),  # one row: whole columns
        (896, 4864, 8, (448, 64)),
        (4864, 896, 8, (304, 64)),
        (8960, 1536, 8, (448, 64)),
        (896, 96, 8, (448, 32)),
        (896, 100, 8, (0, 0)),
        (521, 64, 8, (0, 0)),  # a prime above the longest piece
    ],
)
def test_tile_shapes(size_in, size_out, rows, expected):
    assert tile_shape(size_in, size_out, rows) == expected


@pytest.mark.parametrize(("rows", "tied"), [(1, True), (3, False), (TILED_ROWS + 1, True)])
def test_model_is_the_same_with_arranged_kernels(tied, rows):
    config = policy.ModelConfig.tiny(
        vocab_size=64, hidden_size=64, intermediate_size=96, head_dim=16, num_heads=4, num_kv_heads=2, num_layers=1,
        tie_word_embeddings=tied,
    )  # fmt: skip
    params = policy.init_params(config, jax.random.key(0))
    arranged = policy.arrange_kernels(policy.unstack_layers(config, params), rows=rows, copy_head=True)
    tokens = jnp.arange(rows * 5).reshape(rows, 5) % 64

    @jax.jit
    def logits(params):
        return policy.logits(params, policy.hidden_states(config, params, tokens, jnp.ones_like(tokens)))

    np.testing.assert_allclose(logits(arranged), logits(params), atol=1e-5)
    kind = policy.Transposed if rows > TILED_ROWS else policy.Tiled
    assert isinstance(arranged["layers"][0]["mlp"]["down"]["kernel"], kind)


def test_stacked_layers_are_refused():
    config = policy.ModelConfig.tiny(vocab_size=11)
    with pytest.raises(ValueError, match="stacked"):
        policy.arrange_kernels(policy.init_params(config, jax.random.key(0)), rows=1)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("arranged_for", "rows"), [(1, 1), (1, 3), (2, 2), (2, TILED_ROWS + 1)])
def test_a_head_kept_in_both_forms_gives_the_same_logits(tied, arranged_for, rows):
    config = policy.ModelConfig.tiny(vocab_size=64, tie_word_embeddings=tied)
    params = policy.init_params(config, jax.random.key(0))
    arranged = policy.arrange_kernels(policy.unstack_layers(config, params), rows=arranged_for, copy_head=True)
    hidden = jax.random.normal(jax.random.key(1), (rows, config.hidden_size))
    expected = hidden @ (params["embed"]["embedding"].T if tied else params["head"]["kernel"])
    np.testing.assert_allclose(policy.logits(arranged, hidden), expected, atol=1e-5)
    # The copy is what few rows read: without it their logits are zero, those of more do not change.
    if tied:
        broken = arranged | {"head_copy": jax.tree.map(jnp.zeros_like, arranged.get("head_copy", {}))}
    else:
        kernel = arranged["head"]["kernel"]
        copies = {name: jax.tree.map(jnp.zeros_like, getattr(kernel, name)) for name in ("columns", "tiles")}
        broken = arranged | {"head": {"kernel": kernel.replace(**copies)}}
    reads_copy = arranged_for == rows
    assert bool(jnp.any(policy.logits(broken, hidden) != 0)) != reads_copy
