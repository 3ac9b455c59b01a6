"""Token trees and rows of them, by hand and against dictionaries of prefixes."""

import numpy as np
import pytest

from deepsearch_jax.objective import LossSettings
from deepsearch_jax.training import Paths, first_fit, num_pairs, pack_rows, token_tree, without_idle_ends


def paths_of(prompt, *responses, log_probs=None):
    tokens, advantages = zip(*responses)
    advantages = [np.full(len(t), a, np.float32) if np.isscalar(a) else np.array(a) for t, a in zip(tokens, advantages)]
    return Paths(prompt, [np.array(t, np.int32) for t in tokens], advantages, log_probs or [None] * len(tokens))


#      prompt 7 8, then:   1 - 2 - 3     A = 1
#                          1 - 2 - 4     A = -2
#                          1             A = 0.5, ends where the others go on
TREE = paths_of([7, 8], ([1, 2, 4], -2.0), ([1, 2, 3], 1.0), ([1], 0.5))


def test_shared_beginnings_stand_once_in_preorder():
    tree = token_tree(TREE, LossSettings(), 8)
    np.testing.assert_array_equal(tree.tokens, [7, 8, 1, 2, 3, 4])
    np.testing.assert_array_equal(tree.positions, [0, 1, 2, 3, 4, 4])
    np.testing.assert_array_equal(tree.parents, [-1, 0, 1, 2, 3, 3])
    np.testing.assert_array_equal(tree.ends, [6, 6, 6, 6, 5, 6])
    np.testing.assert_array_equal(tree.sums.num_paths, [0, 0, 3, 2, 1, 1])
    np.testing.assert_array_equal(tree.sums.num_positive, [0, 0, 2, 1, 1, 0])
    np.testing.assert_array_equal(tree.sums.num_negative, [0, 0, 1, 1, 0, 1])
    np.testing.assert_array_equal(tree.sums.positive, [0, 0, 1.5, 1, 1, 0])
    np.testing.assert_array_equal(tree.sums.negative, [0, 0, -2, -2, 0, -2])
    np.testing.assert_array_equal(tree.sums.advantages, [0, 0, -0.5, -1, 1, -2])
    assert tree.divisor == 7  # tokens of all responses


def test_ends_without_an_advantage_are_left_out_and_still_divide():
    # 7 8, then 1 - 2 - 3, where 3 alone has an advantage; 1 - 4 - 5, where 4 has one; and 6 - 6, which has none.
    paths = paths_of([7, 8], ([1, 2, 3], [0, 0, -1.0]), ([1, 4, 5], [0, 0.5, 0]), ([6, 6], 0.0))
    whole = token_tree(paths, LossSettings(), 8)
    np.testing.assert_array_equal(whole.tokens, [7, 8, 1, 2, 3, 4, 5, 6, 6])
    tree = without_idle_ends(whole)
    np.testing.assert_array_equal(tree.tokens, [7, 8, 1, 2, 3, 4])
    np.testing.assert_array_equal(tree.positions, [0, 1, 2, 3, 4, 3])
    np.testing.assert_array_equal(tree.parents, [-1, 0, 1, 2, 3, 2])
    np.testing.assert_array_equal(tree.ends, [6, 6, 6, 5, 5, 6])
    np.testing.assert_array_equal(tree.sums.positive, [0, 0, 0, 0, 0, 0.5])
    np.testing.assert_array_equal(tree.sums.negative, [0, 0, 0, 0, -1, 0])
    np.testing.assert_array_equal(tree.sums.num_paths, [0, 0, 2, 1, 1, 1])
    assert [place.tolist() for place in tree.places] == [[2, 3, 4], [2, 5], []]
    assert tree.divisor == whole.divisor == 8
    nothing = token_tree(paths_of([7], ([1], 0.0)), LossSettings(), 8)
    assert without_idle_ends(nothing) is nothing


@pytest.mark.parametrize(
    ("aggregation", "weights", "divisor"),
    [
        ("token_mean", [3, 2, 1, 1], 7),
        ("seq_mean_token_sum", [3, 2, 1, 1], 3),
        ("seq_mean_token_mean", [1 + 2 / 3, 2 / 3, 1 / 3, 1 / 3], 3),
        ("seq_mean_token_sum_norm", [3 / 8, 2 / 8, 1 / 8, 1 / 8], 0),
    ],
)
def test_a_tokens_weight_is_the_sum_over_its_trajectories(aggregation, weights, divisor):
    tree = token_tree(TREE, LossSettings(aggregation=aggregation), 8)
    np.testing.assert_allclose(tree.sums.weights, [0, 0, *weights], rtol=1e-6)
    np.testing.assert_allclose(tree.sums.negative[-1], -2 * weights[-1], rtol=1e-6)
    assert tree.divisor == divisor


