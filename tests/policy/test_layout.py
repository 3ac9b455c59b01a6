"""Kernels stored [out, in] give the products of kernels stored [in, out], however many rows there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax import policy
from deepsearch_jax.policy.layout import LONG_ROW, MANY_ROWS


@pytest.mark.parametrize("size_in", [24, LONG_ROW])
@pytest.mark.parametrize("shape", [(), (1, 1), (2, 3), (MANY_ROWS,)])
def test_product_equals_numpys(shape, size_in):
    generator = np.random.default_rng(0)
    x, kernel = generator.normal(size=(*shape, size_in)), generator.normal(size=(size_in, 5))
    got = jax.jit(policy.Transposed.matmul)(policy.Transposed(jnp.float32(kernel.T)), jnp.float32(x))
    assert got.shape == (*shape, 5)
    np.testing.assert_allclose(got, x @ kernel, atol=2e-5 * size_in**0.5)


@pytest.mark.parametrize("tied", [True, False])
def test_model_is_the_same_with_transposed_kernels(tied):
    config = policy.ModelConfig.tiny(vocab_size=11, tie_word_embeddings=tied)
    params = policy.init_params(config, jax.random.key(0))
    laid_out = policy.transpose_kernels(policy.unstack_layers(config, params))
    tokens = jnp.array([[1, 2, 3, 4, 5]])
    expected, got = (
        policy.logits(p, policy.hidden_states(config, p, tokens, jnp.ones_like(tokens))) for p in (params, laid_out)
    )
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert isinstance(laid_out["layers"][0]["mlp"]["down"]["kernel"], policy.Transposed)


def test_stacked_layers_are_refused():
    config = policy.ModelConfig.tiny(vocab_size=11)
    with pytest.raises(ValueError, match="stacked"):
        policy.transpose_kernels(policy.init_params(config, jax.random.key(0)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_head_kept_in_both_forms_gives_the_same_logits(tied, rows):
    config = policy.ModelConfig.tiny(vocab_size=11, tie_word_embeddings=tied)
    params = policy.init_params(config, jax.random.key(0))
    laid_out = policy.transpose_kernels(policy.unstack_layers(config, params), copy_head=True)
    hidden = jax.random.normal(jax.random.key(1), (rows, config.hidden_size))
    expected = hidden @ (params["embed"]["embedding"].T if tied else params["head"]["kernel"])
    np.testing.assert_allclose(policy.logits(laid_out, hidden), expected, atol=1e-5)
    # The copy is what one row reads: without it the logits of one row are zero, those of several do not change.
    if tied:
        broken = laid_out | {"head_columns": jnp.zeros_like(laid_out["head_columns"])}
    else:
        kernel = laid_out["head"]["kernel"]
        broken = laid_out | {"head": {"kernel": kernel.replace(columns=jnp.zeros_like(kernel.columns))}}
    assert bool(jnp.any(policy.logits(broken, hidden) != 0)) == (rows > 1)
    tokens = jnp.array([[1, 2, 3]])
    assert policy.hidden_states(config, laid_out, tokens, jnp.ones_like(tokens)).shape == (1, 3, config.hidden_size)
