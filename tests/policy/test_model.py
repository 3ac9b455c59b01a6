"""The decoder against logits, losses and gradients that transformers recorded."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax import policy
from tests.model_parity import decode_floats
from tests.policy.conftest import load_recorded


@pytest.fixture(scope="module")
def model():
    recorded = load_recorded("qwen2")
    return recorded.config, recorded.params


def as_arrays(case):
    return jnp.array(case["input_ids"]), jnp.array(case["attention_mask"])


@pytest.mark.parametrize("form", ["stacked", "unstacked", "unstacked with head"])
@pytest.mark.parametrize("index", [0, 1])  # one row of 40; two rows, one of them padded on the right
def test_logits_equal_the_recorded_ones(recorded, index, form):
    config, params = recorded.config, recorded.params
    if form != "stacked":
        params = policy.unstack_layers(config, params, copy_head="head" in form)
    case = recorded.golden["cases"][index]
    tokens, mask = as_arrays(case)
    got = policy.logits(params, policy.hidden_states(config, params, tokens, mask))
    got = np.where(np.asarray(mask)[..., None] == 1, got, 0)
    np.testing.assert_allclose(got, decode_floats(case), atol=3e-5)


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_loss_and_gradient_norms_equal_the_recorded_ones(recorded, remat):
    config = dataclasses.replace(recorded.config, remat=remat)
    golden = recorded.golden
    tokens, mask = as_arrays(golden["cases"][0])

    def loss(params):
        log_probs, _ = policy.token_log_probs(config, params, tokens, mask, chunk_size=7)
        return -log_probs.sum() / (tokens.size - 1)

    value, grads = jax.jit(jax.value_and_grad(loss))(recorded.params)
    np.testing.assert_allclose(value, golden["loss_of_case_0"], rtol=1e-5)
    norms = {name: np.linalg.norm(array()) for name, _, array in policy.hf_tensors(config, grads)}
    assert norms.keys() == golden["grad_norms_of_case_0"].keys()
    for name, norm in golden["grad_norms_of_case_0"].items():
        np.testing.assert_allclose(norms[name], norm, rtol=1e-4, err_msg=name)


def test_unrolled_layers_can_be_recomputed_too(gemma):
    tokens, mask = as_arrays(gemma.golden["cases"][0])
    params = policy.unstack_layers(gemma.config, gemma.params)

    def grads(config):
        def loss(params):
            return policy.token_log_probs(config, params, tokens, mask)[0].sum()

        return jax.jit(jax.grad(loss))(params)

    want, got = grads(gemma.config), grads(dataclasses.replace(gemma.config, remat="full"))
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("changed", "reaches"), [(3, True), (2, False)])
def test_a_window_of_eight_ends_with_the_seventh_token_back(gemma, changed, reaches):
    config = dataclasses.replace(gemma.config, num_layers=1, layer_windows=(8,))
    params = gemma.params | {"layers": jax.tree.map(lambda x: x[:1], gemma.params["layers"])}
    tokens = jnp.arange(40, 51)[None]
    other = tokens.at[0, changed].set(7)
    outputs = [policy.hidden_states(config, params, row, jnp.ones_like(row))[0, 10] for row in (tokens, other)]
    assert bool(jnp.any(outputs[0] != outputs[1])) == reaches


def test_windows_count_positions_within_their_own_segment(gemma):
    """A segment gives the same numbers behind another one as alone, windows included."""
    config, params = gemma.config, gemma.params
    row = jnp.arange(60, 80)[None]
    alone = policy.hidden_states(config, params, row, jnp.ones_like(row))
    packed = jnp.concatenate([jnp.arange(5, 12)[None], row], axis=1)
    together = policy.hidden_states(config, params, packed, jnp.array([[1] * 7 + [2] * 20]))
    np.testing.assert_allclose(together[:, 7:], alone, atol=1e-5)


def test_packed_segments_equal_separate_rows(model):
    config, params = model
    first, second = jnp.arange(3, 9)[None], jnp.arange(40, 44)[None]
    packed = jnp.concatenate([first, second, jnp.zeros((1, 2), jnp.int32)], axis=1)
    segment_ids = jnp.array([[1] * 6 + [2] * 4 + [0] * 2])
    apart = [policy.token_log_probs(config, params, row, jnp.ones_like(row), chunk_size=4) for row in (first, second)]
    together = policy.token_log_probs(config, params, packed, segment_ids, chunk_size=4)
    for got, *want in zip(together, *apart):
        np.testing.assert_allclose(got[0], np.concatenate([*(row[0] for row in want), [0, 0]]), atol=1e-5)
        assert got[0, 0] == 0
        assert got[0, 6] == 0  # the first token of the second segment has no predecessor


def test_positions_restart_with_each_segment():
    got = policy.segment_positions(jnp.array([[1, 1, 1, 2, 2, 0], [3, 0, 0, 0, 0, 0]]))
    np.testing.assert_array_equal(got, [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]])


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama", "gemma3_text"])
def test_init_has_the_promised_sizes_and_depends_on_the_key(model_type):
    config = policy.ModelConfig.tiny(17, hidden_size=32, num_layers=2, tie_word_embeddings=False, model_type=model_type)
    params = policy.init_params(config, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == config.num_parameters
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    kernel = params["layers"]["attention"]["query"]["kernel"]
    assert kernel.shape == (2, 32, 32)
    assert abs(float(kernel.std()) - config.initializer_range) < 0.02
    assert not np.allclose(kernel[0], kernel[1])  # each layer has its own noise
    np.testing.assert_array_equal(params["final_norm"]["scale"] + config.norm_offset, 1)
    other = policy.init_params(config, jax.random.key(1))
    assert not np.allclose(params["head"]["kernel"], other["head"]["kernel"])


def test_bfloat16_compute_stays_near_float32(recorded):
    config, params = recorded.config, recorded.params
    tokens, mask = as_arrays(recorded.golden["cases"][0])
    low = dataclasses.replace(config, compute_dtype="bfloat16")
    got, entropy = policy.token_log_probs(low, params, tokens, mask)
    want, _ = policy.token_log_probs(config, params, tokens, mask)
    chex.assert_type([got, entropy], jnp.float32)
    assert 1e-4 < np.abs(got - want).max() < 0.5
