"""int8 weights: how far off they are, entry by entry and in the model's log-probs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax import policy
from deepsearch_jax.policy.int8 import matmul
from tests.policy.conftest import load_recorded


def is_int8(leaf):
    return isinstance(leaf, policy.Int8)


def test_numbers_by_hand():
    """Columns share a scale in a kernel, rows in an embedding; a channel of zeros stays zero."""
    table = jnp.array([[127.0, 0.5, 0.0], [-63.6, -1.27, 0.0]])
    got = policy.quantize_int8(
        policy.ModelConfig.tiny(2), {"head": {"kernel": table}, "embed": {"embedding": table}, "norm": {"scale": table}}
    )
    np.testing.assert_array_equal(got["head"]["kernel"].values, [[127, 50, 0], [-64, -127, 0]])
    np.testing.assert_allclose(got["head"]["kernel"].scale, [[1, 0.01, 1 / 127]])
    np.testing.assert_array_equal(got["embed"]["embedding"].values, [[127, 0, 0], [-127, -3, 0]])
    np.testing.assert_array_equal(got["norm"]["scale"], table)


def test_every_matrix_is_within_half_a_step(recorded):
    got = policy.quantize_int8(recorded.config, recorded.params)
    paths = {jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(got, is_leaf=is_int8)
             if is_int8(leaf)}  # fmt: skip
    assert len(paths) == 8 + ("head" in got)  # seven kernels of a layer, the embedding, the head
    assert all(path.endswith(("['kernel']", "['embedding']")) for path in paths)

    def check(quantized, exact):
        if not is_int8(quantized):
            return np.testing.assert_array_equal(quantized, exact)
        assert quantized.values.dtype == jnp.int8
        gap = np.abs(quantized.astype("float32") - exact)
        assert (gap <= np.asarray(quantized.scale) * 0.5001).all()
        assert np.abs(quantized.values).max() == 127  # the whole range is used

    jax.tree.map(check, got, recorded.params, is_leaf=is_int8)


@pytest.mark.parametrize(
    "form",
    [
        "stacked",
        *(pytest.param(form, marks=pytest.mark.slow) for form in ("unstacked", "unstacked with head")),
        "quantized after unstacking",
    ],
)
def test_log_probs_are_those_of_the_rounded_weights(recorded, form):
    """The product with int8 numbers, scaled behind it, equals the product with the rounded matrices."""
    config = recorded.config
    params = policy.quantize_int8(config, recorded.params)
    rounded = jax.tree.map(lambda leaf: leaf.astype("float32"), params, is_leaf=is_int8)
    if form == "quantized after unstacking":
        params = policy.quantize_int8(config, policy.unstack_layers(config, recorded.params, copy_head=True))
    elif form != "stacked":
        params = policy.unstack_layers(config, params, copy_head="head" in form)
    case = recorded.golden["cases"][1]
    tokens, mask = jnp.array(case["input_ids"]), jnp.array(case["attention_mask"])
    got, want, exact = (policy.token_log_probs(config, p, tokens, mask)[0] for p in (params, rounded, recorded.params))
    np.testing.assert_allclose(got, want, atol=2e-5)
    gap = np.abs(got - exact).max()
    assert 1e-3 < gap < 0.3  # random weights, logits of standard deviation 2.4


def test_bfloat16_activations_are_rounded_once():
    """5 * 3.03 = 15.15 is 15.125 in bfloat16; the sum 5 * 127 = 635 rounded before it is scaled would give 15.1875."""
    kernel = policy.quantize_int8(policy.ModelConfig.tiny(2), {"kernel": jnp.full((5, 2), 3.03)})["kernel"]
    got = matmul(jnp.ones((1, 5), jnp.bfloat16), kernel)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got.astype("float32"), [[15.125, 15.125]])
    np.testing.assert_allclose(
        policy.logits({"head": {"kernel": kernel}}, jnp.ones((1, 5), jnp.bfloat16)), [[15.15] * 2]
    )


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((1024, 1024), 3), ((64, 32768), 3), ((1021, 1024), 3), ((1024, 1024), 65)],
    ids=["by rows", "by columns", "a prime length has no blocks", "too many rows"],
)
def test_products_by_blocks_equal_plain_ones(shape, rows):
    values = jax.random.randint(jax.random.key(0), shape, -127, 128).astype(jnp.int8)
    kernel = policy.Int8(values, jnp.linspace(0.01, 0.02, shape[1])[None])
    x = jax.random.normal(jax.random.key(1), (1, rows, shape[0]))
    got = jax.jit(matmul)(x, kernel)
    assert got.shape == (1, rows, shape[1])
    np.testing.assert_allclose(got, np.asarray(x) @ np.asarray(kernel.astype("float32")), atol=2e-3)


def test_quantizing_runs_under_jit_and_keeps_no_second_copy():
    recorded = load_recorded("qwen2")
    quantize = jax.jit(policy.quantize_int8, static_argnames="config")
    got, want = quantize(recorded.config, recorded.params), policy.quantize_int8(recorded.config, recorded.params)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(got))
    assert num_bytes < 0.3 * sum(leaf.nbytes for leaf in jax.tree.leaves(recorded.params))


def test_int8_weights_cannot_be_exported(tmp_path):
    recorded = load_recorded("qwen2")
    with pytest.raises(ValueError, match="int8 parameters are for decoding"):
        policy.save_pretrained(tmp_path, recorded.config, policy.quantize_int8(recorded.config, recorded.params))
