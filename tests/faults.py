"""Kills runs at random moments and looks whether the same command brings them to the same end.

`python -m tests.faults [--kills 50] [--jobs 2] [--seed 0]` makes one run in peace, then one run for every kill: it ends
by SIGKILL in a phase that goes round all of them (the first second, each phase of a step, the save, ...), some are
killed once more when they go on, and the same command takes them to their end. Their metric rows (all but what is the
machine's), parameters, optimizer, solution cache and counters must equal those of the run in peace bit for bit. Prints
a table of phases by outcome and, last, one JSON object; the exit code is 1 if one run differs.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import orbax.checkpoint as ocp

from deepsearch_jax.runtime.metrics import MACHINE_KEY, read_rows
from tests.faults_child import BETWEEN, FROM_REPORTER, MANIFEST, METRICS, RESTORE, SAVE, VERIFICATION

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
FIRST_SECOND, START_UP = "first second", "start-up"
# Where kills fall, in turn; a few kills begin with what is most at stake.
PHASES = (SAVE, VERIFICATION, "update", FIRST_SECOND, "rollout", MANIFEST, RESTORE, "warm start", METRICS, "filter",
          BETWEEN, "evaluate", START_UP)  # fmt: skip
SECOND_KILL = 0.3  # share of the runs that are killed again when they go on
TIMEOUT_S = 900
# From the begin of a save to the removal of the old checkpoint; the save itself is in the background.
_SAVE_SECONDS = 0.3
_RESTORING = threading.Lock()

# The quick start at a size that takes a few seconds: two rounds of two steps, saved after every step.
CONFIG = """
from tests import tiny_quickstart

def get_config():
    config = tiny_quickstart.get_config()
    config.task.arithmetic.num_train_problems = 32
    config.task.arithmetic.num_heldout_problems = 8
    config.rounds.num_rounds = 2
    config.evaluation.every_steps = 2
    config.evaluation.num_problems = 8
    config.num_devices = 1
    return config
