"""A learner with trees and one without make the same updates of the same groups."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from deepsearch_jax.data.problems import Problem
from deepsearch_jax.objective import LossSettings
from deepsearch_jax.policy import ModelConfig, init_params, token_log_probs
from deepsearch_jax.runtime.groups import PackSettings
from deepsearch_jax.runtime.guards import GuardSettings, TooManySkipped
from deepsearch_jax.runtime.learning import Learner
from deepsearch_jax.runtime.responses import Group, Response
from deepsearch_jax.runtime.settings import RoundSettings
from deepsearch_jax.training import UpdateSettings
from deepsearch_jax.types import Outcome, PackedBatch
from tests.runtime.conftest import tiny_settings

MODEL = ModelConfig.tiny(vocab_size=11, hidden_size=16, num_layers=1, num_heads=2)


def make_groups(num_groups, with_log_probs=True):
    """Trees of two nodes a path; half of the paths share the first."""
    rng = np.random.default_rng(3)
    groups = []
    for key in range(num_groups):
        beginnings = rng.integers(1, 11, (2, 12)).astype(np.int32)
        responses = []
        for number in range(4):
            length, reward = int(rng.integers(1, 9)), float(rng.choice([-1, 1]) if number > 1 else 1 - 2 * number)
            tokens = np.concatenate([beginnings[number % 2], rng.integers(1, 11, length)]).astype(np.int32)
            # As of a sampler: whatever it is, it depends on the path alone.
            log_probs = (-1 - 3 * (np.cumsum(tokens * 7919 + key) % 1009 / 1009)).astype(np.float32)
            values = np.array([0.3 * (number % 2), reward], np.float32)
            responses.append(
                Response(
                    tokens, np.array([12, length], np.int32), values, log_probs if with_log_probs else None, reward,
                    Outcome.CORRECT if reward > 0 else Outcome.INCORRECT, "text", "search",
                )
            )  # fmt: skip
        groups.append(Group(Problem(key, str(key), "q", "a"), [1, 2, 3 + key % 5], responses))
    return groups


CORRECTED = LossSettings(importance_cap=1.5, kl_coefficient=0.1)


@pytest.mark.parametrize(
    ("source", "num_updates", "loss"),
    [
        pytest.param("recompute", 2, CORRECTED, marks=pytest.mark.slow),
        ("recompute", 1, CORRECTED),
        ("sampler", 2, LossSettings()),
    ],
)
def test_updates_on_trees_are_those_on_responses(tmp_path, source, num_updates, loss):
    learned, reference = {}, init_params(MODEL, jax.random.key(1))
    groups = make_groups(6)
    if source == "recompute":
        groups[0].responses[2].log_probs = None  # as of a cached solution
    for trees in ("always", "never"):
        settings = tiny_settings(
            pack=PackSettings(row_multiple=16, min_rows=8, trees=trees),
            optimizer=UpdateSettings(learning_rate=1e-3, warmup_steps=0, micro_batch_rows=2, eps=1e-3),
            rounds=RoundSettings(problems_per_step=6, problems_per_update=6 // num_updates, group_size=4),
            old_log_probs=source,
            loss=loss,
        )
        learner = Learner(settings, MODEL, None, tmp_path)
        state = learner.init(init_params(MODEL, jax.random.key(0)))
        state, values = learner.learn(state, groups, reference if loss.kl_coefficient else None)
        assert isinstance(learner._last_batch, PackedBatch) == (trees == "always")
        learned[trees] = jax.device_get(state.params), values
    packed, rows = learned["always"][1], learned["never"][1]
    assert packed.pop("processed_tokens") < rows.pop("processed_tokens")
    assert packed["updates"] == num_updates
    assert (packed["max_abs_log_ratio"] > 0) == (num_updates > 1)
    assert (packed["importance_capped_share"] > 0) == (loss.importance_cap > 0)
    assert (packed["kl_to_reference"] is not None) == (loss.kl_coefficient > 0)
    assert packed.keys() == rows.keys()
    for name, value in rows.items():
        if value is not None:
            np.testing.assert_allclose(packed[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
    largest, mean = decode_train_gap(groups if source == "recompute" else groups[:3])  # else: the first update's
    np.testing.assert_allclose(packed["max_decode_train_gap"], largest, rtol=1e-5)
    np.testing.assert_allclose(packed["mean_decode_train_gap"], mean, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), learned["always"][0], learned["never"][0])


@pytest.mark.parametrize("trees", [pytest.param("always", marks=pytest.mark.slow), "never"])
def test_a_budget_of_tokens_changes_no_update(tmp_path, trees):
    learned = {}
    for cut in ({"micro_batch_rows": 2}, {"micro_batch_tokens": 96}):
        settings = tiny_settings(
            pack=PackSettings(row_multiple=16, min_rows=8, trees=trees),
            optimizer=UpdateSettings(learning_rate=1e-3, warmup_steps=0, eps=1e-3, **cut),
            rounds=RoundSettings(problems_per_step=6, problems_per_update=3, group_size=4),
        )
        learner = Learner(settings, MODEL, None, tmp_path)
        state, values = learner.learn(learner.init(init_params(MODEL, jax.random.key(0))), make_groups(6))
        learned[next(iter(cut))] = jax.device_get(state.params), values
    (rows, by_rows), (params, by_tokens) = learned["micro_batch_rows"], learned["micro_batch_tokens"]
    processed = by_tokens.pop("processed_tokens"), by_rows.pop("processed_tokens")
    assert processed[0] <= processed[1] if trees == "always" else processed[0] < processed[1]
    for name, value in by_rows.items():
        if value is not None:
            np.testing.assert_allclose(by_tokens[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), rows, params)


def decode_train_gap(groups):
    """|sampled - computed| log-probs of one response after the other, where the sampler's are known."""
    texts, gaps = [[*group.prompt, *r.tokens] for group in groups for r in group.responses], []
    rows = np.array([text + [0] * (32 - len(text)) for text in texts], np.int32)
    log_probs = jax.jit(functools.partial(token_log_probs, MODEL, chunk_size=64))
    computed = iter(np.asarray(log_probs(init_params(MODEL, jax.random.key(0)), rows, np.ones_like(rows))[0]))
    for group in groups:
        known = {}  # of beginnings: what one response knows holds for all
        for response in group.responses:
            for n, value in enumerate([] if response.log_probs is None else response.log_probs):
                known[tuple(response.tokens[: n + 1])] = value
        for response in group.responses:
            row = next(computed)[len(group.prompt) :]
            beginnings = [tuple(response.tokens[: n + 1]) for n in range(len(response.tokens))]
            gaps += [abs(row[n] - known[beginning]) for n, beginning in enumerate(beginnings) if beginning in known]
    return max(gaps), np.mean(gaps)


def test_unknown_log_probs_are_computed_whatever_was_asked_for(tmp_path):
    settings = tiny_settings(pack=PackSettings(row_multiple=16, trees="always"), old_log_probs="sampler")
    settings = dataclasses.replace(settings, guards=GuardSettings(max_skipped_updates=1))
    learner = Learner(settings, MODEL, None, tmp_path)
    _, values = learner.learn(learner.init(init_params(MODEL, jax.random.key(0))), make_groups(2, with_log_probs=False))
    assert values["max_abs_log_ratio"] == 0  # its own, computed by the same pass
    assert values["max_decode_train_gap"] is None  # nothing was known
    params = jax.tree.map(lambda w: w * np.nan, init_params(MODEL, jax.random.key(0)))
    with pytest.raises(TooManySkipped):
        learner.learn(learner.init(params), make_groups(2))
    assert "parents" in np.load(tmp_path / "failed_batch" / "batch.npz")
