"""Runs the cells of a suite one after the other; whatever is finished is recognised, whatever is not goes on."""

import contextlib
import fcntl
import functools
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from deepsearch_jax.config import differing_keys
from deepsearch_jax.runtime import build_task, fingerprint_of, printable, run
from deepsearch_jax.runtime.compile_cache import enable_compile_cache
from deepsearch_jax.runtime.interrupt import Interrupted, StopRequest
from deepsearch_jax.runtime.metrics import read_rows
from deepsearch_jax.runtime.progress import Reporter
from deepsearch_jax.runtime.start import save_warm_started
from deepsearch_jax.runtime.workdir import write_json
from experiments.compare.suite import Cell, seeded, settings_of
from experiments.settings import Setting

FINISHED = "finished.json"
# Every program compiled for CPU keeps mappings of memory; past the system's limit (65,530 by default on Linux) the next
# compilation ends the process.
_MANY_MAPPINGS = 25_000
# Settings in which a cell may differ from the one that finished; `make_start` looks at what lies at model.path.
_STARTED = ("model.path", "compile_cache")
_LATER = ("rollout.rows_at_once",)  # that do not change results, and that cells of earlier versions do not have


class QuietReporter(Reporter):
    """Says nothing of a run but its evaluations."""

    def __init__(self, say: Callable[[str], None]):
        super().__init__(Console(quiet=True))
        self._say = say

    def line(self, text: str) -> None:
        if "held-out" in text and text.startswith("step"):
            self._say("    " + text)


@contextlib.contextmanager
def claimed(path: pathlib.Path, *, wait: bool) -> Iterator[bool]:
    """Holds a lock file beside what is being made; gives False if another process has it and `wait` is not set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True  # closing the file gives the lock back, and so does the end of the process


def drop_programs() -> None:
    """Forgets compiled programs once there are very many."""
    mappings = pathlib.Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > _MANY_MAPPINGS:
        jax.clear_caches()


def start_of(workdir: pathlib.Path, setting: Setting, seed: int) -> pathlib.Path:
    """Where the policy that all methods start from lies."""
    return workdir / "starts" / setting.name / f"seed-{seed}"


def make_start(workdir: pathlib.Path, setting: Setting, seed: int, say: Callable[[str], None]) -> pathlib.Path:
    """The policy of (setting, seed) that all methods start from; made if it is not there.

    Raises:
      ValueError: one of another recipe is there, or the suite was begun with other pretrained weights.
    """
    place = start_of(workdir, setting, seed)
    config = seeded(setting, seed)
    if not setting.average_last:
        return _check_pretrained(place.with_name("pretrained.json"), config.model.path)
    groups = {name: config[name].to_dict() for name in ("task", "model", "warm_start")}
    recipe = json.loads(json.dumps({**groups, "seed": seed, "average": setting.average_last}))
    with claimed(place.with_suffix(".lock"), wait=True):
        if (place / "start.json").exists():
            saved = json.loads((place / "start.json").read_text())
            if differing := differing_keys(saved["recipe"], recipe):
                raise ValueError(f"{place} is of another recipe; remove it or choose another workdir: {differing[:4]}")
            return place
        begin = time.monotonic()
        say(f"warm start of {setting.name}, seed {seed}")
        enable_compile_cache(config.compile_cache)
        shutil.rmtree(place, ignore_errors=True)
        settings = settings_of(config)
        loss = save_warm_started(settings, place, average_last=setting.average_last)
        write_json(place / "start.json", {"recipe": recipe, "loss": loss, "seconds": time.monotonic() - begin})
        say(f"    {time.monotonic() - begin:.0f}s, loss {loss:.3f}")
    drop_programs()
    return place


def _check_pretrained(note: pathlib.Path, path: str) -> pathlib.Path:
    """The pretrained model at `path`, once it is known to be the one that the suite's other cells started from."""
    weights = _weights_at(path)
    with claimed(note.with_suffix(".lock"), wait=True):
        if not note.exists():  # suites of earlier versions have none: they go on with the model they are given
            write_json(note, {"path": path, "weights": weights})
        elif (saved := json.loads(note.read_text()))["weights"] != weights:
            raise ValueError(
                f"the suite's cells started from the model at {saved['path']!r}, and that at {path!r} has "
                "other weights; give that model again (DEEPSEARCH_MODEL_DIR) or choose another workdir"
            )
    return pathlib.Path(path)


