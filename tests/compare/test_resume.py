"""A suite in real processes: killed and started again it finds what an uninterrupted one finds."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from deepsearch_jax.runtime.interrupt import Interrupted
from experiments.compare.cells import Progress, is_finished, run_cells
from experiments.compare.suite import grid_cells
from tests.compare.tiny_suite import get_suite
from tests.flags import QUICK_TO_COMPILE

run_module = sys.modules["deepsearch_jax.runtime.run"]  # the package has a function of this name

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
SUITE = "tests/compare/tiny_suite.py"
COSTS_OF_THE_CLOCK = ("cpu_seconds", "wall_seconds")


def start(workdir, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.compare", f"--suite={SUITE}", f"--workdir={workdir}", *arguments],
        cwd=REPOSITORY, env={**os.environ, "XLA_FLAGS": QUICK_TO_COMPILE, "PYTHONUNBUFFERED": "1"},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(workdir, *arguments):
    process = start(workdir, *arguments)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def without_clock(value):
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if k not in COSTS_OF_THE_CLOCK}
    return [without_clock(item) for item in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_a_stop_that_comes_while_a_run_ends_is_a_stop_of_the_suite(tmp_path, monkeypatch):
    suite = get_suite()
    first, second = grid_cells(suite)[:2]
    end = run_module._finish

    def asked_meanwhile(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        end(*arguments)

    monkeypatch.setattr(run_module, "_finish", asked_meanwhile)
    with pytest.raises(Interrupted):
        run_cells([first, second], tmp_path, Progress(2, 1, Console(quiet=True)))
    assert is_finished(first, tmp_path)
    assert not second.directory(tmp_path).exists()


@pytest.mark.slow
def test_a_killed_suite_goes_on_and_finds_the_same(tmp_path):
    whole = tmp_path / "whole"
    output = finish(whole)
    assert "[1/2] tiny/grpo/learning_rate=0.001/seed-0" in output
    files = {path.name for path in whole.glob("results.*")}
    assert files == {"results.json", "results.md", "results.png", "results.html"}
    assert "data:image/png;base64," in (whole / "results.html").read_text()

    # Killed in the middle of the second run, then once more in whatever comes after that.
    killed = tmp_path / "killed"
    for name in ("grpo/learning_rate=0.003/seed-0", "deepsearch/default/seed-1"):
        process = start(killed)
        rows = killed / "runs/tiny" / name / "metrics.jsonl"
        deadline = time.monotonic() + 500
        while not (rows.exists() and '"train"' in rows.read_text()) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    first = killed / "runs/tiny/grpo/learning_rate=0.001/seed-0/finished.json"
    made = first.stat().st_mtime_ns
    finish(killed)
    assert first.stat().st_mtime_ns == made
    one, other = (json.loads((place / "results.json").read_text()) for place in (whole, killed))
    assert without_clock(one) == without_clock(other)
    assert one["missing"] == []
    found = one["settings"]["tiny"]
    assert set(found["test"]) == {"start", "deepsearch", "grpo"}
    assert found["methods"]["grpo"]["point"] in ({"optimizer.learning_rate": lr} for lr in (1e-3, 3e-3))

    # Test problems are sampled once: nothing is left to do, and the page comes from the saved runs.
    tests = {path: path.stat().st_mtime_ns for path in (whole / "test").rglob("*.json")}
    assert len(tests) == 6
    assert "test of" not in finish(whole)
    assert tests == {path: path.stat().st_mtime_ns for path in (whole / "test").rglob("*.json")}
    command = [sys.executable, "-m", "experiments.compare", "--report", whole, "--output", tmp_path / "docs/results.md"]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    assert "### tiny: for tests" in (tmp_path / "docs/results.md").read_text()
    assert (tmp_path / "docs/results/tiny.png").stat().st_size > 10_000


@pytest.mark.slow
def test_two_jobs_share_the_runs(tmp_path):
    finish(tmp_path, "--jobs=2")
    log = (tmp_path / "helper-1.log").read_text()
    assert "tiny/" in log
    assert json.loads((tmp_path / "results.json").read_text())["missing"] == []
