"""Importance weights and the pull to a reference policy: hand numbers, exact expectations over a small vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax.objective import LossSettings, importance_weights, kl_estimate, reduce_loss, tree_grpo_loss

# Log-probs by the training forward less the sampler's: 0.5, 2, unknown, -1. Advantages 1, 1, 2, -1.
LOG_PROBS = jnp.array([[-1.0, -1.0], [-2.0, -3.0]])
SAMPLED = jnp.array([[-1.5, -3.0], [jnp.nan, -2.0]])
ADVANTAGES, MASK = jnp.array([[1.0, 1.0], [2.0, -1.0]]), jnp.ones((2, 2), bool)
WEIGHTS = np.array([[np.exp(0.5), 2.0], [1.0, np.exp(-1)]])  # under a cap of 2


def loss_of(log_probs, settings, old=None, sampled=SAMPLED, reference=None):
    old = jax.lax.stop_gradient(log_probs) if old is None else old  # on policy
    return reduce_loss(
        tree_grpo_loss(
            log_probs, old, ADVANTAGES, MASK, None, settings, sampler_log_probs=sampled, reference_log_probs=reference
        )
    )


def test_tokens_are_weighted_by_hand_numbers_through_which_no_gradient_flows():
    settings = LossSettings(importance_cap=2.0)
    (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)(LOG_PROBS, settings)
    np.testing.assert_allclose(loss, -(ADVANTAGES * WEIGHTS).mean(), rtol=1e-6)
    np.testing.assert_allclose(gradient, -(ADVANTAGES * WEIGHTS) / 4, rtol=1e-6)
    np.testing.assert_allclose(metrics["importance_weight_mean"], WEIGHTS.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["importance_weight_max"], np.exp(2), rtol=1e-6)
    assert metrics["importance_capped_share"] == 0.25
    np.testing.assert_allclose(metrics["sampler_gap_mean"], 3.5 / 3, rtol=1e-6)
    assert (metrics["sampler_gap_max"], metrics["num_sampled"]) == (2, 3)


def test_without_a_cap_nothing_is_weighted_and_the_gap_is_told():
    (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)(LOG_PROBS, LossSettings())
    np.testing.assert_allclose(loss, -ADVANTAGES.mean(), rtol=1e-6)
    np.testing.assert_allclose(gradient, -ADVANTAGES / 4, rtol=1e-6)
    assert metrics["importance_weight_mean"] == 1
    assert metrics["sampler_gap_max"] == 2


def test_off_policy_the_weight_is_that_of_the_old_policy_and_the_gap_that_of_the_new_one():
    # New - old is 0.1 everywhere: ratio e^0.1, within the clips; weights as before, from old - sampler's.
    new = LOG_PROBS + 0.1
    loss, metrics = loss_of(new, LossSettings(importance_cap=2.0), old=LOG_PROBS)
    np.testing.assert_allclose(loss, -(ADVANTAGES * WEIGHTS).mean() * np.exp(0.1), rtol=1e-6)
    np.testing.assert_allclose(metrics["sampler_gap_max"], 2.1, rtol=1e-6)


def test_where_the_ratio_is_taken_to_the_sampler_the_weight_is_one():
    """Weight times ratio is new / sampler either way: here all of it is in the ratio."""
    known = jnp.where(jnp.isnan(SAMPLED), LOG_PROBS, SAMPLED)
    wide = LossSettings(importance_cap=100.0, clip_low=1.0, clip_high=100.0, dual_clip=0.0)
    in_ratio, metrics = loss_of(LOG_PROBS, wide, old=known, sampled=known)
    in_weight, _ = loss_of(LOG_PROBS, wide, sampled=known)
    assert metrics["importance_weight_mean"] == 1
    np.testing.assert_allclose(in_ratio, in_weight, rtol=1e-6)


@pytest.mark.parametrize("log_weight", [-400.0, 400.0])
def test_absurd_weights_are_finite(log_weight):
    weights, raw = importance_weights(jnp.array([log_weight]), 2.0)
    assert 0 < weights[0] <= 2
    assert np.isfinite(raw[0])


P, Q = jnp.array([0.5, -0.3, 1.2, 0.0]), jnp.array([0.1, 0.4, -0.2, 0.3])  # logits of policy and reference


def expected(logits, estimator, weights=None):
    """Mean of the estimator over the policy's own tokens; `weights` keeps the sampling fixed for the gradient."""
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(Q)
    weights = jnp.exp(log_p) if weights is None else weights
    return jnp.sum(weights * kl_estimate(log_p, log_q, estimator))


def divergence(logits):
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(Q)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_expectation_of_the_unbiased_estimators_is_the_divergence(estimator):
    np.testing.assert_allclose(expected(P, estimator), divergence(P), rtol=1e-5)


def test_expected_gradients_of_the_estimators():
    """On the policy's own samples: k1 none, k2 that of KL(policy || reference), k3 that of KL(reference || policy)."""
    sampled = jax.nn.softmax(P)
    k1, k2, k3 = (jax.grad(expected)(P, estimator, sampled) for estimator in ("k1", "k2", "k3"))
    np.testing.assert_allclose(k1, np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(k2, jax.grad(divergence)(P), atol=1e-6)
    np.testing.assert_allclose(k3, jax.nn.softmax(P) - jax.nn.softmax(Q), atol=1e-6)


@pytest.mark.parametrize(("estimator", "value"), [("k1", 0.5), ("k2", 0.125), ("k3", np.exp(-0.5) - 0.5)])
def test_the_divergence_is_added_with_its_coefficient_and_told(estimator, value):
    settings = LossSettings(kl_coefficient=0.2, kl_estimator=estimator)
    loss, metrics = loss_of(LOG_PROBS, settings, reference=LOG_PROBS - 0.5)
    np.testing.assert_allclose(loss, -ADVANTAGES.mean() + 0.2 * value, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl_to_reference"], value, rtol=1e-5)


def test_the_divergence_is_weighted_like_the_tokens():
    """Mean of row means: rows of two tokens and of one, each 0.5 nats, and 1.5 more at the first."""
    mask, zeros = jnp.array([[True, True], [True, False]]), jnp.zeros((2, 2))
    settings = LossSettings(kl_coefficient=0.2, kl_estimator="k1", aggregation="seq_mean_token_mean")
    reference = jnp.array([[-2.0, -0.5], [-0.5, jnp.nan]])
    terms = tree_grpo_loss(zeros, zeros, zeros, mask, None, settings, reference_log_probs=reference)
    loss, metrics = reduce_loss(terms)
    np.testing.assert_allclose(loss, 0.2 * ((2.0 + 0.5) / 2 + 0.5) / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics["kl_to_reference"], 3.0 / 3, rtol=1e-6)


def test_what_is_needed_and_not_given_is_named():
    with pytest.raises(ValueError, match=r"importance_cap=2\.0 needs the sampler's log-prob"):
        loss_of(LOG_PROBS, LossSettings(importance_cap=2.0), sampled=None)
    with pytest.raises(ValueError, match=r"kl_coefficient=0\.1 needs the reference policy's log-prob"):
        loss_of(LOG_PROBS, LossSettings(kl_coefficient=0.1))


@pytest.mark.parametrize("bad", [{"importance_cap": 0.5}, {"kl_coefficient": -0.1}, {"kl_estimator": "k4"}])
def test_bad_settings_name_the_value(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        LossSettings(**bad)
