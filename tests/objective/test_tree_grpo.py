"""The loss: recorded values and gradients, hand numbers, micro-batches, mapped axes, degenerate batches."""

import functools
import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deepsearch_jax.objective import terms, tree_grpo
from deepsearch_jax.objective.settings import AGGREGATIONS, LossSettings

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
RECORDED = json.loads((DATA / "policy_loss.json").read_text())["cases"]


@functools.partial(jax.jit, static_argnames="chosen")
def loss_of(log_probs, old, advantages, mask, chosen, entropy=None, row_mask=None):
    return terms.reduce_loss(tree_grpo.tree_grpo_loss(log_probs, old, advantages, mask, entropy, chosen, row_mask))


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["id"])
def test_recorded_losses_and_gradients(case):
    p, inputs, outputs = case["params"], case["inputs"], case["outputs"]
    chosen = LossSettings(
        clip_low=p["cliprange_low"],
        clip_high=p["cliprange_high"],
        dual_clip=p["clip_ratio_c"],
        aggregation=p["loss_agg_mode"].replace("-", "_"),
    )
    names = ("log_prob", "old_log_prob", "advantages", "response_mask")
    arrays = [jnp.array(inputs[name], jnp.float32) for name in names]
    (loss, metrics), gradient = one_device((*arrays, jnp.zeros_like(arrays[0])), chosen)
    np.testing.assert_allclose(loss, outputs["pg_loss"], atol=1e-5)
    np.testing.assert_allclose(gradient, outputs["grad_log_prob"], atol=1e-5)
    for name in ("pg_clipfrac", "ppo_kl", "pg_clipfrac_lower"):
        np.testing.assert_allclose(metrics[name], outputs[name], atol=1e-5)


# Ratios 1, 2, .5, 20 with advantages 1, 1, -1, -1 under clips .2 / .28 and cap 10: losses -1, -1.28, .8, 10.
LOG_RATIO = jnp.log(jnp.array([[1.0, 2.0], [0.5, 20.0]]))
ADVANTAGES, MASK = jnp.array([[1.0, 1.0], [-1.0, -1.0]]), jnp.ones((2, 2), bool)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (-1 - 1.28 + 0.8 + 10) / 4),
        ({"dual_clip": 0.0}, (-1 - 1.28 + 0.8 + 20) / 4),
        ({"aggregation": "seq_mean_token_sum"}, 8.52 / 2),
        ({"aggregation": "seq_mean_token_mean"}, (-2.28 / 2 + 10.8 / 2) / 2),
        ({"aggregation": "seq_mean_token_sum_norm"}, 8.52 / 2),
        ({"aggregation": "seq_mean_token_sum_norm", "norm_length": 8}, 8.52 / 8),
    ],
)
def test_losses_by_hand(changes, expected):
    loss, metrics = loss_of(LOG_RATIO, jnp.zeros((2, 2)), ADVANTAGES, MASK, LossSettings(**changes))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["pg_clipfrac"], 0.5)  # the tokens with ratios 2 and .5
    np.testing.assert_allclose(metrics["pg_clipfrac_lower"], 0.25 if changes.get("dual_clip", 10.0) else 0.0)
    np.testing.assert_allclose(metrics["mean_ratio"], 23.5 / 4, rtol=1e-5)
    np.testing.assert_allclose(metrics["max_abs_log_ratio"], np.log(20), rtol=1e-6)
    np.testing.assert_allclose(metrics["ppo_kl"], -np.log(20) / 4, rtol=1e-5)
    assert metrics["num_tokens"] == 4
    assert metrics["advantage_mean"] == 0


def test_entropy_is_subtracted_with_its_coefficient():
    entropy = jnp.array([[0.5, 1.5], [2.0, 4.0]])  # mean 2
    plain, _ = loss_of(LOG_RATIO, jnp.zeros((2, 2)), ADVANTAGES, MASK, LossSettings(), entropy)
    got, metrics = loss_of(
        LOG_RATIO, jnp.zeros((2, 2)), ADVANTAGES, MASK, LossSettings(entropy_coefficient=0.25), entropy
    )
    np.testing.assert_allclose(got, plain - 0.5, rtol=1e-6)
    np.testing.assert_allclose(metrics["entropy"], 2.0)
    with pytest.raises(ValueError, match="entropy_coefficient"):
        loss_of(LOG_RATIO, jnp.zeros((2, 2)), ADVANTAGES, MASK, LossSettings(entropy_coefficient=0.25))


