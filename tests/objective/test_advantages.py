"""Advantages: by hand, against recorded cases, against an oracle in plain Python, and the degenerate trees."""

import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsearch_jax.objective import advantages as adv
from deepsearch_jax.objective.settings import AdvantageSettings

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
RECORDED = json.loads((DATA / "advantages.json").read_text())["cases"]
POST = json.loads((DATA / "post_processing.json").read_text())["cases"]

# Two paths of one tree, depth 3 and 1: values of the nodes, root excluded. tanh(.5) = .46211716, tanh(1) = .76159416.
VALUES = jnp.array([[0.5, 1.0, 1.0], [-1.0, 0.0, 0.0]])
MASK = jnp.array([[True, True, True], [True, False, False]])
SCORES, LENGTHS, VALID = jnp.array([1.0, -1.0]), jnp.array([30, 10]), jnp.array([True, True])
jit_tree_advantages = jax.jit(adv.tree_advantages, static_argnames="settings")
TANH_HALF, TANH_ONE = 0.46211716, 0.76159416


def tree(values=VALUES, scores=SCORES, valid=VALID, **changes):
    arrays = {k: changes.pop(k) for k in ("segment_lengths", "terminal_rewards", "is_terminal") if k in changes}
    return jit_tree_advantages(values, MASK, scores, LENGTHS, valid, settings=AdvantageSettings(**changes), **arrays)


def test_mean_is_the_soft_clipped_value_minus_the_mean_final_value():
    # Finals 1 and -1: mu = 0.
    np.testing.assert_allclose(tree(), [[TANH_HALF, TANH_ONE, 1.0], [-1.0, 0, 0]], atol=1e-6)


def test_a_baseline_that_is_not_zero_is_subtracted_from_every_node():
    got = tree(values=VALUES.at[1, 0].set(0.0), scores=jnp.array([1.0, 0.0]))  # finals 1 and 0: mu = .5
    np.testing.assert_allclose(got, [[TANH_HALF - 0.5, TANH_ONE - 0.5, 0.5], [-0.5, 0, 0]], atol=1e-6)


def test_mean_std_divides_by_the_population_std_of_the_finals():
    got = tree(values=VALUES.at[1, 0].set(0.0), scores=jnp.array([1.0, 0.0]), normalisation="mean_std", std_epsilon=0.5)
    expected = np.array([[TANH_HALF - 0.5, TANH_ONE - 0.5, 0.5], [-0.5, 0, 0]]) / (0.5 + 0.5)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_overlong_penalty_goes_to_all_nodes_of_a_path_and_into_the_baseline():
    # Length 30 of 32 with buffer 8: -(30 - 24) / 8 * .5 = -.375. Finals .625 and -1: mu = -.1875.
    got = tree(overlong_max_length=32, overlong_buffer=8, overlong_factor=0.5)
    expected = [[TANH_HALF - 0.1875, TANH_ONE - 0.1875, 0.8125], [-0.8125, 0, 0]]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    # The baseline of the rewards alone leaves the penalty out: mu = 0.
    got = tree(overlong_max_length=32, overlong_buffer=8, overlong_factor=0.5, baseline="credited_rewards")
    np.testing.assert_allclose(got, [[TANH_HALF - 0.375, TANH_ONE - 0.375, 0.625], [-1.0, 0, 0]], atol=1e-6)


def test_baseline_of_all_terminals_is_the_papers_text():
    # Terminals of the tree: 1, -1, -1, -1: mu = -.5; the fifth slot is no terminal.
    rewards, is_terminal = jnp.array([1.0, -1, -1, -1, 9]), jnp.array([True, True, True, True, False])
    got = tree(baseline="terminal_rewards", terminal_rewards=rewards, is_terminal=is_terminal)
    np.testing.assert_allclose(got, [[TANH_HALF + 0.5, TANH_ONE + 0.5, 1.5], [-0.5, 0, 0]], atol=1e-6)
    with pytest.raises(ValueError, match="needs the terminal_rewards"):
        tree(baseline="terminal_rewards")


