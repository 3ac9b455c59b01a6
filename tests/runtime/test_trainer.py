"""Whole runs on a small task: what a step does, what stays out, and that a resumed run repeats an uninterrupted one."""

import dataclasses
import gc
import json
import shutil
import subprocess

import chex
import jax
import numpy as np
import pytest

from deepsearch_jax.runtime import (
    AlarmSettings,
    AlarmStop,
    CheckpointError,
    MeshSettings,
    WorkdirError,
    build_mesh,
    build_policy,
)
from deepsearch_jax.runtime.checkpoints import Checkpoints
from deepsearch_jax.runtime.debug import DebugSettings, watch_nans
from deepsearch_jax.runtime.interrupt import Interrupted, StopRequest
from deepsearch_jax.runtime.metrics import MACHINE_KEY, read_rows
from deepsearch_jax.runtime.progress import Reporter
from deepsearch_jax.runtime.settings import RoundSettings
from deepsearch_jax.runtime.trainer import Trainer
from deepsearch_jax.runtime.workdir import explain_unwritable
from deepsearch_jax.types import Outcome, TokenBatch
from tests.runtime.conftest import tiny_settings
from tests.runtime.documented import check_rows
from tests.runtime.parity import ParityTask

SETTINGS = tiny_settings()


class StopAt(StopRequest):
    """Asks for a stop at the n-th look."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def check(self):
        self.number -= 1
        if self.number == 0:
            raise Interrupted("test")


def make_trainer(workdir, settings=SETTINGS, task=None, stop=None):
    workdir.mkdir(exist_ok=True, parents=True)
    task = task or ParityTask()
    model, params = build_policy(settings.model, task, settings.search, settings.seed)
    return Trainer(
        settings, task, model, params, workdir, mesh=build_mesh(settings.num_devices), reporter=Reporter(),
        stop=stop or StopRequest(),
    )  # fmt: skip


def finish(trainer):
    try:
        trainer.run()
    finally:
        trainer.close()
    return trainer


def rows(workdir):
    """All rows without what depends on the machine."""
    return [{k: v for k, v in row.items() if k != MACHINE_KEY} for row in read_rows(workdir / "metrics.jsonl")]


def assert_same_state(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.arrays, other.arrays)
    saves = one.position.saves  # a stop saves once more
    assert one.position == dataclasses.replace(other.position, saves=saves)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, finish(make_trainer(workdir))


def test_a_run_filters_searches_updates_and_evaluates(whole):
    workdir, trainer = whole
    kinds = [row["kind"] for row in rows(workdir)]
    assert kinds == ["filter", "eval", "train", "train", "filter", "train", "train", "eval"]
    trains = [row for row in rows(workdir) if row["kind"] == "train"]
    assert [row["step"] for row in trains] == [1, 2, 3, 4]
    assert [row["round"] for row in trains] == [0, 0, 1, 1]
    assert sum(row["updates"] for row in trains) == int(trainer.arrays.train.step) > 0
    assert any(row["tree_solved_share"] > 0 for row in trains)
    assert trains[-1]["generated_tokens"] == trainer.position.generated_tokens
    # Every generated token is one of a filter or of a step; evaluation is not counted.
    steps = sum(row["step_tokens"] for row in trains)
    assert 0 < steps < trainer.position.generated_tokens


def test_rows_have_exactly_the_documented_names(whole):
    written = read_rows(whole[0] / "metrics.jsonl")
    assert {row["kind"] for row in written} == {"filter", "eval", "train"}  # the warm start's: below
    check_rows(written)


def test_a_run_ends_at_the_level_asked_for(tmp_path):
    everything = dataclasses.replace(SETTINGS.rounds, filter_problems=False)
    evaluation = dataclasses.replace(SETTINGS.evaluation, every_steps=1, num_samples=8, stop_at=0.01)
    settings = dataclasses.replace(SETTINGS, rounds=everything, evaluation=evaluation)
    finish(make_trainer(tmp_path, settings))
    (row,) = rows(tmp_path)  # the parity of a digit is guessed often enough before any step
    assert (row["kind"], row["step"]) == ("eval", 0)
    assert 0.01 <= row["pass_at_1"] == sum(row["num_correct"]) / (8 * row["num_problems"])
    again = finish(make_trainer(tmp_path, settings))
    assert again.position.has_reached
    assert len(rows(tmp_path)) == 1


def test_on_policy_updates_have_ratio_one(whole):
    trained = [row for row in rows(whole[0]) if row["kind"] == "train" and row["updates"]]
    assert trained
    for row in trained:
        assert row["mean_ratio"] == pytest.approx(1.0, abs=1e-6)
        assert row["max_abs_log_ratio"] == 0.0


def test_correct_paths_of_searches_are_cached_and_used(tmp_path):
    everything = dataclasses.replace(SETTINGS.rounds, filter_problems=False, num_rounds=1, steps_per_round=6)
    settings = dataclasses.replace(SETTINGS, rounds=everything)
    trainer = finish(make_trainer(tmp_path, settings, ParityTask(num_problems=4)))
    trains = [row for row in rows(tmp_path) if row["kind"] == "train"]
    # All four problems come in every step: what the first one solved is not searched in the second.
    assert trains[0]["cached_share"] == 0.0
    assert trains[0]["trees"] == 4
    solved = round(trains[0]["tree_solved_share"] * 4)
    assert solved > 0
    assert trains[1]["trees"] == 4 - solved
    assert trains[1]["cached_share"] == solved / 4
    cache = trainer.arrays.cache
    eos = trainer.task.tokenizer.eos_ids[0]
    for slot in np.flatnonzero(np.asarray(cache.problem_ids) >= 0):
        problem = trainer.problems[int(cache.problem_ids[slot])]
        for p in range(int(cache.counts[slot])):
            tokens = np.asarray(cache.tokens[slot, p]).reshape(-1)[: int(cache.lengths[slot, p])]
            (verdict,) = trainer.task.score([(problem, trainer.task.tokenizer.decode(tokens.tolist()))])
            assert verdict.score == 1.0
            assert eos not in tokens[:-1]


def test_problems_that_pass_the_filter_leave_the_subset_and_the_cache(tmp_path):
    def can_be_solved(problem):
        return problem.key % 2 == 0

    filtering = dataclasses.replace(SETTINGS.filter, easy_share=0.0, num_samples=4, threshold=0.25)
    rounds = RoundSettings(num_rounds=2, steps_per_round=2, problems_per_step=4, group_size=4, refilter="all")
    settings = dataclasses.replace(SETTINGS, filter=filtering, rounds=rounds)
    trainer = finish(make_trainer(tmp_path, settings, ParityTask(solvable=can_be_solved)))
    num_correct, subset = np.asarray(trainer.arrays.num_correct), np.asarray(trainer.arrays.subset)
    assert (num_correct[1::2] == 0).all()
    assert subset[1::2].all()  # never solved, always hard
    assert (num_correct[::2] > 0).any()
    np.testing.assert_array_equal(subset, num_correct < 1)  # below 25 % of four samples
    # The last filter ran before the last two steps; what they inserted is from hard problems only.
    cached = np.asarray(trainer.arrays.cache.problem_ids)
    assert all(subset[problem] for problem in cached[cached >= 0])


def test_the_checks_of_jax_change_no_number(whole, tmp_path):
    debug = DebugSettings(nans=True, transfer_guard=True)
    with watch_nans(debug):
        checked = finish(make_trainer(tmp_path, dataclasses.replace(SETTINGS, debug=debug)))
    assert rows(tmp_path) == rows(whole[0])
    jax.tree.map(np.testing.assert_array_equal, checked.arrays, whole[1].arrays)


@pytest.mark.parametrize("looks", [2, 9, *(pytest.param(looks, marks=pytest.mark.slow) for looks in (5, 14))])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(whole, tmp_path, looks):
    with pytest.raises(Interrupted):
        finish(make_trainer(tmp_path, stop=StopAt(looks)))
    resumed = finish(make_trainer(tmp_path))
    assert rows(tmp_path) == rows(whole[0])
    assert_same_state(resumed, whole[1])


def test_rows_written_after_the_last_checkpoint_are_written_again(whole, tmp_path):
    """As after kill -9: the process dies with rows on disk that no checkpoint knows."""
    trainer = make_trainer(tmp_path, dataclasses.replace(SETTINGS, checkpoint=dataclasses.replace(
        SETTINGS.checkpoint, every_steps=100)))  # fmt: skip
    trainer._save = lambda wait: None if trainer.position.step else Trainer._save(trainer, wait=wait)
    finish(trainer)
    assert len(rows(tmp_path)) == 8
    resumed = make_trainer(tmp_path)
    assert resumed.position.step == 0
    finish(resumed)
    assert rows(tmp_path) == rows(whole[0])
    jax.tree.map(np.testing.assert_array_equal, resumed.arrays, whole[1].arrays)


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(whole, tmp_path, capsys):
    """The rows behind the checkpoint before it go, and the steps are done again to the same end."""
    shutil.copytree(whole[0], tmp_path / "run")
    newest = max((tmp_path / "run/checkpoints").iterdir(), key=lambda path: int(path.name))
    data = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    resumed = make_trainer(tmp_path / "run")
    told = capsys.readouterr().out
    assert f"checkpoint {newest.name} is damaged: {data.relative_to(newest)} has the SHA-256 sum" in told
    assert f"resumed at step {resumed.position.step} (checkpoint {int(newest.name) - 1})" in told
    assert len(rows(tmp_path / "run")) < len(rows(whole[0]))
    finish(resumed)
    assert rows(tmp_path / "run") == rows(whole[0])
    assert_same_state(resumed, whole[1])


def test_a_resumed_run_holds_nothing_twice(whole, monkeypatch):
    """When the saved arrays are read, those that a new run would start with are gone."""
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    held = []

    def restore_arrays(self, like):
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(like))
        held.append(sum(array.nbytes for array in jax.live_arrays()) - before)
        return original(self, like)

    original = Checkpoints.restore_arrays
    monkeypatch.setattr(Checkpoints, "restore_arrays", restore_arrays)
    trainer = make_trainer(whole[0])
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(trainer.arrays))
    trainer.close()
    assert held[0] < size / 50


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of tasks that Orbax leaves behind then
def test_a_full_disk_stops_a_run_and_more_space_lets_it_go_on(whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=350k", "none", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        refused = pytest.raises((CheckpointError, WorkdirError), match="start the same command again")
        with refused as error, explain_unwritable(disk / "run"):
            finish(make_trainer(disk / "run"))
        assert "No space left" in str(error.value)
        subprocess.run(["mount", "-o", "remount,size=30m", disk], check=True)
        resumed = finish(make_trainer(disk / "run"))
        assert rows(disk / "run") == rows(whole[0])
        assert_same_state(resumed, whole[1])
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_finished_run_does_nothing_more(whole, tmp_path):
    workdir, trainer = whole
    before = (workdir / "metrics.jsonl").read_text()
    again = finish(make_trainer(workdir))
    assert (workdir / "metrics.jsonl").read_text() == before
    assert_same_state(again, trainer)


def test_other_problems_than_at_the_start_are_refused(whole):
    with pytest.raises(ValueError, match="training problems are not those"):
        make_trainer(whole[0], task=ParityTask(num_problems=11))
    task = ParityTask()
    task.eval_problems = [dataclasses.replace(problem, question="77") for problem in task.eval_problems]
    with pytest.raises(ValueError, match="held-out problems are not those"):
        make_trainer(whole[0], task=task)


def test_the_config_in_the_checkpoint_is_compared(whole):
    """Also where config.json was removed or changed by hand."""
    other = dataclasses.replace(SETTINGS, loss=dataclasses.replace(SETTINGS.loss, dual_clip=3.0), num_devices=0)
    with pytest.raises(
        ValueError, match=r"checkpoint \d+ in .* holds a run of another config.*loss\.dual_clip"
    ) as error:
        make_trainer(whole[0], settings=other)
    assert "num_devices" not in str(error.value)  # it may change


@pytest.mark.parametrize("method", ["grpo", "dapo"])
def test_baselines_sample_directly_with_outcome_advantages(tmp_path, method):
    settings = dataclasses.replace(
        SETTINGS,
        method=method,
        advantage=dataclasses.replace(SETTINGS.advantage, level="outcome", normalisation="mean_std"),
        rounds=dataclasses.replace(
            SETTINGS.rounds, num_rounds=1, filter_problems=False, dynamic_sampling_batches=3 if method == "dapo" else 1
        ),
    )
    trainer = finish(make_trainer(tmp_path, settings))
    trains = [row for row in rows(tmp_path) if row["kind"] == "train"]
    assert all(row["trees"] == 0 and row["cached_share"] == 0 for row in trains)
    assert int(trainer.arrays.train.step) == 2
    if method == "dapo":
        assert all(row["dropped_groups"] == 0 for row in trains)
        assert all(row["trained_groups"] <= 4 for row in trains)


def test_several_updates_a_step_use_the_old_policy(tmp_path):
    rounds = dataclasses.replace(
        SETTINGS.rounds, problems_per_update=2, num_rounds=1, filter_problems=False, steps_per_round=1
    )
    optimizer = dataclasses.replace(SETTINGS.optimizer, learning_rate=1e-2)
    settings = dataclasses.replace(SETTINGS, rounds=rounds, optimizer=optimizer)
    trainer = finish(make_trainer(tmp_path, settings))
    (train,) = [row for row in rows(tmp_path) if row["kind"] == "train"]
    assert train["updates"] == 2
    assert int(trainer.arrays.train.step) == 2
    assert train["max_abs_log_ratio"] > 1e-4  # the second update is off policy
    assert 0 < train["max_decode_train_gap"] < 1e-4  # decode and training forward agree


def test_the_config_of_the_readme_can_be_saved_as_json(tmp_path):
    assert json.loads(json.dumps(dataclasses.asdict(SETTINGS)))["seed"] == 0


def test_an_alarm_stops_the_run_saved_and_the_same_command_goes_on(whole, tmp_path, capsys):
    """In every step some response is cut off; the limit has its patience anew after a stop."""
    alarms = AlarmSettings(truncated_share_ceiling=1e-6, patience=2, stop=True)
    settings = dataclasses.replace(SETTINGS, alarms=alarms)
    for step in (2, 4):
        with pytest.raises(AlarmStop, match=rf"stopped at step {step}: truncated_share .* \(2 steps in a row\)"):
            finish(make_trainer(tmp_path, settings))
    assert "warning: truncated_share" in capsys.readouterr().out
    resumed = finish(make_trainer(tmp_path, settings))
    found = rows(tmp_path)
    limit = ["truncated_share_ceiling"]
    assert [row["alarms"] for row in found if row["kind"] == "train"] == [[], limit, [], limit]
    assert [row | {"alarms": []} if "alarms" in row else row for row in found] == rows(whole[0])
    jax.tree.map(np.testing.assert_array_equal, resumed.arrays, whole[1].arrays)


@pytest.mark.slow
def test_the_reference_is_the_policy_after_the_warm_start_and_resumes(tmp_path):
    loss = dataclasses.replace(SETTINGS.loss, kl_coefficient=0.5, importance_cap=2.0)
    rounds = dataclasses.replace(SETTINGS.rounds, num_rounds=1)
    advantage = dataclasses.replace(SETTINGS.advantage, drop_uniform=False)
    settings = dataclasses.replace(SETTINGS, loss=loss, rounds=rounds, advantage=advantage)
    started = make_trainer(tmp_path / "start", settings, WarmStarted())
    fresh = started.arrays.reference
    started._warm_start()
    after = jax.device_get(started.arrays.train.params)
    started.close()
    whole = finish(make_trainer(tmp_path / "whole", settings, WarmStarted()))
    chex.assert_trees_all_equal(jax.device_get(whole.arrays.reference), after)
    assert not np.array_equal(fresh["embed"]["embedding"], after["embed"]["embedding"])
    trains = [row for row in rows(tmp_path / "whole") if row["kind"] == "train"]
    assert trains[0]["kl_to_reference"] == 0  # the first update starts from it
    assert trains[1]["kl_to_reference"] > 0
    with pytest.raises(Interrupted):
        finish(make_trainer(tmp_path / "run", settings, WarmStarted(), StopAt(7)))
    resumed = finish(make_trainer(tmp_path / "run", settings, WarmStarted()))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert_same_state(resumed, whole)


class WarmStarted(ParityTask):
    """100 supervised steps on constant rows before the rounds."""

    def warm_start(self, step):
        if step >= 100:
            return None
        tokens = np.full((16, 16), 3, np.int32)
        mask = np.ones(tokens.shape, bool)
        zeros = np.zeros(tokens.shape, np.float32)
        return TokenBatch(tokens, mask.astype(np.int32), mask, zeros, zeros), 1e-3


@pytest.mark.parametrize("looks", [1, 3, *(pytest.param(looks, marks=pytest.mark.slow) for looks in (2, 4))])
def test_a_stop_around_the_end_of_the_warm_start_changes_nothing(tmp_path, looks):
    (tmp_path / "whole").mkdir()
    (tmp_path / "run").mkdir()
    one_step = dataclasses.replace(SETTINGS.rounds, num_rounds=1, steps_per_round=1)
    settings = dataclasses.replace(SETTINGS, rounds=one_step)
    whole = finish(make_trainer(tmp_path / "whole", settings, WarmStarted()))
    assert rows(tmp_path / "whole")[0]["kind"] == "warm_start"
    check_rows(read_rows(tmp_path / "whole" / "metrics.jsonl"))
    with pytest.raises(Interrupted):
        finish(make_trainer(tmp_path / "run", settings, WarmStarted(), StopAt(looks)))
    resumed = finish(make_trainer(tmp_path / "run", settings, WarmStarted()))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert_same_state(resumed, whole)


def test_a_dapo_run_resumes_its_draws(tmp_path):
    settings = dataclasses.replace(
        SETTINGS,
        method="dapo",
        advantage=dataclasses.replace(SETTINGS.advantage, level="outcome", normalisation="mean_std"),
        rounds=dataclasses.replace(SETTINGS.rounds, num_rounds=1, filter_problems=False, dynamic_sampling_batches=2),
    )
    whole = finish(make_trainer(tmp_path / "whole", settings))
    with pytest.raises(Interrupted):
        finish(make_trainer(tmp_path / "run", settings, stop=StopAt(4)))
    resumed = finish(make_trainer(tmp_path / "run", settings))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert_same_state(resumed, whole)
    trains = [row for row in rows(tmp_path / "run") if row["kind"] == "train"]
    assert all(row["drawn_groups"] >= row["trained_groups"] for row in trains)


@pytest.mark.slow
def test_eight_devices_run_and_resume(tmp_path):
    settings = dataclasses.replace(SETTINGS, num_devices=8)
    with pytest.raises(Interrupted):
        finish(make_trainer(tmp_path, settings, stop=StopAt(9)))
    trainer = finish(make_trainer(tmp_path, settings))
    assert len(trainer.arrays.cache.tokens.sharding.device_set) == 8
    assert int(trainer.arrays.train.step) > 0
    assert [row["step"] for row in rows(tmp_path) if row["kind"] == "train"] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_run_with_spread_parameters_resumes_on_one_device_as_it_would_have_gone_on(tmp_path):
    rounds = dataclasses.replace(SETTINGS.rounds, num_rounds=1, steps_per_round=2)
    spread = dataclasses.replace(SETTINGS, num_devices=8, mesh=MeshSettings(fsdp=2, tensor=2), rounds=rounds)
    trainer = finish(make_trainer(tmp_path / "spread", spread))
    matrix = trainer.arrays.train.params["layers"]["mlp"]["down"]["kernel"]
    assert matrix.sharding.shard_shape(matrix.shape)[1:] == (matrix.shape[1] // 2, matrix.shape[2] // 2)
    one = dataclasses.replace(spread, num_devices=1, mesh=MeshSettings())
    alone = finish(make_trainer(tmp_path / "one", one))
    for first, second in zip(rows(tmp_path / "spread"), rows(tmp_path / "one"), strict=True):
        for name in ("loss", "grad_norm", "reward", "generated_tokens", "trained_tokens"):
            if first.get(name) is not None:
                np.testing.assert_allclose(first[name], second[name], rtol=1e-4, atol=1e-6, err_msg=name)
    longer = dataclasses.replace(one, rounds=dataclasses.replace(rounds, num_rounds=2))
    resumed = make_trainer(tmp_path / "spread", longer)
    assert resumed.position.step == 2
    chex.assert_trees_all_close(resumed.arrays.train.params, alone.arrays.train.params, rtol=1e-3, atol=1e-5)
    finish(resumed)


def test_a_mesh_that_does_not_divide_the_devices_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must divide the 8 device"):
        make_trainer(tmp_path, dataclasses.replace(SETTINGS, num_devices=8, mesh=MeshSettings(fsdp=3)))


def test_easy_problems_that_stay_lose_their_cached_paths(tmp_path):
    filtering = dataclasses.replace(SETTINGS.filter, easy_share=1.0, num_samples=4)
    rounds = dataclasses.replace(SETTINGS.rounds, num_rounds=2, steps_per_round=3, max_candidates=0)
    trainer = make_trainer(tmp_path, dataclasses.replace(SETTINGS, filter=filtering, rounds=rounds))
    cached_after_filter = []
    original = trainer._filter

    def watch():
        original()
        ids = np.asarray(trainer.arrays.cache.problem_ids)
        cached_after_filter.append(ids[ids >= 0])

    trainer._filter = watch
    finish(trainer)
    assert np.asarray(trainer.arrays.subset).all()  # every easy problem stays
    assert (np.asarray(trainer.arrays.cache.problem_ids) >= 0).any()
    num_correct = np.asarray(trainer.arrays.num_correct)
    assert all(num_correct[problem] == 0 for problem in cached_after_filter[1])


def test_no_hard_problem_left_takes_all(tmp_path):
    filtering = dataclasses.replace(SETTINGS.filter, easy_share=0.0, threshold=1e-9, num_samples=4)
    settings = dataclasses.replace(
        SETTINGS, filter=filtering, rounds=dataclasses.replace(SETTINGS.rounds, num_rounds=1, steps_per_round=1)
    )

    class AlwaysRight(ParityTask):
        def score(self, items):
            return [verdict._replace(score=1.0) for verdict in super().score(items)]

    trainer = finish(make_trainer(tmp_path, settings, AlwaysRight()))
    assert np.asarray(trainer.arrays.num_correct).min() == 4
    assert np.asarray(trainer.arrays.subset).all()
    (train,) = [row for row in rows(tmp_path) if row["kind"] == "train"]
    assert train["updates"] == 0  # every group has equal rewards and is dropped
    assert train["correct_share"] == 1.0
    assert Outcome.CORRECT == 1
