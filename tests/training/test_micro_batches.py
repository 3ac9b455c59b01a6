"""Batches cut by tokens: the cuts by hand, and updates equal to those of the whole batch."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from deepsearch_jax import training
from deepsearch_jax.objective import LossSettings
from deepsearch_jax.objective.settings import AGGREGATIONS
from deepsearch_jax.training import UpdateSettings, cut_by_tokens, take_rows
from tests.training.models import init_params, log_prob_fn, make_batch
from tests.training.test_packing import paths_of

SETTINGS = UpdateSettings(learning_rate=0.1, warmup_steps=2, max_grad_norm=0.3)
BY_TOKENS = dataclasses.replace(SETTINGS, micro_batch_tokens=256)


def as_lists(cuts):
    return [(cut.rows.tolist(), cut.length) for cut in cuts]


def test_cuts_by_hand():
    lengths = [100, 60, 10, 0, 64, 200]
    # 200 is rounded to 256: one row. 100 to 128: two would fit, but one is of that length. 64 and less to 64: four fit.
    assert as_lists(cut_by_tokens(lengths, 300, 256, 1)) == [([5], 256), ([0], 128), ([4, 1, 2, -1], 64)]
    assert as_lists(cut_by_tokens(lengths, 220, 256, 1))[0] == ([5], 220)  # no longer than the batch
    assert as_lists(cut_by_tokens([300, 80], 512, 100, 1)) == [([0], 384), ([1], 128)]  # too long: alone
    assert as_lists(cut_by_tokens([64, 60], 64, 192, 1)) == [([0, 1], 64)]  # three fit, a half of them is two
    assert cut_by_tokens([0, 0], 64, 64, 2) == []


def test_every_device_has_as_many_rows_and_free_places_take_shorter_ones():
    # One row of 200 needs 256 tokens on one device; the other three have room for rows of up to as many.
    got = as_lists(cut_by_tokens([64] * 5 + [200, 130], 256, 256, 4))
    assert got == [([5, 6, 0, 1], 256), ([2, 3, 4, -1], 64)]
    # Nine rows of 64 on two devices of 256 tokens: four each, then one and a half micro-batch.
    got = as_lists(cut_by_tokens([64] * 9, 256, 256, 2))
    assert got == [([0, 1, 2, 3, 4, 5, 6, 7], 64), ([8, -1], 64)]


@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_computed_once_within_the_budget(seed):
    rng = np.random.default_rng(seed)
    lengths, devices = rng.integers(0, 1000, rng.integers(1, 80)), int(rng.integers(1, 9))
    cuts = cut_by_tokens(lengths, 1024, 2048, devices)
    rows = np.concatenate([cut.rows for cut in cuts])
    np.testing.assert_array_equal(np.sort(rows[rows >= 0]), np.flatnonzero(lengths))
    for cut in cuts:
        assert len(cut.rows) % devices == 0
        assert len(cut.rows) // devices * cut.length <= 2048
        assert lengths[cut.rows[cut.rows >= 0]].max() <= cut.length
    assert len({cut.length for cut in cuts}) <= 9  # of 64, 128, 192, 256, ... 1024


def test_rows_of_a_cut():
    batch = {"tokens": np.arange(12).reshape(3, 4) + 1, "divisors": np.array([1.0, 2, 3])}
    got = take_rows(batch, training.Cut(np.array([2, -1, 0]), 2))
    np.testing.assert_array_equal(got["tokens"], [[9, 10], [0, 0], [1, 2]])
    np.testing.assert_array_equal(got["divisors"], [3, 0, 1])


def start(mesh=None):
    return training.init_train_state(init_params(), SETTINGS, mesh)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# The one whose divisor is the width of a row runs always.
@pytest.mark.parametrize("aggregation", [a if a.endswith("norm") else slow(a) for a in AGGREGATIONS])
def test_updates_by_tokens_are_those_of_the_whole_batch(aggregation):
    chosen, batch = LossSettings(aggregation=aggregation, entropy_coefficient=0.1), make_batch(num_tokens=200)
    whole = training.update(start(), batch, log_prob_fn, chosen, SETTINGS)
    assert training.num_computed_tokens(batch, BY_TOKENS) < 0.75 * batch.tokens.size
    got = training.update(start(), training.pad_rows(batch, 64), log_prob_fn, chosen, BY_TOKENS)
    chex.assert_trees_all_close(got, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "axis_type"), [((8,), AxisType.Auto), slow((8,), AxisType.Explicit), ((2, 2, 2), AxisType.Auto)]
)
def test_devices_change_nothing(shape, axis_type):
    chosen, batch = LossSettings(aggregation="seq_mean_token_mean"), make_batch(num_rows=23, num_tokens=200)
    whole = training.update(start(), batch, log_prob_fn, chosen, SETTINGS)
    axes = ("data", "fsdp", "tensor")[: len(shape)]
    mesh = jax.make_mesh(shape, axes, axis_types=(axis_type,) * len(shape))
    got = training.update(start(mesh), batch, log_prob_fn, chosen, BY_TOKENS, mesh)
    chex.assert_trees_all_close(got, whole, rtol=1e-5, atol=1e-6)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(got[0]))


def test_packed_trees_are_cut_too():
    rng = np.random.default_rng(0)
    trees = []
    for _ in range(6):
        beginning = rng.integers(0, 7, rng.integers(20, 100))
        responses = [(np.concatenate([beginning, rng.integers(0, 7, 30)]), float(rng.normal())) for _ in range(3)]
        trees.append(training.token_tree(paths_of([1, 2], *responses), LossSettings(), 256))
    rows = training.first_fit([len(tree) for tree in trees], 256)
    batch = training.pack_rows(trees, rows, 8, 256)

    def of_trees(params, tokens, tree_ids, positions, parents, ends):
        before = jnp.take_along_axis(tokens, jnp.maximum(parents, 0), axis=1)
        log_softmax = jax.nn.log_softmax(params["embed"][before] @ params["out"])
        taken = jnp.take_along_axis(log_softmax, tokens[..., None], axis=-1)[..., 0]
        entropy = -jnp.sum(jnp.exp(log_softmax) * log_softmax, axis=-1)
        return tuple(jnp.where(parents >= 0, x, 0) for x in (taken, entropy))

    whole = training.update(start(), batch, of_trees, LossSettings(), SETTINGS)
    got = training.update(start(), batch, of_trees, LossSettings(), BY_TOKENS)
    chex.assert_trees_all_close(got, whole, rtol=1e-5, atol=1e-6)
    assert training.num_computed_tokens(batch, BY_TOKENS) < len(rows) * 256 < batch.tokens.size


def test_old_log_probs_by_tokens_are_those_of_the_whole_batch():
    batch = make_batch(num_tokens=200)
    whole = training.compute_log_probs(init_params(), batch, log_prob_fn, SETTINGS)
    got = training.compute_log_probs(init_params(), batch, log_prob_fn, BY_TOKENS)
    np.testing.assert_allclose(got, whole, rtol=1e-6)


@pytest.mark.slow
def test_supervised_updates_by_tokens():
    batch = make_batch(num_tokens=200)
    whole = training.supervised_update(start(), batch, log_prob_fn, SETTINGS)
    got = training.supervised_update(start(), batch, log_prob_fn, BY_TOKENS)
    chex.assert_trees_all_close(got, whole, rtol=1e-5, atol=1e-6)


def test_few_shapes_are_traced_and_a_bad_batch_changes_nothing():
    shapes = []

    def counting(params, tokens, segment_ids):
        shapes.append(tokens.shape)
        return log_prob_fn(params, tokens, segment_ids)

    first = start()
    state = first
    for seed in range(4):
        state, _ = training.update(state, make_batch(seed, num_tokens=200), counting, LossSettings(), BY_TOKENS)
    assert first.params["out"].is_deleted()
    traced = set(shapes)
    assert traced <= {(1, 200), (1, 192), (2, 128), (1, 128), (4, 64), (2, 64), (1, 64)}
    before, bad = jax.tree.map(np.asarray, state), make_batch(num_tokens=200)
    bad = bad.replace(advantages=np.where(bad.loss_mask, np.nan, 0).astype(np.float32))
    state, metrics = training.update(state, bad, counting, LossSettings(), BY_TOKENS)
    assert not metrics["is_applied"]
    chex.assert_trees_all_equal(state.params, before.params)
    assert int(state.num_skipped) == 1
    empty = training.pad_rows(jax.tree.map(lambda x: x[:0], make_batch()), 4)
    state, metrics = training.update(state, empty, counting, LossSettings(), BY_TOKENS)
    chex.assert_trees_all_equal(state.params, before.params)


def test_two_ways_to_cut_are_refused():
    with pytest.raises(ValueError, match="micro_batch_rows=2 and micro_batch_tokens=64"):
        UpdateSettings(micro_batch_rows=2, micro_batch_tokens=64)
