"""The command a user types: messages, stopping, killing and going on, in real processes."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from deepsearch_jax.runtime.metrics import MACHINE_KEY, read_rows
from deepsearch_jax.runtime.workdir import Workdir

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# The quick start at a size that ends in well under a minute.
SMALL = """
from tests import tiny_quickstart

def get_config():
    config = tiny_quickstart.get_config()
    config.rounds.num_rounds = 2
    config.rounds.steps_per_round = 4
    config.checkpoint.every_steps = 2
    return config
"""


def command(tmp_path, workdir, *arguments):
    config = tmp_path / "small.py"
    config.write_text(SMALL)
    return [sys.executable, "-m", "experiments.run", f"--config={config}", f"--workdir={workdir}", *arguments]


def environment(tmp_path):
    # One device, as a user has: the eight virtual ones are for the tests of this process. Compiled programs are kept
    # for the next start, as by default, but not among the user's own.
    return {**os.environ, "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}


def start(tmp_path, workdir, *arguments):
    return subprocess.Popen(
        command(tmp_path, workdir, *arguments), cwd=REPOSITORY, env=environment(tmp_path), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(tmp_path, workdir, *arguments):
    process = start(tmp_path, workdir, *arguments)
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def rows(workdir):
    return [{k: v for k, v in row.items() if k != MACHINE_KEY} for row in read_rows(workdir / "metrics.jsonl")]


def wait_for_step(process, step):
    """Reads what the run tells until it is through with this training step or a later one.

    The rows on disk would not do: those of an earlier start are there before this process can take a signal.
    """
    told = []
    for line in process.stdout:
        told.append(line)
        if (found := re.match(r"step (\d+) r", line)) and int(found[1]) >= step:
            return
    raise AssertionError("".join(told))


@pytest.mark.slow
def test_a_run_killed_and_stopped_goes_on_to_the_same_metrics(tmp_path):
    """More kills, at any moment: tests/faults.py."""
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    code, output = run(tmp_path, whole)
    assert code == 0, output
    assert "held-out accuracy" in output
    assert (whole / "curves.png").stat().st_size > 10_000
    assert (whole / "config.json").exists()
    expected = rows(whole)
    assert [row["step"] for row in expected if row["kind"] == "train"] == list(range(1, 9))

    process = start(tmp_path, workdir)  # killed after the third step, with a checkpoint of the second
    wait_for_step(process, 3)
    process.kill()
    process.communicate()

    process = start(tmp_path, workdir, "--stopped_status=75")  # stopped politely in the second round
    wait_for_step(process, 5)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "the same command goes on" in output

    code, output = run(tmp_path, workdir, "--stopped_status=75")
    assert code == 0, output
    assert "resumed at step" in output
    assert rows(workdir) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.optimizer.learning_rat=1"], ["config.optimizer.learning_rat", "config.optimizer.learning_rate"]),
        (["--config.search.max_depth=deep"], ["max_depth", "deep"]),
        (["--config.search.max_depth=0"], ["max_depth=0", "at least 1"]),
        (["--config.method=gpro"], ["method='gpro'", "deepsearch, grpo, dapo"]),
        (["--config.task.name=math"], ["model.path is empty", "--config.model.path=DIR"]),
        (["--config.num_devices=99"], ["num_devices=99", "this machine has 1"]),
        (["stray"], ["unknown argument 'stray'"]),
        (["--stopped_status=256"], ["stopped_status", "256", "255"]),
    ],
)
def test_mistakes_get_one_clear_line(tmp_path, arguments, words):
    code, output = run(tmp_path, tmp_path / "run", *arguments)
    assert code != 0
    assert "Traceback" not in output
    for word in words:
        assert word in output


def test_a_model_directory_that_is_not_there_is_named(tmp_path):
    missing = tmp_path / "no_model"
    code, output = run(tmp_path, tmp_path / "run", "--config.task.name=math", f"--config.model.path={missing}")
    assert code == 2
    assert str(missing) in output
    assert "Traceback" not in output


def test_a_workdir_of_another_config_says_which_keys_differ(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps({"seed": 5}))
    code, output = run(tmp_path, workdir)
    assert code == 2
    assert "seed: 5 -> 0" in output


def test_a_second_run_in_a_workdir_is_refused(tmp_path):
    place = Workdir(tmp_path / "run")
    code, output = run(tmp_path, tmp_path / "run")
    place.close()
    assert code == 2
    assert "in use by another run" in output
    assert "Traceback" not in output


def test_an_unknown_variant_is_named(tmp_path):
    config = REPOSITORY / "experiments/configs/quickstart.py:slow"
    process = subprocess.run(
        [sys.executable, "-m", "experiments.run", f"--config={config}", f"--workdir={tmp_path}"],
        cwd=REPOSITORY, env=environment(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode != 0
    assert "no variant 'slow'" in process.stderr
    assert "Traceback" not in process.stderr