def test_a_shared_old_log_prob_is_the_mean_of_the_known_ones():
    known = [np.array([-1.0, -2.0, -3.0]), np.array([-1.5, -2.0, -4.0]), None]
    tree = token_tree(paths_of([7], ([1, 2, 4], 1.0), ([1, 2, 3], 1.0), ([1], 1.0), log_probs=known), LossSettings(), 8)
    np.testing.assert_allclose(tree.sampler_log_probs, [np.nan, -1.25, -2, -4, -3])


@pytest.mark.parametrize("seed", range(20))
def test_random_trees_hold_every_prefix_once(seed):
    rng = np.random.default_rng(seed)
    responses = [(rng.integers(0, 3, rng.integers(0, 7)), float(rng.normal())) for _ in range(rng.integers(1, 12))]
    prompt = list(rng.integers(0, 3, rng.integers(0, 3)))
    tree = token_tree(paths_of(prompt, *responses), LossSettings(), 8)
    found = []
    for index in range(len(tree)):
        parent = tree.parents[index]
        found.append((*(found[parent] if parent >= 0 else ()), int(tree.tokens[index])))
    wanted = {}
    for tokens, advantage in responses:
        text = (*map(int, prompt), *map(int, tokens))
        for depth in range(1, len(text) + 1):
            before = wanted.get(text[:depth], (0, 0))
            trained = depth > len(prompt)
            wanted[text[:depth]] = (before[0] + trained, before[1] + trained * max(advantage, 0))
    assert len(set(found)) == len(found)
    assert set(found) == set(wanted)
    for index, prefix in enumerate(found):
        assert tree.sums.num_paths[index] == wanted[prefix][0]
        np.testing.assert_allclose(tree.sums.positive[index], wanted[prefix][1], rtol=1e-5)
        assert tree.positions[index] == len(prefix) - 1
        below = [i for i, other in enumerate(found) if other[: len(prefix)] == prefix]
        assert below == list(range(index, tree.ends[index]))


def test_the_longest_trees_are_placed_first_where_there_is_room():
    assert first_fit([3, 7, 5, 2, 3], 10) == [[1, 0], [2, 4, 3]]
    assert first_fit([4, 4], 4) == [[0], [1]]


def test_rows_shift_what_points_into_them():
    trees = [token_tree(TREE, LossSettings(), 8), token_tree(paths_of([5], ([6], 1.0)), LossSettings(), 8)]
    batch = pack_rows(trees, [[1, 0], []], num_rows=2, length=10)
    np.testing.assert_array_equal(batch.tokens[0], [5, 6, 7, 8, 1, 2, 3, 4, 0, 0])
    np.testing.assert_array_equal(batch.tree_ids[0], [1, 1, 2, 2, 2, 2, 2, 2, 0, 0])
    np.testing.assert_array_equal(batch.parents[0], [-1, 0, -1, 2, 3, 4, 5, 5, -1, -1])
    np.testing.assert_array_equal(batch.ends[0], [2, 2, 8, 8, 8, 8, 7, 8, 0, 0])
    np.testing.assert_array_equal(batch.divisors, [8, 0])
    assert not batch.tree_ids[1].any()
    assert (batch.parents[1] == -1).all()


def test_pairs_of_blocks_are_counted_by_hand():
    # Blocks of two tokens; a text of 5 in a row of 8: block 0 with itself, 1 with 0 and 1, 2 with 0, 1 and 2.
    text = np.array([[5, 5, 5, 5, 5, 0, 0, 0]])
    positions = np.array([[0, 1, 2, 3, 4, 0, 0, 0]])
    assert num_pairs(text, positions, 2) == 6
    assert (
        num_pairs(text, positions, 2, window=2) == 5
    )  # token 2 sees 1, token 4 sees 3; nobody in block 2 sees block 0
    # Two texts of 4: no block of the second sees the first.
    assert num_pairs(np.array([[4, 4, 4, 4, 8, 8, 8, 8]]), np.array([[0, 1, 2, 3] * 2]), 2) == 6
