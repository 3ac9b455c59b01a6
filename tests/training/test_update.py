"""The update: against plain formulas, micro-batches, eight devices, non-finite batches, a small real policy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deepsearch_jax import training
from deepsearch_jax.objective import LossSettings
from deepsearch_jax.objective.settings import AGGREGATIONS
from deepsearch_jax.policy import ModelConfig, token_log_probs
from deepsearch_jax.policy import init_params as init_policy
from deepsearch_jax.training import UpdateSettings
from tests.training.models import init_params, log_prob_fn, make_batch
from tests.training.test_optimizer import adamw_by_hand

SETTINGS = UpdateSettings(learning_rate=0.1, warmup_steps=2, max_grad_norm=0.3)
LOSS = LossSettings()


def start(settings=SETTINGS, mesh=None, params=None):
    return training.init_train_state(init_params() if params is None else params, settings, mesh)


def plain_loss(params, batch, entropy_coefficient=0.0):
    """Token-mean of the dual-clip loss with nothing but jnp on the whole batch."""
    log_probs, entropy = log_prob_fn(params, jnp.array(batch.tokens), jnp.array(batch.segment_ids))
    ratio, advantages = jnp.exp(log_probs - batch.old_log_probs), batch.advantages
    losses = jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 0.8, 1.28))
    losses = jnp.where(advantages < 0, jnp.minimum(losses, -10.0 * advantages), losses)
    losses = losses - entropy_coefficient * entropy
    return jnp.sum(losses * batch.loss_mask) / batch.loss_mask.sum()


def test_three_updates_equal_plain_gradients_and_adamw_by_hand():
    batches = [make_batch(seed) for seed in range(3)]
    state, params, gradients = start(), init_params(), []
    expected = jax.tree.map(np.float64, params)
    for batch in batches:
        loss, gradient = jax.value_and_grad(plain_loss)(jax.tree.map(jnp.float32, expected), batch)
        gradients.append(jax.tree.map(np.float64, gradient))
        expected = adamw_by_hand(jax.tree.map(np.float64, init_params()), gradients, SETTINGS)
        state, metrics = training.update(state, batch, log_prob_fn, LOSS, SETTINGS)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        norm = np.sqrt(sum((g**2).sum() for g in gradients[-1].values()))
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    for name, value in expected.items():
        np.testing.assert_allclose(state.params[name], value, rtol=1e-4, atol=1e-5)
    assert int(state.step) == 3
    np.testing.assert_allclose(metrics["learning_rate"], 0.1)


def test_metrics_are_means_over_the_tokens_that_are_trained_on():
    batch = make_batch()
    mask = batch.loss_mask
    log_probs, entropy = map(np.asarray, log_prob_fn(init_params(), batch.tokens, batch.segment_ids))
    log_ratio = (log_probs - batch.old_log_probs)[mask]
    advantages = batch.advantages[mask]
    clipped = np.where(advantages > 0, log_ratio > np.log(1.28), log_ratio < np.log(0.8))
    _, metrics = training.update(start(), batch, log_prob_fn, LOSS, SETTINGS)
    expected = {
        "num_tokens": mask.sum(),
        "entropy": entropy[mask].mean(),
        "ppo_kl": -log_ratio.mean(),
        "mean_ratio": np.exp(log_ratio).mean(),
        "max_abs_log_ratio": abs(log_ratio).max(),
        "advantage_mean": advantages.mean(),
        "pg_clipfrac": clipped.mean(),
        "pg_clipfrac_lower": 0.0,
        "is_applied": True,
        "kl_to_reference": 0.0,  # none is asked for, and no sampler's log-probs are given
        "importance_weight_mean": 1.0,
        "importance_weight_max": 1.0,
        "importance_capped_share": 0.0,
        "sampler_gap_mean": 0.0,
        "sampler_gap_max": 0.0,
        "num_sampled": 0.0,
    }
    assert set(metrics) == set(expected) | {"loss", "grad_norm", "learning_rate"}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_are_the_whole_batch(aggregation):
    chosen, batch = LossSettings(aggregation=aggregation, entropy_coefficient=0.1), make_batch()
    whole = training.update(start(), batch, log_prob_fn, chosen, SETTINGS)
    settings = UpdateSettings(learning_rate=0.1, warmup_steps=2, max_grad_norm=0.3, micro_batch_rows=2)
    chex.assert_trees_all_close(
        training.update(start(), batch, log_prob_fn, chosen, settings), whole, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("aggregation", "axis_type", "micro_batch_rows"),
    [
        ("token_mean", AxisType.Auto, 1),
        ("token_mean", AxisType.Explicit, 0),
        ("seq_mean_token_sum", AxisType.Auto, 2),
        ("seq_mean_token_mean", AxisType.Auto, 1),
        ("seq_mean_token_sum_norm", AxisType.Explicit, 1),
    ],
)
def test_eight_devices_are_one_device(aggregation, axis_type, micro_batch_rows):
    chosen, batch = LossSettings(aggregation=aggregation, entropy_coefficient=0.1), make_batch()
    whole = training.update(start(), batch, log_prob_fn, chosen, SETTINGS)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    settings = UpdateSettings(learning_rate=0.1, warmup_steps=2, max_grad_norm=0.3, micro_batch_rows=micro_batch_rows)
    got = training.update(start(mesh=mesh), batch, log_prob_fn, chosen, settings, mesh)
    chex.assert_trees_all_close(got, whole, rtol=1e-5, atol=1e-6)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(got))


def test_parameters_may_be_spread_over_other_mesh_axes():
    batch = make_batch()
    whole = training.update(start(), batch, log_prob_fn, LOSS, SETTINGS)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    placement = {"embed": PartitionSpec(None, "tensor"), "out": PartitionSpec("fsdp")}
    params = {k: jax.device_put(v, NamedSharding(mesh, placement[k])) for k, v in init_params().items()}
    settings = UpdateSettings(learning_rate=0.1, warmup_steps=2, max_grad_norm=0.3, micro_batch_rows=4)
    got = training.update(start(mesh=mesh, params=params), batch, log_prob_fn, LOSS, settings, mesh)
    chex.assert_trees_all_close(got, whole, rtol=1e-5, atol=1e-6)
    assert not got[0].params["out"].sharding.is_fully_replicated
    assert not got[0].opt_state[1][0].mu["out"].sharding.is_fully_replicated


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("fault", ["advantages", "old_log_probs"])
def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted(fault, num_devices):
    mesh = jax.make_mesh((8,), ("data",)) if num_devices == 8 else None
    good = make_batch()
    values = getattr(good, fault).copy()
    values[tuple(np.argwhere(good.loss_mask)[0])] = np.nan if fault == "advantages" else np.inf
    bad = good.replace(**{fault: values})
    state, _ = training.update(start(mesh=mesh), good, log_prob_fn, LOSS, SETTINGS, mesh)
    before = jax.tree.map(np.asarray, state)
    for count in (1, 2):
        state, metrics = training.update(state, bad, log_prob_fn, LOSS, SETTINGS, mesh)
        chex.assert_trees_all_equal((state.params, state.opt_state), (before.params, before.opt_state))
        assert (int(state.step), int(state.num_skipped), int(state.num_skipped_in_a_row)) == (1, count, count)
        assert not metrics["is_applied"]
    state, metrics = training.update(state, good, log_prob_fn, LOSS, SETTINGS, mesh)
    assert (int(state.step), int(state.num_skipped), int(state.num_skipped_in_a_row)) == (2, 2, 0)
    assert metrics["is_applied"]


def test_a_gradient_that_overflows_is_skipped_though_the_loss_is_finite():
    def overflowing(params, tokens, segment_ids):
        log_probs, entropy = log_prob_fn(params, tokens, segment_ids)
        return log_probs + jnp.sqrt(jnp.sum(params["out"] * 0)), entropy  # the root's slope at 0 is infinite

    state, metrics = training.update(start(), make_batch(), overflowing, LOSS, SETTINGS)
    assert np.isfinite(metrics["loss"])
    assert int(state.num_skipped) == 1
    chex.assert_trees_all_equal(state.params, init_params())


def test_a_batch_without_tokens_to_train_on_changes_nothing_and_is_not_counted():
    batch = make_batch()
    state, _ = training.update(start(), batch, log_prob_fn, LOSS, SETTINGS)
    before = jax.tree.map(np.asarray, state)
    nothing = batch.replace(loss_mask=np.zeros_like(batch.loss_mask))
    state, metrics = training.update(state, nothing, log_prob_fn, LOSS, SETTINGS)
    chex.assert_trees_all_equal(state, before)
    assert metrics["loss"] == 0
    assert not metrics["is_applied"]


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean_token_mean"])
def test_rows_of_filling_change_nothing(aggregation):
    batch, chosen = make_batch(), LossSettings(aggregation=aggregation)
    whole = training.update(start(), batch, log_prob_fn, chosen, SETTINGS)
    filled = training.update(start(), training.pad_rows(batch, 24), log_prob_fn, chosen, SETTINGS)
    chex.assert_trees_all_close(filled, whole, rtol=1e-5, atol=1e-6)


def test_on_policy_ratios_need_no_old_log_probs():
    batch = make_batch()
    settings = UpdateSettings(learning_rate=0.1, warmup_steps=2, max_grad_norm=0.3, on_policy=True)
    garbage = batch.replace(old_log_probs=np.full_like(batch.old_log_probs, np.nan))
    got = training.update(start(), garbage, log_prob_fn, LOSS, settings)
    old = training.compute_log_probs(init_params(), batch, log_prob_fn, SETTINGS)
    expected = training.update(start(), batch.replace(old_log_probs=old), log_prob_fn, LOSS, SETTINGS)
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)
    assert got[1]["mean_ratio"] == 1


def test_supervised_updates_learn_what_follows_the_mask():
    batch = make_batch()
    settings = UpdateSettings(learning_rate=0.05, warmup_steps=0, weight_decay=0.0)
    state, losses = start(settings), []
    log_probs = np.asarray(log_prob_fn(init_params(), batch.tokens, batch.segment_ids)[0])
    for _ in range(30):
        state, metrics = training.supervised_update(state, batch, log_prob_fn, settings)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[0], -log_probs[batch.loss_mask].mean(), rtol=1e-5)
    assert losses[-1] < 0.7 * losses[0]
    mesh = jax.make_mesh((8,), ("data",))
    micro = UpdateSettings(learning_rate=0.05, warmup_steps=0, weight_decay=0.0, micro_batch_rows=1)
    once = training.supervised_update(start(settings), batch, log_prob_fn, settings)
    spread = training.supervised_update(start(micro, mesh), batch, log_prob_fn, micro, mesh)
    chex.assert_trees_all_close(spread, once, rtol=1e-5, atol=1e-6)


def test_later_updates_compile_nothing_and_take_the_state_over():
    traces = []

    def counting(params, tokens, segment_ids):
        traces.append(0)
        return log_prob_fn(params, tokens, segment_ids)

    first = start()
    state, _ = training.update(first, make_batch(0), counting, LOSS, SETTINGS)
    num_traces = len(traces)
    assert first.params["out"].is_deleted()
    for seed in (1, 2):
        state, _ = training.update(state, make_batch(seed), counting, LOSS, UpdateSettings(**vars(SETTINGS)))
    assert len(traces) == num_traces


def test_rows_that_do_not_divide_are_refused_with_the_size_that_fits():
    mesh = jax.make_mesh((8,), ("data",))
    with pytest.raises(ValueError, match=r"12 rows .* 8 devices .* is 16"):
        training.update(start(), make_batch(num_rows=12), log_prob_fn, LOSS, SETTINGS, mesh)
    settings = UpdateSettings(micro_batch_rows=5)
    with pytest.raises(ValueError, match=r"16 rows .* 1 devices .* 5 rows; .* is 20"):
        training.supervised_update(start(), make_batch(), log_prob_fn, settings)
    with pytest.raises(ValueError, match="16 rows"):
        training.compute_log_probs(init_params(), make_batch(), log_prob_fn, settings)
    with pytest.raises(ValueError, match="axis named 'data'"):
        training.update(start(), make_batch(), log_prob_fn, LOSS, SETTINGS, jax.make_mesh((8,), ("batch",)))


POLICY = ModelConfig.tiny(vocab_size=7, hidden_size=16, num_layers=2, num_heads=2)
policy_log_probs = functools.partial(token_log_probs, POLICY, chunk_size=16)


# The large eps keeps AdamW's first step from being the bare sign of gradients, which rounding can flip near zero.
POLICY_SETTINGS = UpdateSettings(learning_rate=0.01, micro_batch_rows=2, eps=1.0)


@pytest.fixture(scope="module")
def policy_updates():
    """A first and a second update of a small decoder on the same rows, on one device and on eight."""
    updates = {}
    for num_devices in (1, 8):
        mesh = jax.make_mesh((8,), ("data",)) if num_devices == 8 else None
        batch, state = make_batch(), start(POLICY_SETTINGS, mesh, init_policy(POLICY, jax.random.key(0)))
        arguments = (policy_log_probs, LOSS, POLICY_SETTINGS, mesh)
        old = training.compute_log_probs(state.params, batch, policy_log_probs, POLICY_SETTINGS, mesh)
        batch = batch.replace(old_log_probs=old)
        state, first = training.update(state, batch, *arguments)
        state, second = training.update(state, batch, *arguments)
        updates[num_devices] = jax.tree.map(np.asarray, (state.params, first, second))
    return updates


@pytest.mark.parametrize("num_devices", [1, 8])
def test_a_real_policy_has_ratio_exactly_one_on_its_own_samples(policy_updates, num_devices):
    _, first, second = policy_updates[num_devices]
    assert first["max_abs_log_ratio"] == 0
    assert first["mean_ratio"] == 1
    assert first["is_applied"]
    assert second["max_abs_log_ratio"] > 0  # after the update the samples are no longer its own


def test_a_real_policy_is_updated_alike_on_eight_devices(policy_updates):
    chex.assert_trees_all_close(policy_updates[8], policy_updates[1], rtol=1e-5, atol=1e-6)
