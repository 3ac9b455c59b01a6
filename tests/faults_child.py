"""The command of a run with marks at its phases, and an order to die in one of them.

`python -m tests.faults_child ARGUMENTS` is `python -m experiments.run ARGUMENTS`. FAULTS_REPORT names a file; a run
that ends writes into it how often each phase was entered, how long it took in the mean, and the seconds from
FAULTS_BEGAN to the first one; a run that kills itself writes the phases it was in. FAULTS_KILL is the order:
{"phase": ..., "visit": ..., "delay": ...} sends SIGKILL `delay` seconds after that phase was entered for the `visit`-th
time.
"""

import functools
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deepsearch_jax.runtime import checkpoints
from deepsearch_jax.runtime.metrics import MetricsWriter
from deepsearch_jax.runtime.progress import Reporter
from deepsearch_jax.verify import VerifySettings, make_scorer

# Phases as the table names them, in the order of a run; those of the reporter have its names.
FROM_REPORTER, BETWEEN = ("warm start", "filter", "evaluate", "rollout", "update"), "between phases"
VERIFICATION, METRICS, SAVE, MANIFEST, RESTORE = "verification", "metrics", "save", "manifest", "restore"


class Marks:
    """Which phase each thread is in, how often phases were entered and how long they took."""

    def __init__(self, order: dict[str, Any] | None, report: str):
        self._order, self._report = order, report
        self._lock = threading.Lock()
        self.visits: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.now: list[str] = []
        self.first_after: float | None = None

    @contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        with self._lock:
            if self.first_after is None:
                self.first_after = time.time() - float(os.environ["FAULTS_BEGAN"])
            self.visits[phase] = self.visits.get(phase, 0) + 1
            self.now.append(phase)
            visit = self.visits[phase]
        if self._order and (phase, visit) == (self._order["phase"], self._order["visit"]):
            timer = threading.Timer(self._order["delay"], self.die)
            timer.daemon = True
            timer.start()
        begin = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - begin
                self.now.remove(phase)

    def die(self) -> None:
        """Ends this process as `kill -9` does, at once."""
        self._write({"inside": self.now or [BETWEEN]})
        os.kill(os.getpid(), signal.SIGKILL)

    def tell(self) -> None:
        means = {name: self.seconds[name] / self.visits[name] for name in self.seconds}
        self._write({"visits": self.visits, "seconds": means, "first_after": self.first_after})

    def _write(self, content: dict[str, Any]) -> None:
        file = os.open(self._report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(file, json.dumps(content).encode())
        os.close(file)


def mark(marks: Marks) -> None:
    """Puts the marks around what a run calls."""

    def around(owner: Any, name: str, phase: str) -> None:
        setattr(owner, name, _within(marks, phase, getattr(owner, name)))

    plain_phase = Reporter.phase

    @contextmanager
    def phase(self: Reporter, name: str, total: int | None = None) -> Iterator[None]:
        with plain_phase(self, name, total), marks.inside(name):
            yield
        with marks.inside(BETWEEN):
            pass

    Reporter.phase = phase  # type: ignore[method-assign]
    around(checkpoints.Checkpoints, "save", SAVE)
    around(checkpoints.Checkpoints, "restore_arrays", RESTORE)
    around(checkpoints, "write_manifest", MANIFEST)
    around(MetricsWriter, "write", METRICS)
    run = importlib.import_module("deepsearch_jax.runtime.run")  # the package's `run` is the function
    build = run.build_task

    def build_task(*arguments: Any) -> Any:
        task = build(*arguments)
        task.score = _within(marks, VERIFICATION, task.score)
        if marks._order and marks._order["phase"] == VERIFICATION:
            task.score = _with_workers(task.score, marks)
        return task

    run.build_task = build_task  # type: ignore[attr-defined]


def _within(marks: Marks, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        with marks.inside(phase):
            return function(*arguments, **keywords)

    return call


def _with_workers(score: Callable[..., Any], marks: Marks) -> Callable[..., Any]:
    """The same verdicts; beside that worker processes of the verifier look at the texts, as for problem files."""
    scorer = make_scorer(VerifySettings(num_workers=1))

    def call(items: Any) -> Any:
        with marks.inside("verifying workers"):
            scorer.score([(f"\\boxed{{{text} + x}}", problem.answer) for problem, text in items])
        return score(items)

    return call


def main() -> None:
    order = json.loads(os.environ["FAULTS_KILL"]) if "FAULTS_KILL" in os.environ else None
    marks = Marks(order, os.environ["FAULTS_REPORT"])
    mark(marks)
    sys.argv[0] = "experiments.run"
    try:
        runpy.run_module("experiments.run", run_name="__main__", alter_sys=True)
    finally:
        marks.tell()


if __name__ == "__main__":
    main()
