"""What is computed in which dtype, and what an update holds: bfloat16 products, float32 masters, donation, remat."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax import training
from deepsearch_jax.objective import LossSettings
from deepsearch_jax.policy import ModelConfig, hidden_states, init_params, token_log_probs
from deepsearch_jax.training import UpdateSettings, updates
from deepsearch_jax.training.compiling import Jit
from tests.training.test_sharding import make_batch

CONFIG = ModelConfig.tiny(
    32, hidden_size=64, num_layers=2, num_heads=4, intermediate_size=96, compute_dtype="bfloat16", qkv_bias=True
)
SETTINGS = UpdateSettings(learning_rate=1e-3, warmup_steps=0, max_grad_norm=0)
log_prob_fn = functools.partial(token_log_probs, CONFIG, chunk_size=16)

SLOW = pytest.mark.slow


def make_state(settings=SETTINGS):
    return training.init_train_state(init_params(CONFIG, jax.random.key(0)), settings)


def test_products_are_bfloat16_and_logits_float32():
    batch, params = make_batch(), init_params(CONFIG, jax.random.key(0))
    text = jax.jit(log_prob_fn).lower(params, batch.tokens, batch.segment_ids).as_text()
    found = re.findall(r"dot_general.*: \(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>\) -> tensor<(\S+)x(\w+)>", text)
    assert len(found) == 10  # seven with the weights of a layer, two of attention, the head
    assert {dtype for operands in found for dtype in operands[:2]} == {"bf16"}
    wide = [shape for _, _, shape, dtype in found if dtype == "f32"]
    assert len(wide) == 2  # attention scores and logits
    assert any(shape.endswith("x16") or "32" in shape for shape in wide)


def test_log_probs_are_those_of_float32_logits():
    batch, params = make_batch(), init_params(CONFIG, jax.random.key(0))
    got = np.asarray(log_prob_fn(params, batch.tokens, batch.segment_ids)[0])
    hidden = np.asarray(hidden_states(CONFIG, params, jnp.array(batch.tokens), jnp.array(batch.segment_ids)))
    head = np.asarray(params["embed"]["embedding"].astype(jnp.bfloat16))
    logits = hidden.astype(np.float64) @ head.astype(np.float64).T
    log_softmax = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = np.take_along_axis(log_softmax[:, :-1], batch.tokens[:, 1:, None], axis=-1)[..., 0]
    real = batch.segment_ids[:, 1:] != 0
    np.testing.assert_allclose(got[:, 1:][real], expected[real], atol=1e-5)


@pytest.mark.parametrize("cut", [{"micro_batch_rows": 1}, pytest.param({"micro_batch_tokens": 12}, marks=SLOW)])
def test_masters_are_float32_and_gradients_are_summed_in_float32(cut):
    batch = make_batch()

    @Jit  # with the update's own compiler options: products of bfloat16 differ by them, and sums are looked at here
    def gradient(params, tokens, segment_ids, mask):
        return jax.grad(lambda p: -jnp.sum(log_prob_fn(p, tokens, segment_ids)[0] * mask))(params)

    state, total = make_state(), None
    for row in range(16):
        rows = [np.asarray(x)[row : row + 1] for x in (batch.tokens, batch.segment_ids, batch.loss_mask)]
        found = jax.tree.map(np.float64, gradient(state.params, *rows))
        total = found if total is None else jax.tree.map(np.add, total, found)
    settings = dataclasses.replace(SETTINGS, **cut)
    state, _ = training.supervised_update(state, batch, log_prob_fn, settings)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    for mean, expected in zip(jax.tree.leaves(state.opt_state[1][0].mu), jax.tree.leaves(total), strict=True):
        expected = 0.1 * expected / batch.loss_mask.sum()  # sums in bfloat16 would be off by 4e-3
        np.testing.assert_allclose(mean, expected, atol=2e-5 * np.abs(expected).max())


def num_bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
@pytest.mark.parametrize("state_dtype", [pytest.param("float32", marks=SLOW), "int8"])
def test_an_update_writes_the_state_where_it_was(state_dtype):
    settings = dataclasses.replace(SETTINGS, state_dtype=state_dtype)
    state, static = make_state(settings), {"mesh": None, "placement": None}
    lowered = updates._update.lower(
        state, make_batch(), log_prob_fn=log_prob_fn, loss_settings=LossSettings(), settings=settings, **static
    )
    assert lowered.compile().memory_analysis().alias_size_in_bytes == num_bytes(state)


def test_an_update_in_pieces_writes_state_and_sums_where_they_were():
    state, static = make_state(), {"mesh": None, "placement": None}
    sums = updates._zero_sums(state.params, **static)
    applied = updates._apply_sums.lower(state, sums, settings=SETTINGS, **static).compile()
    assert applied.memory_analysis().alias_size_in_bytes == num_bytes(state)
    added = updates._add_micro_batch.lower(
        sums, state.params, make_batch(), log_prob_fn=log_prob_fn, loss_settings=None, settings=SETTINGS, **static
    )
    assert added.compile().memory_analysis().alias_size_in_bytes == num_bytes(sums)


@SLOW
def test_what_is_recomputed_is_not_kept():
    tokens = jnp.zeros((1, 96), jnp.int32)
    peaks = {}
    for remat in ("none", "dots", "full"):
        config = dataclasses.replace(CONFIG, num_layers=6, remat=remat)

        def loss(params, config=config):
            return token_log_probs(config, params, tokens, tokens + 1)[0].sum()

        shapes = jax.eval_shape(lambda c=config: init_params(c, jax.random.key(0)))
        compiled = jax.jit(jax.grad(loss)).lower(shapes).compile()
        peaks[remat] = compiled.memory_analysis().temp_size_in_bytes
    kept = 2 * 6 * 96 * (5 * 64 + 2 * 96)  # bytes of what seven products put out: queries, keys, ..., not `down`'s
    assert peaks["dots"] - peaks["full"] > 0.8 * kept
    assert peaks["none"] - peaks["dots"] > 0.8 * kept


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="remat=True is not known; choose one of none, full, dots"):
        dataclasses.replace(CONFIG, remat=True)
