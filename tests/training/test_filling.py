"""Batches of trees with room for more: the micro-batches behind the last tree are skipped and change nothing."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax import training
from deepsearch_jax.objective import LossSettings
from deepsearch_jax.training import Paths, UpdateSettings, first_fit, pack_rows, token_tree
from tests.training.models import VOCABULARY, init_params

LENGTH = 16
SETTINGS = UpdateSettings(learning_rate=1e-2, warmup_steps=0)
COUNTED = []


def log_prob_fn(params, tokens, tree_ids, positions, parents, ends):
    """Of each token after its parent; counts the micro-batches that it is run on."""
    jax.debug.callback(lambda: COUNTED.append(1))
    before = jnp.take_along_axis(tokens, jnp.maximum(parents, 0), axis=1)
    log_softmax = jax.nn.log_softmax(params["embed"][before] @ params["out"])
    taken = jnp.take_along_axis(log_softmax, tokens[..., None], axis=-1)[..., 0]
    entropy = -jnp.sum(jnp.exp(log_softmax) * log_softmax, axis=-1)
    is_after = (tree_ids != 0) & (parents >= 0)
    return tuple(jnp.where(is_after, x, 0) for x in (taken, entropy))


@pytest.fixture(scope="module")
def trees():
    rng = np.random.default_rng(0)
    return [
        token_tree(
            Paths(
                list(rng.integers(0, VOCABULARY, 2)),
                [rng.integers(0, VOCABULARY, size).astype(np.int32) for size in (3, 4, 2)],
                [np.full(size, advantage, np.float32) for size, advantage in ((3, 1.0), (4, -1.0), (2, 0.5))],
                [np.full(size, -2.0, np.float32) for size in (3, 4, 2)],
            ),
            LossSettings(), LENGTH,
        )
        for _ in range(5)
    ]  # fmt: skip


def run(trees, rows, num_rows, micro_batch_rows, mesh=None):
    """Parameters after two updates, metrics, log-probs of the rows with trees, and micro-batches that were computed."""
    settings = dataclasses.replace(SETTINGS, micro_batch_rows=micro_batch_rows)
    batch = pack_rows(trees, rows, num_rows, LENGTH)
    state = training.init_train_state(init_params(), settings, mesh)
    found = training.compute_log_probs(state.params, batch, log_prob_fn, settings, mesh)
    COUNTED.clear()
    for _ in range(2):
        state, metrics = training.update(state, batch, log_prob_fn, LossSettings(), settings, mesh)
    jax.block_until_ready(state)
    jax.effects_barrier()
    in_use = np.any(batch.tree_ids != 0, axis=1)
    computed = training.num_computed_tokens(batch, settings, mesh)
    return (state.params, metrics, found[in_use]), len(COUNTED), computed


def test_micro_batches_of_filling_are_skipped_and_change_nothing(trees):
    rows = first_fit([len(tree) for tree in trees], LENGTH)
    assert len(rows) in (3, 4, 5)
    full = -(-len(rows) // 2) * 2
    expected, count, tokens = run(trees, rows, full, 2)
    assert count == full  # twice half of the rows
    found, count, padded_tokens = run(trees, rows, 16, 2)
    chex.assert_trees_all_equal(found, expected)
    assert (count, padded_tokens) == (full, tokens)
    at_once, _, _ = run(trees, rows, full, 0)
    chex.assert_trees_all_close(found, at_once, rtol=1e-5, atol=1e-6)


def test_devices_skip_what_is_filling(trees):
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    rows = [[0], [1], [2], [3], [4]]
    expected, _, _ = run(trees, rows, 8, 0)
    # Each device holds four rows of a batch of 8 and computes two at a time: three rows and two are filled in turn.
    dealt = [[0], [2], [4], [], [1], [3], [], []]
    found, _, tokens = run(trees, dealt, 8, 2, mesh)
    assert tokens == 8 * LENGTH
    chex.assert_trees_all_close(found[:2], expected[:2], rtol=1e-5, atol=1e-6)
    dealt = [[0], [1], [], [], [2], [], [], []]
    _, _, tokens = run(trees, dealt, 8, 2, mesh)
    assert tokens == 4 * LENGTH


def test_devices_of_a_mesh_that_spreads_parameters_skip_it_too(trees):
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), devices=jax.devices()[:4], axis_types=auto)
    expected, _, _ = run(trees, [[0], [1], [2], [3], [4]], 8, 0)
    found, _, tokens = run(trees, [[0], [4], [], [1], [], [], [2], [], [], [3], [], []], 12, 1, mesh)
    assert tokens == 8 * LENGTH  # two of three micro-batches of a row a device
    chex.assert_trees_all_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(found[1], expected[1], rtol=1e-5, atol=1e-6)


def test_a_batch_of_filling_alone_changes_nothing():
    before = jax.device_get(init_params())
    (params, metrics, _), count, _ = run([], [], 4, 2)
    chex.assert_trees_all_equal(params, before)
    assert count == 0
    assert not metrics["is_applied"]