def test_rows_that_fill_up_the_batch_do_not_change_the_loss():
    padded = [jnp.concatenate([x, jnp.zeros((3, 2), x.dtype)]) for x in (LOG_RATIO, ADVANTAGES, MASK)]
    for aggregation in AGGREGATIONS:
        chosen = LossSettings(aggregation=aggregation)
        plain, _ = loss_of(LOG_RATIO, jnp.zeros((2, 2)), ADVANTAGES, MASK, chosen)
        got, _ = loss_of(padded[0], jnp.zeros((5, 2)), padded[1], padded[2], chosen, row_mask=jnp.arange(5) < 2)
        np.testing.assert_allclose(got, plain, rtol=1e-6)


def random_batch(seed, num_rows=16, num_tokens=6, uneven=True):
    """log_probs, old, advantages, mask, entropy: rows of very different lengths, some empty, some of one token."""
    rng = np.random.default_rng(seed)
    shape = (num_rows, num_tokens)
    lengths = np.sort(rng.integers(0, num_tokens + 1, num_rows)) if uneven else np.full(num_rows, num_tokens)
    lengths[:3] = [0, 0, 1]
    mask = np.arange(num_tokens)[None] < lengths[:, None]
    old = -rng.exponential(size=shape)
    new, advantages = old + rng.normal(size=shape), 2 * rng.normal(size=shape)
    new[0, 0] = old[0, 0] = np.nan  # outside the mask: must never be read
    entropy = rng.exponential(size=shape)
    return tuple(jnp.array(x, bool if x.dtype == bool else jnp.float32) for x in (new, old, advantages, mask, entropy))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), aggregation=st.sampled_from(AGGREGATIONS))
def test_micro_batches_add_up_to_the_whole_batch(seed, aggregation):
    chosen = LossSettings(aggregation=aggregation, entropy_coefficient=0.1)
    batch = random_batch(seed)
    loss = jax.jit(tree_grpo.tree_grpo_loss, static_argnames="settings")
    whole = loss(*batch, settings=chosen)
    parts = [loss(*(x[i : i + 4] for x in batch), settings=chosen) for i in range(0, 16, 4)]
    chex.assert_trees_all_close(functools.reduce(terms.add_terms, parts), whole, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_the_loss_equals_the_textbook_form_and_is_linear_in_the_advantages_of_one_sign(seed):
    """max(-A r, -A clip(r)), capped for A < 0; and two trajectories through one token share one evaluation."""
    rng = np.random.default_rng(seed)
    chosen = LossSettings(dual_clip=3.0)
    log_ratio, a, b = rng.normal(size=64), rng.normal(size=64), rng.normal(size=64)

    def textbook(advantage):
        ratio = np.exp(log_ratio)
        loss = np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 0.8, 1.28))
        return np.where(advantage < 0, np.minimum(loss, -advantage * 3.0), loss)

    positive, negative = np.maximum(a, 0) + np.maximum(b, 0), np.minimum(a, 0) + np.minimum(b, 0)
    got = tree_grpo.clipped_surrogate(jnp.array(log_ratio), jnp.array(positive), jnp.array(negative), chosen).losses
    np.testing.assert_allclose(got, textbook(a) + textbook(b), rtol=1e-4, atol=1e-5)


@functools.partial(jax.jit, static_argnames="chosen")
def one_device(batch, chosen):
    def loss(log_probs):
        return terms.reduce_loss(tree_grpo.tree_grpo_loss(log_probs, *batch[1:], chosen))

    return jax.value_and_grad(loss, has_aux=True)(batch[0])


