"""The hard subset and how a group is filled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsearch_jax.cache import filtering
from deepsearch_jax.cache.filtering import FilterSettings


@pytest.mark.parametrize(
    ("correct", "samples", "threshold", "expected"),
    [
        (0, 4, 0.25, True),
        (1, 4, 0.25, False),  # exactly at the threshold is not below it
        (3, 10, 0.3, False),  # also where 0.3 has no exact binary form
        (2, 10, 0.3, True),
        (4, 4, 1.0, False),
        (0, 0, 0.25, False),
    ],
)
def test_hard_is_strictly_below_the_threshold(correct, samples, threshold, expected):
    assert bool(filtering.is_hard(jnp.int32(correct), jnp.int32(samples), threshold)) is expected


@settings(deadline=None, max_examples=50)
@given(samples=st.integers(1, 64), data=st.data())
def test_hard_equals_exact_fractions(samples, data):
    at = data.draw(st.integers(1, samples))
    correct = data.draw(st.integers(0, samples))
    assert bool(filtering.is_hard(jnp.int32(correct), jnp.int32(samples), at / samples)) == (correct < at)


def test_the_next_subset_is_the_hard_part_of_the_present_one():
    correct, samples = jnp.array([0, 1, 0, 4, 0]), jnp.array([4, 4, 4, 4, 0])
    in_subset = jnp.array([True, True, False, True, True])
    got = filtering.next_subset(jax.random.key(0), jnp.arange(5), correct, samples, in_subset, FilterSettings())
    np.testing.assert_array_equal(got, [True, False, False, False, False])


def test_a_share_of_easy_problems_stays_whatever_their_order():
    ids = jnp.arange(2000)
    key, solved, samples = jax.random.key(3), jnp.full(2000, 4), jnp.full(2000, 4)
    chosen = FilterSettings(easy_share=0.25)
    everywhere = jnp.ones(2000, bool)
    got = filtering.next_subset(key, ids, solved, samples, everywhere, chosen)
    assert 430 < int(got.sum()) < 570  # 500 expected, standard deviation 19
    backwards = filtering.next_subset(key, ids[::-1], solved, samples, everywhere, chosen)
    np.testing.assert_array_equal(backwards[::-1], got)
    other = filtering.next_subset(jax.random.key(4), ids, solved, samples, everywhere, chosen)
    assert (other != got).any()
    unsampled = filtering.next_subset(key, ids, solved * 0, samples * 0, everywhere, chosen)
    assert not unsampled.any()


@pytest.mark.parametrize("chosen", [[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
def test_subset_indices_are_in_order(chosen):
    indices, count = filtering.subset_indices(jnp.array(chosen, bool))
    expected = np.flatnonzero(chosen)
    assert int(count) == len(expected)
    np.testing.assert_array_equal(indices, [*expected, *[-1] * (4 - len(expected))])
    assert indices.dtype == jnp.int32


@pytest.mark.parametrize(
    ("cached", "min_direct", "expected"),
    [(0, 1, (0, 8)), (3, 1, (3, 5)), (7, 1, (7, 1)), (20, 1, (7, 1)), (20, 0, (8, 0)), (20, 8, (0, 8))],
)
def test_the_more_is_cached_the_fewer_direct_rollouts(cached, min_direct, expected):
    got = filtering.group_fill(jnp.int32(cached), 8, min_direct)
    assert tuple(int(x) for x in got) == expected


def test_group_fill_refuses_more_direct_rollouts_than_the_group():
    with pytest.raises(ValueError, match=r"min_direct=9 .* group_size=8"):
        filtering.group_fill(jnp.int32(1), 8, 9)


def test_cached_solutions_are_chosen_by_key_uniformly_and_without_repeats():
    choose = jax.jit(
        jax.vmap(lambda key: filtering.choose_cached(key, jnp.int32(4), jnp.int32(2), 6)),
    )
    keys = jax.random.split(jax.random.key(0), 1200)
    rows = np.asarray(choose(keys))
    np.testing.assert_array_equal(rows, np.asarray(choose(keys)))
    assert (rows[:, 2:] == -1).all()
    assert (rows[:, 0] >= 0).all()
    assert (rows[:, 0] < rows[:, 1]).all()
    assert (rows[:, 1] < 4).all()
    pairs = np.unique(rows[:, 0] * 4 + rows[:, 1], return_counts=True)[1]
    assert len(pairs) == 6  # all pairs of four, each expected 200 times, standard deviation 13
    assert (abs(pairs - 200) < 65).all()


def test_all_cached_solutions_are_used_if_they_fit():
    got = filtering.choose_cached(jax.random.key(0), jnp.int32(3), jnp.int32(3), 5)
    np.testing.assert_array_equal(got, [0, 1, 2, -1, -1])
    none = filtering.choose_cached(jax.random.key(0), jnp.int32(0), jnp.int32(0), 5)
    np.testing.assert_array_equal(none, [-1] * 5)


@pytest.mark.parametrize("bad", [{"num_samples": 0}, {"threshold": 0.0}, {"easy_share": 1.5}, {"min_direct": -1}])
def test_bad_settings_name_the_value(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        FilterSettings(**bad)
