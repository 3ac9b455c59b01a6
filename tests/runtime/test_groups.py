"""Dropping, advantages and packing of groups, with numbers worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest

from deepsearch_jax.data.degenerate import DegenerateSettings
from deepsearch_jax.data.problems import Problem
from deepsearch_jax.objective import AdvantageSettings, LossSettings
from deepsearch_jax.policy import ModelConfig
from deepsearch_jax.runtime.groups import (
    PackSettings,
    drop_unteachable,
    node_advantages,
    pack,
)
from deepsearch_jax.runtime.layout import choose_layout, fine_bucket
from deepsearch_jax.runtime.rollouts import Group, Response, bucket
from deepsearch_jax.types import Outcome, PackedBatch, TokenBatch

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


def test_advantages_against_siblings_are_for_trees_alone():
    # Two steps of two tokens from the prompt, log-probs -.5 a token: e^-1 each, and what is left of 1 counts as wrong.
    # The second path goes on with a step that has nothing right beside it.
    right, wrong = response(1.0, (2,)), response(-1.0, (2, 1), first_token=5)
    tree = group(right, wrong)
    tree.terminal_rewards = np.array([1, -1], np.float32)
    settings = AdvantageSettings(level="siblings")
    p = math.exp(-1)
    b = p - (1 - p)
    got = node_advantages([tree, group(right, wrong)], settings)
    np.testing.assert_allclose(got[0][0], [1 - b], atol=1e-6)
    np.testing.assert_allclose(got[0][1], [(-1 - b) * p, 0], atol=1e-6)
    np.testing.assert_allclose(np.concatenate(got[1]), [1, -1, -1], atol=1e-6)  # direct: the score less the mean


def test_advantages_do_not_depend_on_the_company():
    one = group(response(1.0, (2, 1), [0.5, 1.0]), response(-1.0, (3,), [-1.0]))
    other = group(*[response(float(s), (1,) * 7) for s in (1, -1, -1, 1, -1)])
    alone = node_advantages([one], AdvantageSettings())
    together = node_advantages([other, one, other], AdvantageSettings())
    for a, b in zip(alone[0], together[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_hold_prompt_response_and_the_advantage_of_each_node():
    tree = group(response(1.0, (2, 1), [0.5, 1.0]), response(-1.0, (3,), [-1.0], first_token=4, log_probs=False))
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
    nan = np.nan
    np.testing.assert_array_equal(batch.sampler_log_probs[0], [nan, nan, -0.5, -0.5, -0.5, nan, nan, nan])
    assert np.isnan(batch.sampler_log_probs[1]).all()


@pytest.mark.parametrize("trees", ["never", "always"])
def test_what_the_sampler_said_of_a_beginning_holds_for_every_response_with_it(trees):
    """A cached solution 1 2 9 beside fresh responses 1 2 3 and 1 2: only its last token is not known."""
    known, short, cached = response(1.0, (3,)), response(-1.0, (2,)), response(1.0, (3,), log_probs=False)
    known.log_probs, short.log_probs = np.array([-1.0, -2, -3], np.float32), np.array([-1.5, -2], np.float32)
    cached.tokens = np.array([1, 2, 9], np.int32)
    settings = PackSettings(row_multiple=4, min_rows=2, trees=trees)
    batch, is_known, _ = pack(
        [group(known, short, cached)], [[np.ones(1, np.float32)] * 3], settings, LossSettings(), MODEL
    )
    assert not is_known
    if trees == "always":
        np.testing.assert_array_equal(batch.tokens[0, :6], [7, 8, 1, 2, 3, 9])
        np.testing.assert_array_equal(batch.sampler_log_probs[0, 2:6], [-1.25, -2, -3, np.nan])
    else:
        np.testing.assert_array_equal(batch.sampler_log_probs[0, 2:5], [-1.25, -2, -3])
        np.testing.assert_array_equal(batch.sampler_log_probs[1, 2:5], [-1.25, -2, np.nan])
        np.testing.assert_array_equal(batch.sampler_log_probs[2, 2:5], [-1.25, -2, np.nan])


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
    with pytest.raises(ValueError, match="trees='sometimes'"):
        PackSettings(trees="sometimes")
    assert dataclasses.asdict(PackSettings())["min_rows"] > 0


def shared_group(num_responses=4, shared=200, own=56):
    beginning = tuple(range(shared))
    responses = []
    for number in range(num_responses):
        one = response(float(number % 2), (shared, own))
        one.tokens = np.array([*beginning, *(np.arange(own) + number)], np.int32) % 32
        one.log_probs = None
        responses.append(one)
    return group(*responses)


WIDE = ModelConfig.tiny(vocab_size=32, hidden_size=128, num_heads=2)


@pytest.mark.parametrize(
    ("trees", "shared", "is_packed"),
    [("auto", 200, True), ("auto", 0, False), ("always", 0, True), ("never", 200, False)],
)
def test_trees_are_packed_where_they_share_or_where_asked_for(trees, shared, is_packed):
    groups = [shared_group(shared=shared, own=256 - shared)] * 4
    advantages = [[np.ones(2, np.float32)] * 4] * 4
    settings = PackSettings(row_multiple=64, min_rows=4, trees=trees)
    packed = pack(groups, advantages, settings, LossSettings(), WIDE)
    assert isinstance(packed.batch, PackedBatch) == is_packed
    if is_packed and shared:
        assert packed.batch.tokens.size < 0.6 * 16 * 320
        assert packed.batch.sums.num_paths.sum() == 16 * 256


@pytest.mark.parametrize(
    ("loss", "num_ends"),
    [(LossSettings(), 1), (LossSettings(kl_coefficient=0.1), 4), (LossSettings(entropy_coefficient=0.1), 4)],
)
def test_trees_leave_ends_without_an_advantage_out_where_nothing_else_asks_for_them(loss, num_ends):
    """One response of four has an advantage at its end, as against siblings, where only forks have one."""
    advantages = [[np.float32([0, 0.5 * (n == 2)]) for n in range(4)]] * 4
    settings = PackSettings(row_multiple=64, min_rows=4, trees="always")
    packed = pack([shared_group()] * 4, advantages, settings, loss, WIDE)
    assert (packed.batch.tree_ids > 0).sum() == 4 * (2 + 200 + 56 * num_ends)
    assert packed.batch.divisors.sum() == 16 * 256


def test_a_tree_longer_than_allowed_goes_in_rows_of_one_response():
    """The prompt of two tokens, 200 shared ones and 4 x 56 own ones: 426."""
    groups, advantages = [shared_group()] * 4, [[np.ones(2, np.float32)] * 4] * 4
    for limit, is_packed in ((426, True), (425, False)):
        settings = PackSettings(row_multiple=64, min_rows=4, trees="always", max_tree_tokens=limit)
        packed = pack(groups, advantages, settings, LossSettings(), WIDE)
        assert isinstance(packed.batch, PackedBatch) == is_packed
    with pytest.raises(ValueError, match="max_tree_tokens=-1"):
        PackSettings(max_tree_tokens=-1)


def test_short_responses_that_share_only_a_prompt_stay_rows():
    groups = [group(*[response(1.0, (62,), first_token=10 * n) for n in range(4)], prompt=(7, 8))] * 4
    packed = pack(groups, [[np.ones(1, np.float32)] * 4] * 4, PackSettings(min_rows=4), LossSettings(), WIDE)
    assert isinstance(packed.batch, TokenBatch)


def test_row_lengths_leave_little_padding_and_keep_to_the_micro_batch():
    # One row of everything: 1000 tokens in the 1024 of eighths of a doubling.
    assert choose_layout([400, 300, 300], 64, 1, 0)[1:] == (1, 1024, 0)
    # Two devices: 400 + 100 and 300 in rows of 512.
    assert choose_layout([400, 300, 100], 64, 2, 0)[1:] == (2, 448, 0)
    # A micro-batch of 512 tokens: one row of at most 512 at a time, though one of 1024 would do for all.
    # Two rows hold all; there is room for four trees of a row each, and what is not used is skipped.
    layout = choose_layout([300, 200, 250, 250], 64, 1, 512)
    assert layout == ([[0, 1], [2, 3], [], []], 4, 512, 1)
    # A tree longer than the micro-batch gets a row that holds it.
    layout = choose_layout([900, 100], 64, 1, 512)
    assert layout.length >= 900
    assert layout.micro_batch_rows == 1


@pytest.mark.parametrize(("num_devices", "limit"), [(1, 0), (2, 0), (2, 384)])
def test_coarse_layouts_repeat_their_shapes_whatever_trees_come(num_devices, limit):
    rng = np.random.default_rng(0)
    shapes = set()
    for _ in range(50):
        lengths = rng.integers(20, 150, rng.integers(1, 65))
        layout = choose_layout(list(lengths), 48, num_devices, limit, max_trees=64, is_coarse=True)
        shapes.add(layout[1:])
        assert sorted(tree for row in layout.rows for tree in row) == list(range(len(lengths)))
        assert max(sum(lengths[tree] for tree in row) for row in layout.rows) <= layout.length
        by_device = np.array([bool(row) for row in layout.rows]).reshape(num_devices, -1)
        assert np.ptp(by_device.sum(axis=1)) <= 1  # each device has its share
        assert (np.diff(by_device.astype(int), axis=1) <= 0).all()  # in front
        assert layout.micro_batch_rows * layout.length <= (limit or 2048)
        assert layout.num_rows % (num_devices * layout.micro_batch_rows) == 0
    # 48 x 2, of a batch whose trees are all short, and 48 x 4.
    assert {shape[1] for shape in shapes} <= {96, 192}
    assert len(shapes) == len({shape[1] for shape in shapes})


def test_full_batches_of_coarse_layouts_have_no_row_more_than_trees():
    """Of 60 tokens in rows of 64, parts of about 640 tokens: two of 8 rows, not two of 10."""
    assert choose_layout([60] * 16, 64, 1, 0, max_trees=16, is_coarse=True)[1:] == (16, 64, 8)
    assert choose_layout([60] * 16, 80, 1, 0, max_trees=16, is_coarse=True)[1:] == (16, 80, 8)
    assert choose_layout([60] * 4, 64, 1, 0, max_trees=4, is_coarse=True)[1:] == (4, 64, 4)


@pytest.mark.parametrize("multiple", [1, 64])
def test_fine_sizes_are_few_and_waste_an_eighth_at_most(multiple):
    sizes = {fine_bucket(length, multiple) for length in range(1, 4097)}
    assert len([size for size in sizes if 1024 < size <= 4096]) == 16
    for length in range(1, 4097):
        size = fine_bucket(length, multiple)
        assert length <= size <= max(length * 9 / 8, length + multiple)
        assert size % multiple == 0
