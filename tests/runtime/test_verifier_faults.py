"""Runs whose verifier workers are killed or hang while they are asked: they reach their end and count the losses."""

import os
import signal

import pytest

from deepsearch_jax.runtime.metrics import MACHINE_KEY, read_rows
from deepsearch_jax.runtime.tasks import Verdict
from deepsearch_jax.verify import VerifierPool
from tests.runtime.parity import ParityTask
from tests.runtime.test_trainer import finish, make_trainer, rows

EQUAL = (r"\boxed{\sqrt{8}}", r"2\sqrt{2}")  # needs a worker


class CheckedParity(ParityTask):
    """The task of the other runs; nothing is right unless a worker says so. `faults`: signal by number of the call."""

    def __init__(self, faults, deadline_s):
        super().__init__()
        self.pool, self.faults, self.num_calls = VerifierPool(num_workers=1, deadline_s=deadline_s), faults, 0

    def score(self, items):
        self.num_calls += 1
        if self.num_calls in self.faults:
            os.kill(self.pool.worker_pids[0], self.faults[self.num_calls])
        (checked,) = self.pool.score([EQUAL])
        return [Verdict(verdict.score * checked.score, verdict.is_answered) for verdict in super().score(items)]

    def statistics(self):
        return {"timeouts": self.pool.stats.timeouts, "restarts": self.pool.stats.restarts}


def run(workdir, faults, deadline_s=20.0):
    task = CheckedParity(faults, deadline_s)
    with task.pool:
        finish(make_trainer(workdir, task=task))
    assert task.num_calls > max(faults, default=0)
    machine = read_rows(workdir / "metrics.jsonl")[-1][MACHINE_KEY]
    return machine["task_timeouts"], machine["task_restarts"]


@pytest.mark.slow
def test_killed_and_hanging_workers_do_not_stop_a_run(tmp_path):
    assert run(tmp_path / "peace", {}) == (0, 0)
    assert run(tmp_path / "killed", {2: signal.SIGKILL, 5: signal.SIGKILL}) == (0, 2)
    assert rows(tmp_path / "killed") == rows(tmp_path / "peace")  # the question is asked once more
    # A check that hangs counts as wrong and costs its deadline; the run has its end all the same.
    assert run(tmp_path / "hung", {3: signal.SIGSTOP}, deadline_s=3.0) == (1, 1)
    kinds = [[row["kind"] for row in rows(tmp_path / name)] for name in ("peace", "hung")]
    assert kinds[0] == kinds[1]
