"""A filter of many candidates: in parts, and what is known of them is not sampled again after a stop."""

import dataclasses

import numpy as np
import pytest

from deepsearch_jax.runtime import trainer as trainer_module
from deepsearch_jax.runtime.confidence import evidence_of
from deepsearch_jax.runtime.interrupt import Interrupted
from deepsearch_jax.runtime.rollouts import Purpose
from tests.runtime.parity import ParityTask
from tests.runtime.test_trainer import SETTINGS, StopAt, assert_same_state, finish, make_trainer, rows

SEARCH = dataclasses.replace(SETTINGS.search, confidence="adaptive")
ROUNDS = dataclasses.replace(SETTINGS.rounds, num_rounds=1, steps_per_round=1, max_candidates=36)
FILTERING = dataclasses.replace(SETTINGS, search=SEARCH, rounds=ROUNDS)  # eight slots: five batches


def watch(trainer):
    """Numbers of the problems of every filter call, and the progress it told."""
    calls, progress, groups = [], [], []
    direct, advance = trainer._sampler.direct, trainer._sampler._advance

    def watched(params, problems, num_samples, purpose, *args, **kwargs):
        found = direct(params, problems, num_samples, purpose, *args, **kwargs)
        if purpose == Purpose.FILTER:
            calls.append([problem.key for problem in problems])
            groups.extend(found)
        return found

    trainer._sampler.direct = watched
    trainer._sampler._advance = lambda done, detail: (progress.append(done), advance(done, detail))
    return calls, progress, groups


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("at_once")
    trainer = make_trainer(workdir, FILTERING, ParityTask(40))
    calls, progress, groups = watch(trainer)
    assert finish(trainer).position.filtered == []
    assert list(map(len, calls)) == [36]
    return workdir, trainer, calls[0], groups


def test_parts_choose_the_problems_that_the_whole_does(at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "_FILTER_CHUNK", 2)
    trainer = make_trainer(tmp_path, FILTERING, ParityTask(40))
    calls, progress, _ = watch(trainer)
    learn, learnt = trainer._learn_confidence, []
    trainer._learn_confidence = lambda new: (learnt.append(new), learn(new))[1]
    finish(trainer)
    assert list(map(len, calls)) == [16, 16, 4]
    assert [key for call in calls for key in call] == at_once[2]
    assert progress[:5] == [8, 16, 24, 32, 36]  # of all candidates; the later ones are of the step
    np.testing.assert_array_equal(trainer.arrays.subset, at_once[1].arrays.subset)
    np.testing.assert_array_equal(trainer.arrays.num_correct, at_once[1].arrays.num_correct)
    assert [row["kind"] for row in rows(tmp_path)] == ["filter", "eval", "train", "eval"]
    assert rows(tmp_path)[0] == rows(at_once[0])[0]
    expected = evidence_of(at_once[3])
    assert expected.pairs > 1
    assert dataclasses.asdict(learnt[0]) == pytest.approx(dataclasses.asdict(expected))


# A filter looks before every batch and after every part but the last: 1 p 2 p 3 p 4 p 5.
@pytest.mark.parametrize(
    ("look", "known"), [(5, 2), pytest.param(4, 2, marks=pytest.mark.slow), pytest.param(9, 4, marks=pytest.mark.slow)]
)
def test_a_filter_that_was_stopped_goes_on_behind_what_is_known(tmp_path, monkeypatch, look, known):
    monkeypatch.setattr(trainer_module, "_FILTER_CHUNK", 1)
    whole = finish(make_trainer(tmp_path / "whole", FILTERING, ParityTask(40)))
    with pytest.raises(Interrupted):
        finish(make_trainer(tmp_path / "run", FILTERING, ParityTask(40), StopAt(look)))
    resumed = make_trainer(tmp_path / "run", FILTERING, ParityTask(40))
    assert len(resumed.position.filtered) == 8 * known
    calls, _, _ = watch(resumed)
    finish(resumed)
    assert sum(map(len, calls)) == 36 - 8 * known
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert_same_state(whole, resumed)


def test_a_filter_that_spends_the_budget_ends_as_it_would_have_without_a_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "_FILTER_CHUNK", 1)
    poor = dataclasses.replace(FILTERING, rounds=dataclasses.replace(ROUNDS, max_generated_tokens=10))
    finish(make_trainer(tmp_path / "whole", poor, ParityTask(40)))
    with pytest.raises(Interrupted):
        finish(make_trainer(tmp_path / "run", poor, ParityTask(40), StopAt(5)))
    finish(make_trainer(tmp_path / "run", poor, ParityTask(40)))
    assert [row["kind"] for row in rows(tmp_path / "whole")] == ["filter", "eval"]
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_a_long_filter_is_saved_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "_FILTER_CHUNK", 1)
    trainer = make_trainer(tmp_path, FILTERING, ParityTask(40))
    saved, save = [], trainer._checkpoints.save
    trainer._checkpoints.is_late = lambda: len(trainer.position.filtered) == 16
    trainer._checkpoints.save = lambda number, arrays, record, **kwargs: (
        saved.append(len(record["position"]["filtered"])), save(number, arrays, record, **kwargs)
    )  # fmt: skip
    finish(trainer)
    assert saved[0] == 16
    assert set(saved[1:]) == {0}
