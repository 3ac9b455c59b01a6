"""Updates that are not finite: skipped, counted, kept at last, and made again from what was kept."""

import dataclasses
import json
import sys

import chex
import jax
import numpy as np
import pytest

from deepsearch_jax.policy import LoraSettings, init_params
from deepsearch_jax.runtime.groups import PackSettings
from deepsearch_jax.runtime.guards import GuardSettings, TooManySkipped
from deepsearch_jax.runtime.kept_batches import load, restore_state
from deepsearch_jax.runtime.learning import Learner
from deepsearch_jax.runtime.replay import replay_batch
from deepsearch_jax.runtime.run import draw_params
from deepsearch_jax.runtime.settings import RoundSettings
from deepsearch_jax.runtime.tasks import TaskSettings
from deepsearch_jax.training import UpdateSettings
from deepsearch_jax.types import TokenBatch
from experiments import replay_batch as command
from tests.runtime.conftest import ARITHMETIC, tiny_settings
from tests.runtime.test_learning import MODEL, make_groups

SETTINGS = tiny_settings(
    pack=PackSettings(row_multiple=16, min_rows=8, trees="never"),
    optimizer=UpdateSettings(learning_rate=1e-3, warmup_steps=3, micro_batch_rows=4),
    rounds=RoundSettings(problems_per_step=3, group_size=4),
    old_log_probs="sampler",
    guards=GuardSettings(max_skipped_updates=2, save_batch_at=1),
)


def start(workdir, settings=SETTINGS):
    learner = Learner(settings, MODEL, None, workdir)
    return learner, learner.init(init_params(MODEL, jax.random.key(0)))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of one good step, and then one whose sampler said -inf of a token, again and again."""
    workdir = tmp_path_factory.mktemp("run")
    learner, state = start(workdir)
    initial = jax.device_get(state)
    state, good = learner.learn(state, make_groups(3), counters=(0, 0))
    before = jax.device_get(state)
    groups = make_groups(3)
    groups[1].responses[2].log_probs[13] = -np.inf
    state, skipped = learner.learn(state, groups, counters=(0, 1))
    after = jax.device_get(state)
    with pytest.raises(TooManySkipped, match="not finite in 2 updates in a row") as stop:
        learner.learn(state, groups, counters=(0, 2))
    return workdir, initial, good, before, skipped, after, str(stop.value)


def test_a_skipped_update_is_counted_and_changes_neither_parameters_nor_optimizer(stopped):
    _, _, _, before, skipped, after, _ = stopped
    chex.assert_trees_all_equal((after.params, after.opt_state), (before.params, before.opt_state))
    assert (skipped["skipped_updates"], skipped["updates"]) == (1, 1)
    assert (int(after.step), int(after.num_skipped), int(after.num_skipped_in_a_row)) == (1, 1, 1)


def test_the_batch_at_which_a_run_stops_is_kept_with_its_state_keys_and_settings(stopped):
    workdir, _, _, before, _, _, message = stopped
    path = workdir / "failed_batch"
    assert f"python -m experiments.replay_batch {path}" in message
    kept = load(path)
    assert isinstance(kept.batch, TokenBatch)
    assert (kept.settings, kept.model) == (SETTINGS, MODEL)
    assert (kept.origin.round_index, kept.origin.step, kept.origin.update) == (0, 2, 0)
    assert [problem[0] for problem in kept.origin.problems] == ["0", "1", "2"]
    key = np.asarray(kept.record["run_key"], np.uint32)
    np.testing.assert_array_equal(key, jax.random.key_data(jax.random.key(SETTINGS.seed)))
    state = restore_state(path, start(workdir)[1])
    chex.assert_trees_all_equal((state.params, state.opt_state), (before.params, before.opt_state))
    json.loads((path / "record.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_a_replay_finds_the_token(stopped, capsys, monkeypatch):
    workdir = stopped[0]
    monkeypatch.setattr(sys, "argv", ["replay_batch", str(workdir)])
    assert command.main() == 0  # loss and gradient norm are those of the record, bit for bit
    told = capsys.readouterr().out
    # Row 6 is the third response to the second problem, whose prompt has three tokens: its token 13 stands at 16.
    groups = make_groups(3)
    row, place = 4 + 2, len(groups[1].prompt) + 13
    token = groups[1].responses[2].tokens[13]
    assert f"row {row}, token {place} (id {token}, " in told
    assert "its old log-prob is not finite" in told
    assert "old log-probs from -" in told
    assert "1 of " in told
    assert "all parameters are finite before the update" in told


def test_any_step_is_kept_on_request_and_replays_to_the_same_bits(stopped):
    workdir, initial, good, *_ = stopped
    path = workdir / "batch_1_0"
    state = restore_state(path, start(workdir)[1])
    chex.assert_trees_all_equal((state.params, state.opt_state), (initial.params, initial.opt_state))
    found = replay_batch(path)
    assert found.is_equal
    assert (found.replayed["loss"], found.replayed["grad_norm"]) == (good["loss"], good["grad_norm"])
    told = "\n".join(found.lines)
    assert "every row on its own has a finite loss and gradient" in told
    assert "the same bit for bit" in told


@pytest.mark.parametrize(("leaf", "layer"), [("layers.mlp.down.kernel", 0), ("final_norm.scale", None)])
def test_a_replay_names_the_parameter_that_is_not_finite(tmp_path, leaf, layer):
    settings = dataclasses.replace(SETTINGS, guards=GuardSettings(max_skipped_updates=1))
    settings = dataclasses.replace(settings, pack=dataclasses.replace(settings.pack, trees="always"))
    learner, state = start(tmp_path, settings)

    def poisoned(path, value):
        is_it = jax.tree_util.keystr(path, simple=True, separator=".") == leaf
        return value.at[(0,) * value.ndim].set(np.nan) if is_it else value

    state = state.replace(params=jax.tree.map_with_path(poisoned, state.params))
    with pytest.raises(TooManySkipped):
        learner.learn(state, make_groups(2))
    found = replay_batch(tmp_path, debug_nans=True)
    assert found.is_equal
    assert np.isnan(found.replayed["loss"])
    told = "\n".join(found.lines)
    where = "1 entries" if layer is None else f"1 entries in layers {layer}"
    assert f"the parameter {leaf} is itself not finite: {where}" in told
    assert "its log-prob is not finite" in told
    assert "jax_debug_nans in row 0: invalid value (nan) encountered" in told


@pytest.mark.slow
def test_adapters_and_packed_trees_replay_on_the_frozen_weights(tmp_path):
    settings = dataclasses.replace(
        SETTINGS, task=TaskSettings(arithmetic=dataclasses.replace(ARITHMETIC, warm_start_stages=())),
        lora=LoraSettings(rank=2), pack=dataclasses.replace(SETTINGS.pack, trees="always"),
        optimizer=dataclasses.replace(SETTINGS.optimizer, micro_batch_rows=0, micro_batch_tokens=64),
    )  # fmt: skip
    learner = Learner(settings, MODEL, None, tmp_path)
    learner.learn(learner.init(draw_params(MODEL, settings.seed)), make_groups(3))
    found = replay_batch(tmp_path / "batch_1_0")
    assert found.is_equal
    record = tmp_path / "batch_1_0" / "record.json"
    record.write_text(record.read_text().replace('"base": "', '"base": "another'))
    with pytest.raises(ValueError, match="is not the one that the adapters"):
        replay_batch(tmp_path / "batch_1_0")


def test_a_directory_without_a_batch_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["replay_batch", str(tmp_path)])
    assert command.main() == 2
    assert "holds no kept batch" in capsys.readouterr().err
