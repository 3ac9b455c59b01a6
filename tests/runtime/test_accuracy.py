"""pass@k against counting, votes and intervals against hand numbers."""

import itertools

import numpy as np
import pytest

from deepsearch_jax.runtime.accuracy import bootstrap_interval, majority_vote, pass_at_k, powers_up_to
from deepsearch_jax.verify import same_answer


@pytest.mark.parametrize(("num_samples", "k"), [(1, 1), (5, 1), (5, 2), (6, 3), (6, 6)])
def test_pass_at_k_counts_the_subsets_with_a_correct_sample(num_samples, k):
    for num_correct in range(num_samples + 1):
        samples = [True] * num_correct + [False] * (num_samples - num_correct)
        subsets = list(itertools.combinations(samples, k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        np.testing.assert_allclose(pass_at_k(np.array([num_correct]), num_samples, k), [expected], atol=1e-12)


def test_pass_at_k_of_many_samples_does_not_overflow():
    # 1 - C(999, 500) / C(1000, 500) = 1 - 500 / 1000
    np.testing.assert_allclose(pass_at_k(np.array([1]), 1000, 500), [0.5], rtol=1e-12)


def test_pass_at_k_of_problems_in_any_shape():
    np.testing.assert_allclose(pass_at_k(np.array([[0, 1], [4, 2]]), 4, 2), [[0, 1 / 2], [1, 5 / 6]])


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_of_more_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match=f"k={k} to be between 1 and the 4 samples"):
        pass_at_k(np.array([1]), 4, k)


def test_the_reported_k():
    assert powers_up_to(1) == [1]
    assert powers_up_to(4) == [1, 2, 4]
    assert powers_up_to(6) == [1, 2, 4, 6]


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        (["1", "2", "2"], [1, 0, 0], 0.0),
        (["2", "1", "1"], [0, 1, 1], 1.0),
        (["1/2", "0.5", r"\frac{1}{2}", "3", "3"], [1, 1, 1, 0, 0], 1.0),  # one answer in three forms beats two
        (["1", "2"], [1, 0], 0.5),  # a tie: either is as likely
        ([None, None, None, "1"], [0, 0, 0, 1], 1.0),  # no answer is no vote
        ([None, None], [0, 0], 0.0),
        (["7", "7", "7", "7"], [1, 1, 0, 1], 0.75),  # the verifier late once
    ],
)
def test_majority_vote(answers, correct, expected):
    assert majority_vote(answers, [bool(c) for c in correct], same_answer) == pytest.approx(expected)


def test_the_interval_of_a_share_is_that_of_the_binomial():
    values = np.array([1.0] * 30 + [0.0] * 70)
    low, high = bootstrap_interval(values)
    # normal approximation: .3 +- 1.96 sqrt(.3 .7 / 100)
    assert low == pytest.approx(0.3 - 1.96 * 0.0458, abs=0.012)
    assert high == pytest.approx(0.3 + 1.96 * 0.0458, abs=0.012)
    assert bootstrap_interval(np.ones(5)) == (1.0, 1.0)