def test_outcome_level_gives_every_node_the_final_score():
    np.testing.assert_allclose(tree(level="outcome"), [[1.0, 1.0, 1.0], [-1.0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize(("q_max", "temperature"), [(0.8, 0.5), (1.0, 0.0)])
def test_soft_clip_leaves_the_leaf_and_can_be_off(q_max, temperature):
    got = tree(soft_clip_max=q_max, soft_clip_temperature=temperature, normalisation="none")
    inner = [q_max * math.tanh(v / temperature) for v in (0.5, 1.0)] if temperature else [0.5, 1.0]
    np.testing.assert_allclose(got, [[*inner, 1.0], [-1.0, 0, 0]], atol=1e-6)


def test_alpha_scale_and_none_subtract_nothing():
    plain = tree(normalisation="none")
    np.testing.assert_allclose(plain, [[TANH_HALF, TANH_ONE, 1.0], [-1.0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(tree(normalisation="alpha_scale", alpha=0.25), 0.25 * plain, atol=1e-7)


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["id"])
def test_recorded_token_advantages(case):
    p, inputs = case["params"], case["inputs"]
    got = adv.token_advantages(
        jnp.array(inputs["token_level_rewards"], jnp.float32),
        jnp.array(inputs["response_mask"]),
        inputs["index"],
        p["adv_norm_method"],
        p["norm_adv_by_std"],
        p["epsilon"],
        p["adv_scale_alpha"],
    )
    np.testing.assert_allclose(got, case["outputs"]["advantages"], atol=1e-6)


@pytest.mark.parametrize("case", POST, ids=lambda case: case["id"])
def test_recorded_post_processing_of_trees(case):
    paths = case["trajectories"]
    depth = max(len(p["values_raw"]) for p in paths)
    values, mask = np.zeros((len(paths), depth), np.float32), np.zeros((len(paths), depth), bool)
    for k, p in enumerate(paths):
        values[k, : len(p["values_raw"])], mask[k, : len(p["values_raw"])] = p["values_raw"], True
    scores = jnp.array([p["final_score"] for p in paths], jnp.float32)
    lengths = jnp.array([p["response_len"] for p in paths])
    for post in case["post"]:
        p = post["params"]
        chosen = AdvantageSettings(
            normalisation="none",
            soft_clip_max=p["q_value_max"],
            soft_clip_temperature=p["adv_temperature"],
            overlong_max_length=case["max_length"] if p["overlong"] else 0,
            overlong_buffer=p["overlong_len"] if p["overlong"] else 0,
            overlong_factor=p["overlong_factor"],
        )
        valid = jnp.ones(len(paths), bool)
        got = jit_tree_advantages(jnp.array(values), jnp.array(mask), scores, lengths, valid, settings=chosen)
        for row, expected in zip(got, post["values"]):
            np.testing.assert_allclose(row[: len(expected)], expected, atol=1e-6)


@st.composite
def random_trees(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    num_paths, depth = 4, 5
    depths = rng.integers(1, depth + 1, num_paths)
    mask = np.arange(depth)[None] < depths[:, None]
    values = np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
    segment_lengths = np.where(mask, rng.integers(1, 4, mask.shape), 0)
    scores = rng.choice([-1.0, 1.0], num_paths).astype(np.float32)
    values[np.arange(num_paths), depths - 1] = scores
    return values, mask, scores, segment_lengths, rng.random(num_paths) < 0.8


@settings(deadline=None, max_examples=40)
@given(
    sample=random_trees(), normalisation=st.sampled_from(["mean", "mean_std", "row_mean_std", "alpha_scale", "none"])
)
def test_nodes_then_tokens_equals_tokens_of_the_valid_rows(sample, normalisation):
    """Normalising nodes and spreading them equals spreading and normalising tokens with the recorded function."""
    values, mask, scores, segment_lengths, valid = sample
    num_tokens = 16
    chosen = AdvantageSettings(normalisation=normalisation, alpha=0.7)
    lengths = segment_lengths.sum(1)
    arrays = [jnp.array(x) for x in (values, mask, scores, lengths, valid)]
    nodes = jit_tree_advantages(*arrays, settings=chosen, segment_lengths=jnp.array(segment_lengths))
    got = np.asarray(adv.spread_over_tokens(nodes, jnp.array(segment_lengths), num_tokens))

    expected = np.zeros_like(got)
    rows = np.flatnonzero(valid)
    if len(rows):
        spread = np.zeros((len(rows), num_tokens), np.float32)
        for out, k in zip(spread, rows):
            clipped = [math.tanh(v) for v in values[k][mask[k]][:-1]] + [scores[k]]
            out[: lengths[k]] = np.repeat(clipped, segment_lengths[k][mask[k]])
        token_mask = np.arange(num_tokens)[None] < lengths[rows][:, None]
        method = {"mean": "sibling_mean_std", "mean_std": "sibling_mean_std", "row_mean_std": "mean_std"}
        expected[rows] = adv.token_advantages(
            jnp.array(spread),
            jnp.array(token_mask),
            ["one"] * len(rows),
            method.get(normalisation, normalisation),
            normalisation == "mean_std",
            alpha=0.7,
        )
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_spread_gives_each_token_its_node_from_the_start_column_on():
    advantages, lengths = jnp.array([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]]), jnp.array([[2, 1, 2], [3, 0, 0]])
    got = adv.spread_over_tokens(advantages, lengths, 8, jnp.array([1, 4]))
    np.testing.assert_array_equal(got, [[0, 1, 1, 2, 3, 3, 0, 0], [0, 0, 0, 0, 4, 4, 4, 0]])
    cut = adv.spread_over_tokens(advantages, lengths, 4, 0)
    np.testing.assert_array_equal(cut, [[1, 1, 2, 3], [4, 4, 4, 0]])


@pytest.mark.parametrize("normalisation", ["mean", "mean_std", "row_mean_std", "alpha_scale", "none"])
def test_degenerate_trees_are_finite(normalisation):
    tokens = jnp.array([[1, 2, 1], [1, 0, 0]])
    nobody = tree(valid=jnp.array([False, False]), normalisation=normalisation, segment_lengths=tokens)
    np.testing.assert_array_equal(nobody, 0)
    alone = tree(valid=jnp.array([False, True]), normalisation=normalisation, segment_lengths=tokens)
    expected = 0.0 if normalisation == "row_mean_std" else -1.0  # a group of one is compared with nothing
    np.testing.assert_allclose(alone, [[0, 0, 0], [expected, 0, 0]], atol=1e-5)
    equal = tree(
        values=VALUES.at[1, 0].set(1.0), scores=jnp.ones(2), normalisation=normalisation, segment_lengths=tokens
    )
    assert np.isfinite(equal).all()


@pytest.mark.parametrize("method", ["sibling_mean_std", "mean_std", "alpha_scale", "none"])
def test_degenerate_rows_are_finite(method):
    rewards = jnp.array([[0.5, 0.25], [7.0, 7.0], [0.5, 0.5]])
    mask = jnp.array([[1, 0], [0, 0], [1, 1]])  # one token, empty, two equal tokens
    got = adv.token_advantages(rewards, mask, ["a", "a", "b"], method)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(np.asarray(got)[np.asarray(mask) == 0], 0)
    if method == "mean_std":  # NaN in the authors' code
        assert got[0, 0] == 0
    with pytest.raises(ValueError, match="bogus"):
        adv.token_advantages(rewards, mask, ["a", "a", "b"], "bogus")


def test_outcome_advantages_of_a_group():
    scores, valid = jnp.array([1.0, 0.0, 0.0, 1.0, 5.0]), jnp.array([True, True, True, True, False])
    got = adv.outcome_advantages(scores, valid, AdvantageSettings(normalisation="mean"))
    np.testing.assert_allclose(got, [0.5, -0.5, -0.5, 0.5, 0], atol=1e-6)
    got = adv.outcome_advantages(scores, valid, AdvantageSettings(normalisation="mean_std"))
    np.testing.assert_allclose(got, [1, -1, -1, 1, 0], atol=1e-5)
    # Lengths 10 and 6 of 10 with buffer 4: penalties -1 and 0; finals 0, 0: all equal.
    overlong = AdvantageSettings(overlong_max_length=10, overlong_buffer=4)
    got = adv.outcome_advantages(jnp.array([1.0, 0.0]), jnp.ones(2, bool), overlong, jnp.array([10, 6]))
    np.testing.assert_allclose(got, [0, 0], atol=1e-6)
    with pytest.raises(ValueError, match="lengths"):
        adv.outcome_advantages(scores, valid, overlong)
    with pytest.raises(ValueError, match="row_mean_std"):
        adv.outcome_advantages(scores, valid, AdvantageSettings(normalisation="row_mean_std"))


@pytest.mark.parametrize(
    ("scores", "valid", "expected"),
    [
        ([1.0, -1.0, 1.0], [1, 1, 1], True),
        ([1.0, 1.0, 1.0], [1, 1, 1], False),
        ([1.0, 1.0, -1.0], [1, 1, 0], False),
        ([1.0, 1.0, -1.0], [1, 0, 0], False),
        ([1.0, -1.0, -1.0], [0, 0, 0], False),
    ],
)
def test_has_signal_needs_two_valid_trajectories_that_differ(scores, valid, expected):
    assert bool(adv.has_signal(jnp.array(scores), jnp.array(valid, bool))) is expected


def test_float64_values_stay_float64():
    with jax.enable_x64(True):
        got = adv.tree_advantages(
            jnp.array(np.asarray(VALUES), jnp.float64), MASK, SCORES, LENGTHS, VALID, AdvantageSettings()
        )
        assert got.dtype == jnp.float64


def test_a_batch_of_trees_is_a_vmap():
    batched = jax.vmap(lambda v, s: adv.tree_advantages(v, MASK, s, LENGTHS, VALID, AdvantageSettings()))
    got = batched(jnp.stack([VALUES, -VALUES]), jnp.stack([SCORES, -SCORES]))
    expected = np.array([[TANH_HALF, TANH_ONE, 1.0], [-1.0, 0, 0]])  # both trees have mu = 0
    np.testing.assert_allclose(got, [expected, -expected], atol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        {"level": "token"},
        {"normalisation": "std"},
        {"baseline": "zero"},
        {"soft_clip_temperature": -1.0},
        {"std_epsilon": 0.0},
        {"overlong_buffer": 8, "overlong_max_length": 4},
    ],
)
def test_bad_settings_name_the_value(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        AdvantageSettings(**bad)


def test_settings_are_hashable():
    assert hash(AdvantageSettings()) == hash(dataclasses.replace(AdvantageSettings()))