def shard_loss_and_gradient(log_probs, *rest, chosen):
    """What a trainer does inside the mapped function: gradient of the share, divided by the weight of all shards."""

    def share(log_probs):
        found = tree_grpo.tree_grpo_loss(log_probs, *rest, chosen)
        return found.weighted_sum, found

    gradient, found = jax.grad(share, has_aux=True)(log_probs)
    total = terms.sum_over_axis(found, "data")
    return *terms.reduce_loss(found, "data"), gradient / terms.divisor(total.weight)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_pmap_on_eight_devices_equals_one_device(aggregation):
    chosen = LossSettings(aggregation=aggregation, entropy_coefficient=0.1)
    batch = random_batch(1)
    (loss, metrics), gradient = one_device(batch, chosen)
    split = [x.reshape(8, 2, *x.shape[1:]) for x in batch]
    mapped = jax.pmap(functools.partial(shard_loss_and_gradient, chosen=chosen), axis_name="data")
    losses, shard_metrics, gradients = mapped(*split)
    np.testing.assert_allclose(losses, np.full(8, loss), atol=1e-6)
    np.testing.assert_allclose(gradients.reshape(gradient.shape), gradient, atol=1e-6)
    chex.assert_trees_all_close({k: v[0] for k, v in shard_metrics.items()}, metrics, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_shard_map_on_eight_devices_equals_one_device(aggregation, axis_type, check_vma):
    chosen = LossSettings(aggregation=aggregation, entropy_coefficient=0.1)
    batch = random_batch(2)
    (loss, metrics), gradient = one_device(batch, chosen)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    mapped = jax.jit(
        jax.shard_map(
            functools.partial(shard_loss_and_gradient, chosen=chosen),
            mesh=mesh,
            in_specs=rows,
            out_specs=(everywhere, everywhere, rows),
            check_vma=check_vma,
        )
    )
    got = mapped(*jax.device_put(batch, NamedSharding(mesh, rows)))
    np.testing.assert_allclose(got[0], loss, atol=1e-6)
    np.testing.assert_allclose(got[2], gradient, atol=1e-6)
    chex.assert_trees_all_close(got[1], metrics, atol=1e-6, rtol=1e-6)
    assert len(got[2].sharding.device_set) == 8


def test_the_gradient_of_the_whole_sharded_loss_is_that_of_one_device():
    chosen, batch = LossSettings(), random_batch(3)
    (loss, _), gradient = one_device(batch, chosen)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec())
    def sharded(*shard):
        return terms.reduce_loss(tree_grpo.tree_grpo_loss(*shard, chosen), "data")[0]

    got_loss, got = jax.jit(jax.value_and_grad(sharded))(*batch)
    np.testing.assert_allclose(got_loss, loss, atol=1e-6)
    np.testing.assert_allclose(got, gradient, atol=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("num_rows", [0, 1, 3])
def test_batches_with_nothing_to_train_on_give_zero_not_nan(aggregation, num_rows):
    nothing = jnp.full((num_rows, 4), jnp.nan)
    mask = jnp.zeros((num_rows, 4), bool)
    chosen = LossSettings(aggregation=aggregation)
    (loss, metrics), gradient = one_device((nothing, nothing, nothing, mask, nothing), chosen)
    assert loss == 0
    assert all(np.isfinite(v) for v in metrics.values())
    np.testing.assert_array_equal(gradient, np.zeros((num_rows, 4)))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_rows_of_one_token_and_empty_rows_are_finite(aggregation):
    mask = jnp.array([[True, False, False], [False, False, False], [True, True, False]])
    log_probs = jnp.full((3, 3), -1.0).at[1].set(jnp.nan)
    (loss, _), gradient = one_device(
        (log_probs, log_probs, jnp.ones((3, 3)), mask, jnp.ones((3, 3))), LossSettings(aggregation=aggregation)
    )
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.asarray(gradient) != 0, mask)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [-300.0, 300.0])
def test_absurd_ratios_have_finite_losses_and_no_gradient(log_ratio, advantage):
    ones = jnp.ones((1, 1))
    (loss, _), gradient = one_device(
        (log_ratio * ones, 0 * ones, advantage * ones, ones.astype(bool), ones), LossSettings()
    )
    assert np.isfinite(loss)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_log_probs_in_bfloat16_are_summed_in_float32():
    found = tree_grpo.tree_grpo_loss(
        LOG_RATIO.astype(jnp.bfloat16), jnp.zeros((2, 2), jnp.bfloat16), ADVANTAGES, MASK, None, LossSettings()
    )
    chex.assert_type(jax.tree.leaves(found), jnp.float32)


def test_supervised_loss_is_the_mean_negative_log_prob_under_the_mask():
    log_probs = jnp.array([[-1.0, -2.0, jnp.nan], [-3.0, jnp.nan, jnp.nan]])
    mask = jnp.array([[1, 1, 0], [1, 0, 0]])
    loss, gradient = jax.value_and_grad(lambda lp: terms.reduce_loss(tree_grpo.supervised_loss(lp, mask))[0])(log_probs)
    np.testing.assert_allclose(loss, 2.0)
    np.testing.assert_allclose(gradient, [[-1 / 3, -1 / 3, 0], [-1 / 3, 0, 0]], rtol=1e-6)
    empty, _ = terms.reduce_loss(tree_grpo.supervised_loss(log_probs, jnp.zeros((2, 3))))
    assert empty == 0


@pytest.mark.parametrize(
    "bad", [{"clip_low": 1.5}, {"clip_high": -0.1}, {"dual_clip": 1.0}, {"aggregation": "mean"}, {"norm_length": -1}]
)
def test_bad_settings_name_the_value(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        LossSettings(**bad)