@functools.cache  # a process asks before each of its cells
def _weights_at(path: str) -> str:
    return fingerprint_of(path)


def comparable(config: ConfigDict) -> dict[str, Any]:
    """A cell's config as JSON without what does not change its result."""
    values = json.loads(json.dumps(config.to_dict()))
    for name in _STARTED:
        group, _, key = name.rpartition(".")
        (values[group] if group else values)[key] = ""
    for name in _LATER:
        group, _, key = name.rpartition(".")
        del values[group][key]
    return values


def is_finished(cell: Cell, workdir: pathlib.Path) -> bool:
    """Whether the cell has been run to its end.

    Raises:
      ValueError: with other settings; the message says which.
    """
    path = cell.directory(workdir) / FINISHED
    if not path.exists():
        return False
    saved = json.loads(path.read_text())["config"]
    if differing := differing_keys(saved, comparable(cell.config(None))):
        raise ValueError(
            f"{path.parent} was run with other settings; remove it to run it again, or choose another workdir: "
            + "; ".join(differing[:4])
        )
    return True


def run_cell(cell: Cell, workdir: pathlib.Path, say: Callable[[str], None]) -> None:
    """Runs one cell to its end, or goes on with it.

    Raises:
      Interrupted: a stop was asked for; the cell's state is saved, or the cell finished.
    """
    config = cell.config(make_start(workdir, cell.setting, cell.seed, say))
    place = cell.directory(workdir)
    settings, stop = settings_of(config), StopRequest()
    if not run(settings, config.to_dict(), place, reporter=QuietReporter(say), stop=stop):
        raise Interrupted(cell.name)
    task = build_task(settings.task, settings.model.path, settings.seed)
    try:
        prompts = [len(task.prompt(problem)) for problem in task.train_problems]
    finally:
        task.close()
    write_json(place / FINISHED, {"config": comparable(config), "prompt_length": float(np.mean(prompts))})
    shutil.rmtree(place / "checkpoints", ignore_errors=True)  # the policy is saved apart
    drop_programs()
    stop.check()  # one that came while the run was ending must end the suite


class Progress:
    """Which cell of how many, and the time left at the pace of the cells that this process has run."""

    def __init__(self, total: int, jobs: int, console: Console):
        self._total, self._jobs, self.console = total, jobs, console
        self._seconds: list[float] = []

    def say(self, text: str) -> None:
        self.console.print(printable(text), markup=False)

    def begin(self, name: str, done: int) -> None:
        self.say(f"[{done + 1}/{self._total}] {name}{self.left(done)}")

    def took(self, seconds: float) -> None:
        """Says how long a cell took, for the time left."""
        self._seconds.append(seconds)

    def end(self, place: pathlib.Path, seconds: float) -> None:
        self.took(seconds)
        rows = [row for row in read_rows(place / "metrics.jsonl") if row["kind"] == "eval"]
        if rows:
            first, last = rows[0], rows[-1]
            self.say(
                f"    {seconds:.0f}s: {last['step']} steps, {last['generated_tokens'] / 1000:.0f}k tokens, "
                f"pass@1 {first['pass_at_1']:.3f} -> {last['pass_at_1']:.3f}"
            )

    def left(self, done: int) -> str:
        if not self._seconds:
            return ""
        minutes = float(np.mean(self._seconds)) * (self._total - done) / self._jobs / 60
        return f"  (about {minutes:.0f} min left)" if minutes >= 1 else "  (less than a minute left)"


def run_cells(cells: Sequence[Cell], workdir: pathlib.Path, progress: Progress) -> None:
    """Runs all cells that are not finished and that no other process is at; returns when none of those is left."""
    for cell in cells:
        done = sum(is_finished(other, workdir) for other in cells)
        if is_finished(cell, workdir):
            continue
        with claimed(cell.directory(workdir).with_suffix(".lock"), wait=False) as is_mine:
            if not is_mine or is_finished(cell, workdir):
                continue
            begin = time.monotonic()
            progress.begin(cell.name, done)
            run_cell(cell, workdir, progress.say)
            progress.end(cell.directory(workdir), time.monotonic() - begin)


def worker_command(suite: str, workdir: pathlib.Path) -> list[str]:
    """The command line of a process that helps with the cells of a suite and then ends."""
    return [sys.executable, "-m", "experiments.compare", f"--suite={suite}", f"--workdir={workdir}", "--worker"]


def worker_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1"}
