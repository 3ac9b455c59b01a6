"""The shared start of several runs: averaged weights, saved once, from which a run goes on."""

import dataclasses

import jax
import numpy as np
import pytest

from deepsearch_jax.config import to_config
from deepsearch_jax.data.arithmetic import WarmStartStage
from deepsearch_jax.data.countdown import CountdownSettings
from deepsearch_jax.policy import load_pretrained
from deepsearch_jax.runtime import run
from deepsearch_jax.runtime.metrics import read_rows
from deepsearch_jax.runtime.start import save_warm_started
from deepsearch_jax.runtime.tasks import TaskSettings, build_task
from tests.runtime.conftest import ARITHMETIC, tiny_settings


def with_steps(num_steps):
    stages = (WarmStartStage(num_steps=num_steps, learning_rate=1e-2, lengths=(1, 2)),) if num_steps else ()
    arithmetic = dataclasses.replace(ARITHMETIC, warm_start_stages=stages)
    return tiny_settings(task=TaskSettings(arithmetic=arithmetic))


@pytest.mark.slow
def test_saved_weights_are_the_mean_of_the_last_steps(tmp_path):
    for steps in (5, 6, 7):
        save_warm_started(with_steps(steps), tmp_path / str(steps))
    save_warm_started(with_steps(7), tmp_path / "mean", average_last=3)
    last = [load_pretrained(tmp_path / str(steps))[1] for steps in (5, 6, 7)]
    mean = load_pretrained(tmp_path / "mean")[1]
    jax.tree.map(lambda a, b, c, m: np.testing.assert_allclose(m, (a + b + c) / 3, atol=1e-6), *last, mean)
    with pytest.raises(ValueError, match="average_last=8 of a warm start of 7 steps"):
        save_warm_started(with_steps(7), tmp_path / "x", average_last=8)


@pytest.mark.slow
def test_a_run_goes_on_from_a_saved_start_until_its_budget(tmp_path):
    save_warm_started(with_steps(2), tmp_path / "start")
    settings = with_steps(0)
    model = dataclasses.replace(settings.model, path=str(tmp_path / "start"))
    rounds = dataclasses.replace(settings.rounds, filter_problems=False, max_generated_tokens=1)
    settings = dataclasses.replace(settings, model=model, rounds=rounds)
    assert run(settings, to_config(settings).to_dict(), tmp_path / "run")
    rows = read_rows(tmp_path / "run/metrics.jsonl")
    # One step, since the first is over one token; no warm start of its own.
    assert [(row["kind"], row["step"]) for row in rows] == [("eval", 0), ("train", 1), ("eval", 1)]
    assert len(rows[0]["num_correct"]) == 4
    assert rows[0]["machine"]["compilations"] > 0
    assert rows[1]["machine"]["cpu_seconds_rollout"] > 0
    assert (tmp_path / "run/policy/config.json").exists()
    # Started again it does nothing more.
    assert run(settings, to_config(settings).to_dict(), tmp_path / "run")
    assert len(read_rows(tmp_path / "run/metrics.jsonl")) == 3


def test_a_task_with_a_warm_start_refuses_a_pretrained_model():
    with pytest.raises(ValueError, match="switch the warm start off"):
        tiny_settings(model=dataclasses.replace(tiny_settings().model, path="policy"))


def test_countdown_is_a_task_of_the_trainer():
    settings = TaskSettings("countdown", countdown=CountdownSettings(num_train_problems=4, warm_start_steps=2))
    task = build_task(settings, "", 0)
    problem = task.train_problems[0]
    assert task.tokenizer.decode(task.prompt(problem)) == problem.question
    (good, bad) = task.score([(problem, "25*03=75,75+07=82"), (problem, "25*03=75,")])
    assert (good.is_answered, bad.is_answered) == (True, False)
    assert task.warm_start(1)[1] == 2e-3
    assert task.warm_start(2) is None
    assert settings.has_warm_start
    assert not TaskSettings("countdown", countdown=CountdownSettings(warm_start_steps=0)).has_warm_start
