"""Dropping, advantages and packing of groups, with numbers worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest

from deepsearch_jax.data.degenerate import DegenerateSettings
from deepsearch_jax.data.problems import Problem
from deepsearch_jax.objective import AdvantageSettings, LossSettings
from deepsearch_jax.policy import ModelConfig
from deepsearch_jax.runtime.groups import PackSettings, drop_unteachable, node_advantages, pack
from deepsearch_jax.runtime.rollouts import Group, Response, bucket
from deepsearch_jax.types import Outcome

MODEL = ModelConfig.tiny(vocab_size=32)
PROBLEM = Problem(key=1, id="a", question="q", answer="1")


def response(reward, segments=(2,), values=None, text="fine", first_token=1, log_probs=True):
    length = sum(segments)
    values = np.array([*([0.0] * (len(segments) - 1)), reward] if values is None else values, np.float32)
    return Response(
        tokens=np.arange(first_token, first_token + length, dtype=np.int32),
        segment_lengths=np.array(segments, np.int32),
        node_values=values,
        log_probs=np.full(length, -0.5, np.float32) if log_probs else None,
        reward=reward,
        outcome=Outcome.CORRECT if reward > 0 else Outcome.INCORRECT,
        text=text,
        origin="search",
    )


def group(*responses, prompt=(7, 8)):
    return Group(PROBLEM, list(prompt), list(responses))


def test_wrong_degenerate_samples_go_and_right_ones_stay():
    loop = "again and again " * 60
    mixed = group(response(-1.0, text=loop), response(1.0, text=loop), response(-1.0))
    kept, counts = drop_unteachable([mixed], AdvantageSettings(), DegenerateSettings())
    assert [r.reward for r in kept[0].responses] == [1.0, -1.0]
    assert (counts.degenerate, counts.uniform_groups, counts.empty_groups) == (1, 0, 0)
    assert len(mixed.responses) == 3  # the group that came in is as it was


def test_groups_without_a_difference_go_unless_asked_to_stay():
    groups = [group(response(-1.0), response(-1.0)), group(response(1.0), response(-1.0)), group()]
    kept, counts = drop_unteachable(groups, AdvantageSettings(), DegenerateSettings())
    assert [len(g.responses) for g in kept] == [2]
    assert kept[0].responses[0].reward == 1.0
    assert (counts.uniform_groups, counts.empty_groups) == (1, 1)
    kept, counts = drop_unteachable(groups, AdvantageSettings(drop_uniform=False), DegenerateSettings())
    assert len(kept) == 2
    assert (counts.uniform_groups, counts.empty_groups) == (0, 1)


def test_advantages_of_a_tree_by_hand():
    # Rewards +1 and -1: mu = 0. The inner node of the first path has q = 0.5, which the soft clip takes to tanh(0.5).
    tree = group(response(1.0, (2, 1), [0.5, 1.0]), response(-1.0, (3,), [-1.0]), response(1.0, (1,), [1.0]))
    mean = 1 / 3
    got = node_advantages([tree], AdvantageSettings())
    np.testing.assert_allclose(got[0][0], [math.tanh(0.5) - mean, 1 - mean], atol=1e-6)
    np.testing.assert_allclose(got[0][1], [-1 - mean], atol=1e-6)
    np.testing.assert_allclose(got[0][2], [1 - mean], atol=1e-6)


def test_the_papers_baseline_is_the_mean_over_all_terminals_of_the_tree():
    # Two credited trajectories, but four terminals were verified: mu = (1 - 3) / 4 = -1/2.
    tree = group(response(1.0, (1,)), response(-1.0, (1,)))
    tree.terminal_rewards = np.array([1, -1, -1, -1], np.float32)
    plain = group(response(1.0, (1,)), response(-1.0, (1,)))
    got = node_advantages([tree, plain], AdvantageSettings(baseline="terminal_rewards"))
    np.testing.assert_allclose(np.concatenate(got[0]), [1.5, -0.5], atol=1e-6)
    np.testing.assert_allclose(np.concatenate(got[1]), [1, -1], atol=1e-6)


def test_advantages_do_not_depend_on_the_company():
    one = group(response(1.0, (2, 1), [0.5, 1.0]), response(-1.0, (3,), [-1.0]))
    other = group(*[response(float(s), (1,) * 7) for s in (1, -1, -1, 1, -1)])
    alone = node_advantages([one], AdvantageSettings())
    together = node_advantages([other, one, other], AdvantageSettings())
    for a, b in zip(alone[0], together[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_hold_prompt_response_and_the_advantage_of_each_node():
    tree = group(response(1.0, (2, 1), [0.5, 1.0]), response(-1.0, (3,), [-1.0], log_probs=False))
    advantages = [[np.array([0.25, 0.75], np.float32), np.array([-2.0], np.float32)]]
    settings = PackSettings(row_multiple=4, min_rows=2, trees="never")
    batch, is_known, micro_batch_rows = pack([tree], advantages, settings, LossSettings(), MODEL, micro_batch_rows=2)
    assert not is_known
    assert micro_batch_rows == 2
    assert batch.tokens.shape == (2, 8)
    np.testing.assert_array_equal(batch.tokens[0], [7, 8, 1, 2, 3, 0, 0, 0])
    np.testing.assert_array_equal(batch.segment_ids[0], [1, 1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(batch.loss_mask[0], [False, False, True, True, True, False, False, False])
    np.testing.assert_allclose(batch.advantages[0], [0, 0, 0.25, 0.25, 0.75, 0, 0, 0])
    np.testing.assert_allclose(batch.advantages[1], [0, 0, -2, -2, -2, 0, 0, 0])
    np.testing.assert_allclose(batch.old_log_probs[0], [0, 0, -0.5, -0.5, -0.5, 0, 0, 0])


def test_the_number_of_rows_is_padded_to_few_shapes():
    settings = PackSettings(row_multiple=4, min_rows=2, trees="never")
    for count, rows in ((1, 2), (2, 2), (3, 4), (5, 8)):
        tree = group(*[response(1.0) for _ in range(count)])
        batch, is_known, _ = pack([tree], [[np.ones(1, np.float32)] * count], settings, LossSettings(), MODEL)
        assert is_known
        assert batch.tokens.shape[0] == rows
        assert not batch.loss_mask[count:].any()


@pytest.mark.parametrize(("length", "size"), [(1, 4), (4, 4), (5, 8), (8, 8), (9, 12), (13, 16), (17, 24), (25, 32)])
def test_buckets_grow_by_halves(length, size):
    assert bucket(length, 4) == size


def test_a_bucket_is_a_multiple_that_fits_and_wastes_less_than_half():
    for multiple in (1, 5, 64):
        for length in range(1, 40 * multiple, 3):
            size = bucket(length, multiple)
            assert size % multiple == 0
            assert size >= length
            assert size <= max(multiple, 1.5 * length + multiple)


def test_settings_name_what_is_wrong():
    with pytest.raises(ValueError, match="row_multiple=0"):
        PackSettings(row_multiple=0)
    assert dataclasses.asdict(PackSettings())["min_rows"] > 0
