"""Drawn tokens follow the policy: chi-square with fixed keys, and the cuts by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from deepsearch_jax.decode import DecodeSettings, cut_tail, sample_token

DRAWS = 40_000
LOGITS = np.asarray(2.0 * jax.random.normal(jax.random.key(0), (53,)))  # a prime: blocks are padded


@functools.partial(jax.jit, static_argnames="settings")
def draw(key, logits, settings):
    return jax.vmap(lambda k: sample_token(k, logits, settings))(jax.random.split(key, DRAWS))


def softmax(x):
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def reference(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Probabilities by sorting, the plain way."""
    logits = logits / temperature
    order = np.argsort(-logits, kind="stable")
    keep = np.ones(logits.size, bool)
    if top_k:
        keep[order[top_k:]] = False
    probabilities = softmax(np.where(keep, logits, -np.inf))
    before = np.cumsum(probabilities[order]) - probabilities[order]
    keep[order[before >= top_p]] = False
    keep[probabilities < min_p * probabilities.max()] = False
    return softmax(np.where(keep, logits, -np.inf))


@pytest.mark.parametrize(
    ("size", "cut"),
    [
        (53, {}),
        (48, {}),
        (53, {"temperature": 0.6}),
        (53, {"top_k": 7}),
        (48, {"top_p": 0.8}),
        (53, {"temperature": 1.4, "top_k": 20, "top_p": 0.9}),
        (53, {"min_p": 0.1}),
        (48, {"temperature": 1.7, "min_p": 0.2}),
        (53, {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "min_p": 0.15}),
    ],
)
def test_frequencies_and_log_probs_match_the_distribution(size, cut):
    logits = LOGITS[:size].astype(np.float64)  # chisquare compares sums to 1e-8
    sample = draw(jax.random.key(1), jnp.array(logits, jnp.float32), DecodeSettings(**cut))
    want = reference(logits, **cut)
    counts = np.bincount(sample.token, minlength=size)
    assert counts[want == 0].sum() == 0
    if cut:
        assert not cut.keys() - {"temperature"} or (want == 0).any()
    kept = want > 0
    assert stats.chisquare(counts[kept], DRAWS * want[kept]).pvalue > 1e-3
    np.testing.assert_allclose(np.exp(sample.sampling_log_prob), want[sample.token], rtol=2e-5)
    np.testing.assert_allclose(np.exp(sample.log_prob), softmax(logits)[sample.token], rtol=2e-5)


@pytest.mark.parametrize("cut", [{}, {"temperature": 0.0}, {"temperature": 0.5, "top_k": 3}])
@pytest.mark.parametrize("size", [53, 48])
def test_the_entropy_is_that_of_the_raw_policy(size, cut):
    logits = LOGITS[:size].astype(np.float64)
    log_probs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    key = jax.random.key(0)
    got = sample_token(key, jnp.array(logits, jnp.float32), DecodeSettings(entropy=True, **cut))
    np.testing.assert_allclose(got.exact_entropy, -(np.exp(log_probs) * log_probs).sum(), rtol=1e-5)
    same = sample_token(key, jnp.array(logits, jnp.float32), DecodeSettings(**cut))
    assert same.exact_entropy is None
    assert same[:3] == got[:3]


@pytest.mark.parametrize(
    ("logits", "want"),
    [([-jnp.inf, 3.0, -jnp.inf, 3.0], np.log(2)), ([0.0, 200.0, -5.0], 0.0), ([30.0] * 5, np.log(5)), ([7.0], 0.0)],
)
def test_entropies_at_the_ends(logits, want):
    sample = sample_token(jax.random.key(0), jnp.array(logits), DecodeSettings(entropy=True))
    np.testing.assert_allclose(sample.exact_entropy, want, atol=1e-6)


def test_temperature_zero_takes_the_lowest_of_the_most_likely_ids():
    logits = jnp.array([0.0, 3.0, -1.0, 3.0, 2.0])
    sample = sample_token(jax.random.key(0), logits, DecodeSettings(temperature=0.0))
    assert sample.token == 1
    np.testing.assert_allclose(sample.log_prob, jax.nn.log_softmax(logits)[1], rtol=1e-6)
    assert sample.sampling_log_prob == 0


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "kept"),
    [
        (1, 1.0, 0.0, [2]),
        (2, 1.0, 0.0, [2, 0, 3]),  # 0 and 3 tie for the second place: both stay
        (0, 0.4, 0.0, [2]),  # .4 is enough for .4
        (0, 0.41, 0.0, [2, 0, 3]),
        (0, 0.85, 0.0, [2, 0, 3, 1]),
        (3, 0.55, 0.0, [2, 0, 3]),  # of .5/.25/.25 after the cut to three
        (3, 0.5, 0.0, [2]),
        (5, 1.0, 0.0, [0, 1, 2, 3, 4]),
        (9, 1.0, 0.0, [0, 1, 2, 3, 4]),
        (0, 1.0, 0.49, [2, 0, 3]),  # .2 of .4 is .5
        (0, 1.0, 0.51, [2]),
        (0, 1.0, 0.37, [2, 0, 3, 1]),
        (0, 1.0, 1.0, [2]),
        (3, 0.55, 0.51, [2]),
    ],
)
def test_cuts_by_hand(top_k, top_p, min_p, kept):
    logits = np.log(np.array([0.2, 0.15, 0.4, 0.2, 0.05], np.float32))
    got = cut_tail(jnp.array(logits), top_k, top_p, min_p)
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(got)), sorted(kept))
    np.testing.assert_array_equal(np.asarray(got)[kept], logits[kept])


def test_cuts_survive_negative_and_extreme_logits():
    logits = jnp.array([-1e30, -3.0, -0.0, 0.0, 1e30, -2.0], jnp.float32)
    np.testing.assert_array_equal(np.isfinite(cut_tail(logits, 2, 1.0)), [False, False, False, True, True, False])
    np.testing.assert_array_equal(np.isfinite(cut_tail(logits, 0, 0.999)), np.arange(6) == 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "num_samples=0 must be at least 1"),
        ({"temperature": -1.0}, r"temperature=-1.0 must be >= 0"),
        ({"temperature": float("nan")}, r"temperature=nan must be >= 0 and finite"),
        ({"top_k": -2}, "top_k=-2 must be >= 0"),
        ({"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]"),
        ({"min_p": 1.5}, r"min_p=1.5 must be in \[0, 1\]"),
        ({"recompute_chunk": 0}, "recompute_chunk=0 must be at least 1"),
        ({"max_depth": -1}, "max_depth=-1 must not be negative"),
    ],
)
def test_settings_without_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DecodeSettings(**changes)