"""


@dataclasses.dataclass
class Outcome:
    """What became of one run.

    Attributes:
      phases: those that its kills fell in.
      saves_cut: how many of the kills left a half-written checkpoint.
      problems: what differs from the run in peace; empty if nothing does.
    """

    phases: list[str]
    problems: list[str]
    saves_cut: int = 0


class Harness:
    """Runs of one config in one directory."""

    def __init__(self, directory: pathlib.Path, seed: int):
        self.directory, self._seed = directory, seed
        (directory / "config.py").write_text(CONFIG)
        self.reference = directory / "in_peace"

    def run_in_peace(self) -> None:
        """The run that the others are compared with. The second start finds compiled programs: times are its."""
        self._finish(self.reference)
        report = self.directory / "report.json"
        code, output = self._start(self.directory / "timed", report, None)
        if code:
            raise RuntimeError(f"the run in peace failed:\n{output}")
        self.facts = json.loads(report.read_text())
        self.expected = state_of(self.reference)
        if problems := differences(self.expected, state_of(self.directory / "timed")):
            raise RuntimeError(f"two runs in peace differ: {'; '.join(problems)}")

    def kill_one(self, number: int) -> Outcome:
        """A run that is killed in the phase whose turn it is, and its end."""
        rng = random.Random(f"{self._seed} {number}")
        outcome = Outcome([], [])
        ordered = PHASES[number % len(PHASES)]
        phases = ["update", RESTORE] if ordered == RESTORE else [ordered]
        if rng.random() < SECOND_KILL:
            phases.append(rng.choice([phase for phase in PHASES if phase != "warm start"]))
        workdir = self.directory / f"run{number}"
        for phase in phases:
            self._kill(workdir, phase, rng, outcome)
        if not outcome.phases:
            outcome.problems.append(f"never killed: the run was over before {ordered}")
        self._finish(workdir, outcome)
        if not outcome.problems:
            outcome.problems += differences(self.expected, state_of(workdir))
        return outcome

    def _kill(self, workdir: pathlib.Path, phase: str, rng: random.Random, outcome: Outcome) -> None:
        report = workdir.with_suffix(".json")
        report.unlink(missing_ok=True)
        if phase in (FIRST_SECOND, START_UP):
            bounds = (0.0, 1.0) if phase == FIRST_SECOND else (1.0, max(self.facts["first_after"], 1.5))
            code, output = self._start(workdir, report, None, kill_after=rng.uniform(*bounds))
        else:
            # Later visits may have been made before the kill before this one.
            visits = 1 if phase == RESTORE else max(self.facts["visits"].get(phase, 1) // (1 + len(outcome.phases)), 1)
            seconds = self.facts["seconds"].get(phase, 0.1)
            delay = rng.uniform(0, _SAVE_SECONDS if phase == SAVE else seconds)
            order = {"phase": phase, "visit": rng.randint(1, visits), "delay": delay}
            code, output = self._start(workdir, report, order)
        if code == 0:
            return  # it was over before
        if code != -signal.SIGKILL:
            outcome.problems.append(f"ended with {code} where it was to be killed in {phase}: {output[-500:]}")
            return
        # Killed between two phases it is inside none.
        inside = (json.loads(report.read_text())["inside"] or [phase])[-1] if report.exists() else phase
        is_saving = list(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*"))
        outcome.saves_cut += bool(is_saving)
        # A save goes on in the background of other phases.
        outcome.phases.append(SAVE if is_saving and (phase == SAVE or inside == BETWEEN) else inside)

    def _start(
        self, workdir: pathlib.Path, report: pathlib.Path, order: dict[str, Any] | None, kill_after: float | None = None
    ) -> tuple[int, str]:
        extra = {"FAULTS_REPORT": str(report), "FAULTS_BEGAN": str(time.time())}
        if order:
            extra["FAULTS_KILL"] = json.dumps(order)
        process = self._process("tests.faults_child", workdir, extra)
        try:
            output = process.communicate(timeout=TIMEOUT_S if kill_after is None else kill_after)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            output = process.communicate()[0]
        if left := workers_of(process.pid):
            return 1, f"its verifier workers {left} outlived it"
        return process.returncode, output

    def _finish(self, workdir: pathlib.Path, outcome: Outcome | None = None) -> None:
        """The command as a user gives it, to the end."""
        process = self._process("experiments.run", workdir, {})
        output = process.communicate(timeout=TIMEOUT_S)[0]
        if process.returncode:
            said = f"the same command ended with {process.returncode}: {output[-1000:]}"
            if outcome is None:
                raise RuntimeError(said)
            outcome.problems.append(said)

    def _process(self, module: str, workdir: pathlib.Path, extra: dict[str, str]) -> "subprocess.Popen[str]":
        environment = {**os.environ, **extra, "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu",
                       "JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": str(self.directory / "cache")}  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-m", module, f"--config={self.directory / 'config.py'}", f"--workdir={workdir}"],
            cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


def workers_of(pid: int) -> list[int]:
    """Verifier workers of a process that has ended; they get a moment to see it."""
    deadline = time.monotonic() + 10
    while True:
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().rstrip(b"\0").split(b"\0")
            except OSError:
                continue  # it has just ended
            if b"deepsearch_jax.verify.worker" in words and words[-1] == str(pid).encode():
                found.append(int(path.parent.name))
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def state_of(workdir: pathlib.Path) -> dict[str, Any]:
    """All that a run leaves: metric rows without the machine's part, counters and arrays of the last checkpoint."""
    rows = [{k: v for k, v in row.items() if k != MACHINE_KEY} for row in read_rows(workdir / "metrics.jsonl")]
    newest = max(
        (path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name)
    )
    record = json.loads((newest / "record/metadata").read_text())
    record["position"].pop("saves")  # a kill may cost or add one
    with _RESTORING, ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(newest.resolve() / "arrays")
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    left = sorted(path.name for path in (workdir / "checkpoints").iterdir() if not path.name.isdigit())
    return {"rows": rows, "record": record, "arrays": named, "left behind": left}


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs between two states, in words; bits count, not values."""
    problems = [name for name in ("record", "left behind") if expected[name] != found[name]]
    problems = [f"{name}: {found[name]} instead of {expected[name]}" for name in problems]
    if len(expected["rows"]) != len(found["rows"]):
        problems.append(f"{len(found['rows'])} metric rows instead of {len(expected['rows'])}")
    for number, (one, other) in enumerate(zip(expected["rows"], found["rows"], strict=False)):
        names = [name for name in sorted({*one, *other}) if json.dumps(one.get(name)) != json.dumps(other.get(name))]
        if names:
            problems.append(f"row {number} differs in {', '.join(names)}")
    if expected["arrays"].keys() != found["arrays"].keys():
        problems.append("other arrays")
    for name in expected["arrays"].keys() & found["arrays"].keys():
        one, other = expected["arrays"][name], found["arrays"][name]
        if (one.shape, one.dtype, one.tobytes()) != (other.shape, other.dtype, other.tobytes()):
            problems.append(f"array {name} differs")
    return problems


def table(outcomes: list[Outcome]) -> str:
    """Phases by outcome: kills that fell there, of runs that ended as the one in peace, and of others."""
    counts = collections.Counter((phase, not outcome.problems) for outcome in outcomes for phase in outcome.phases)
    order = [FIRST_SECOND, START_UP, *FROM_REPORTER]
    phases = sorted({phase for phase, _ in counts}, key=lambda name: (order.index(name) if name in order else 99, name))
    lines = [f"{'killed in':<20}{'bit-equal':>10}{'different':>10}"]
    lines += [f"{phase:<20}{counts[phase, True]:>10}{counts[phase, False]:>10}" for phase in phases]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="runs that are killed")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    if arguments.kills < 1 or arguments.jobs < 1:
        parser.error(f"--kills={arguments.kills} and --jobs={arguments.jobs} must be at least 1")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults") as directory:
        harness = Harness(pathlib.Path(directory), arguments.seed)
        print("a run in peace, twice ...", flush=True)
        harness.run_in_peace()
        print(f"{time.monotonic() - begin:.0f}s; now {arguments.kills} runs that are killed", flush=True)
        outcomes: list[Outcome] = []
        killing = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as jobs:
            futures = [jobs.submit(harness.kill_one, number) for number in range(arguments.kills)]
            for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
                outcomes.append(future.result())
                left = (time.monotonic() - killing) / done * (arguments.kills - done)
                said = "; ".join(outcomes[-1].problems) or "bit-equal"
                print(f"{done}/{arguments.kills} killed in {', '.join(outcomes[-1].phases)}: {said} | left {left:.0f}s",
                      flush=True)  # fmt: skip
    print(table(outcomes))
    good = sum(not outcome.problems for outcome in outcomes)
    kills = sum(len(outcome.phases) for outcome in outcomes)
    cut = sum(outcome.saves_cut for outcome in outcomes)
    result = {
        "runs": len(outcomes),
        "bit_equal": good,
        "kills": kills,
        "saves_cut": cut,
        "seconds": round(time.monotonic() - begin),
    }
    print(json.dumps(result))
    return 0 if good == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
