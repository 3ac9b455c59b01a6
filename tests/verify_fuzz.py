"""Hostile answers through the real pool: `python -m tests.verify_fuzz --cases 20000 [--seed S] [--jobs N]`.

Each job is a process that asks a pool of its own with one worker: a crash of the asking process is seen from outside.
Ends with one JSON line; exit status 1 if anything hung, crashed, touched the world, took more memory than its limit, or
if a verdict depends on what was asked before.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillWaiting
from typing import Any

from deepsearch_jax.verify import Status, Verdict, VerifierPool, VerifySettings
from deepsearch_jax.verify.judge import forget_answers
from tests.hostile.grammar import Bait, Case, case
from tests.hostile.strategies import drawn
from tests.hostile.watch import Caller, Canary, Workers

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
CORPUS = REPOSITORY / "tests" / "data" / "hostile_answers.jsonl"
BLOCK = 250  # cases drawn at a time; blocks are shared among the jobs, so a seed means the same cases for any --jobs
DRAWN_EVERY = 4  # one block in four is hypothesis', the others are the grammar's
GRACE_S = 2.0  # beyond the deadline a worker's verdict may be late by this much: a busy machine wakes us late
WINDOW = 64  # questions asked before the oldest answer is waited for
_RESOURCES = (Status.TIMEOUT, Status.ERROR)  # what depends on the clock and on memory


def corpus(bait: Bait) -> list[Case]:
    """The nasty cases that were found once; a response is written as [text, how many times] pieces."""
    lines = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    responses = ["".join(text * count for text, count in line["response"]) for line in lines]
    responses = [response.replace("BAIT", bait.path) for response in responses]
    return [Case("corpus", response, line["ground_truth"]) for response, line in zip(responses, lines)]


def block(seed: int, number: int, count: int, bait: Bait) -> list[Case]:
    """The cases of one block; number 0 begins with the corpus."""
    found = corpus(bait)[:count] if number == 0 else []
    if number % DRAWN_EVERY == DRAWN_EVERY - 1:
        found += drawn(count, 1000 * seed + number, bait)
    rng = random.Random(f"{seed}/{number}")
    return found + [case(rng, bait) for _ in range(count - len(found))]


@dataclasses.dataclass
class Findings:
    """What one job saw; numbers add up over jobs, the `slowest_` and `peak_` take the larger."""

    cases: int = 0
    hangs: int = 0
    failures: int = 0  # exceptions that reached the caller
    over_memory: int = 0
    timeouts: int = 0
    errors: int = 0
    restarts: int = 0
    refused: int = 0
    symbolic: int = 0
    rechecked: int = 0
    changed_verdicts: int = 0
    slowest_check_s: float = 0.0
    slowest_call_s: float = 0.0
    slowest_call_cpu_s: float = 0.0
    peak_address_mb: int = 0
    peak_resident_mb: int = 0
    peak_caller_mb: int = 0
    looks: int = 0
    statuses: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    events: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    effects: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: dict[str, Any]) -> None:
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), other[field.name]
            if field.name.startswith(("slowest_", "peak_")):
                setattr(self, field.name, max(mine, theirs))
            elif isinstance(mine, collections.Counter):
                mine.update(theirs)
            else:
                setattr(self, field.name, mine + theirs)


class Job:
    """Asks, waits, compares."""

    def __init__(self, settings: VerifySettings, sample: int, save: str | None):
        self.settings, self.sample_size, self.save = settings, sample, save
        self.found = Findings()
        self.caller = Caller()
        self.rng = random.Random(0)
        self._sample: list[tuple[Case, Status, bool]] = []
        self._seen = 0

    def run(self, cases: Iterator[Case]) -> None:
        with self._pool() as pool:
            waiting: collections.deque[tuple[Case, Future[Verdict], bool, float]] = collections.deque()
            for one in cases:
                asked = self._ask(pool, one)
                self.found.cases += 1
                if asked is not None:
                    waiting.append((one, *asked))
                if len(waiting) > WINDOW:
                    self._settle(*waiting.popleft())
            while waiting:
                self._settle(*waiting.popleft())
        self._check_again()
        self.found.effects += self.caller.effects
        self.found.peak_caller_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    def _pool(self) -> "_WatchedPool":
        return _WatchedPool(self.settings, self.found)

    def _ask(self, pool: VerifierPool, one: Case) -> tuple[Future[Verdict], bool, float] | None:
        """(future, is a worker asked, wall seconds of the call)."""
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            with self.caller.watching():
                future = pool.submit(one.response, one.ground_truth)
        except Exception as error:  # must never happen: it is what is looked for
            self.found.failures += 1
            self._note(f"{type(error).__name__} reached the caller", one)
            return None
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
        self.found.slowest_call_s = max(self.found.slowest_call_s, wall)
        self.found.slowest_call_cpu_s = max(self.found.slowest_call_cpu_s, cpu)
        if cpu > self.settings.deadline_s:  # it only computes: on a busy machine wall time tells about the machine
            self.found.hangs += 1
            self._note(f"the call took {cpu:.1f} CPU s", one)
        elif cpu > 0.5:
            self._note(f"the call took {cpu:.2f} CPU s", one)
        return future, not future.done(), wall

    def _settle(self, one: Case, future: Future[Verdict], is_symbolic: bool, call_s: float) -> None:
        try:
            verdict = future.result(timeout=WINDOW * (self.settings.deadline_s + 10.0) + 120.0)
        except (Exception, StillWaiting) as error:
            self.found.hangs += isinstance(error, StillWaiting)
            self.found.failures += not isinstance(error, StillWaiting)
            self._note(f"no verdict: {type(error).__name__}", one)
            return
        self.found.statuses[f"{one.family}: {verdict.status.value}"] += 1
        check_s = verdict.seconds - call_s if is_symbolic else 0.0  # by the worker
        self.found.slowest_check_s = max(self.found.slowest_check_s, check_s)
        if check_s > self.settings.deadline_s + GRACE_S:
            self.found.hangs += 1
            self._note(f"the check took {check_s:.1f} s", one)
        elif verdict.status in _RESOURCES:
            self._note(verdict.status.value, one)
        if is_symbolic or self.rng.random() < 0.1:
            self._keep(one, verdict.status, is_symbolic)

    def _keep(self, one: Case, status: Status, is_symbolic: bool) -> None:
        """A sample of the cases, every one with the same chance."""
        self._seen += 1
        if len(self._sample) < self.sample_size:
            self._sample.append((one, status, is_symbolic))
        elif (at := self.rng.randrange(self._seen)) < self.sample_size:
            self._sample[at] = (one, status, is_symbolic)

    def _check_again(self) -> None:
        """The sample in another order by another pool, and a few cases each by a pool of its own."""
        self.rng.shuffle(self._sample)
        forget_answers()
        with self._pool() as pool:
            futures = [pool.submit(one.response, one.ground_truth) for one, _, _ in self._sample]
            for (one, before, _), future in zip(self._sample, futures):
                self._compare(one, before, future.result())
        for one, before, _ in [kept for kept in self._sample if kept[2]][: 1 + self.sample_size // 40]:
            forget_answers()
            with self._pool() as pool:
                self._compare(one, before, pool.submit(one.response, one.ground_truth).result())

    def _compare(self, one: Case, before: Status, verdict: Verdict) -> None:
        self.found.rechecked += 1
        if verdict.status is not before and not {verdict.status, before} & set(_RESOURCES):
            self.found.changed_verdicts += 1
            self._note(f"{before.value} became {verdict.status.value}", one)

    def _note(self, what: str, one: Case) -> None:
        if len(self.found.notes) < 40:
            self.found.notes.append(f"{what}: {one.family} {one.response[:100]!a} ({len(one.response)} characters)")
        if self.save:
            with open(self.save, "a", encoding="utf-8") as file:
                file.write(json.dumps({"what": what, **dataclasses.asdict(one)}) + "\n")


class _WatchedPool(VerifierPool):
    """The pool as it is, with a watch on its workers; its counts are added to the findings at the end."""

    def __init__(self, settings: VerifySettings, found: Findings):
        super().__init__(
            settings.num_workers, settings.deadline_s, memory_mb=settings.memory_mb, recycle_mb=settings.recycle_mb
        )
        self._found, self._watch = found, Workers(lambda: self.worker_pids)

    def close(self) -> None:
        if self._watch is None:
            return
        self._watch.look()
        self._watch.close()
        watch, self._watch = self._watch, None  # type: ignore[assignment]
        super().close()
        found, stats = self._found, self.stats
        for name in ("symbolic", "timeouts", "errors", "restarts", "refused"):
            setattr(found, name, getattr(found, name) + getattr(stats, name))
        found.events.update(self.events)
        found.effects += sorted(watch.effects)
        found.looks += watch.looks
        found.peak_address_mb = max(found.peak_address_mb, watch.peak_address_mb)
        found.peak_resident_mb = max(found.peak_resident_mb, watch.peak_resident_mb)
        found.over_memory += watch.peak_address_mb > self.settings.memory_mb


def work(options: argparse.Namespace) -> None:
    """One job: `{"done": n}` lines, then its findings."""
    settings = VerifySettings(num_workers=1, deadline_s=options.deadline, memory_mb=options.memory)
    bait = Bait(options.bait_path, options.bait_port)
    job = Job(settings, options.sample // options.jobs, options.save)

    def cases() -> Iterator[Case]:
        last = time.monotonic()
        for number in range(options.job, (options.cases + BLOCK - 1) // BLOCK, options.jobs):
            for one in block(options.seed, number, min(BLOCK, options.cases - number * BLOCK), bait):
                if time.monotonic() - last > 1.0:
                    last = time.monotonic()
                    print(json.dumps({"done": job.found.cases}), flush=True)
                yield one

    job.run(cases())
    print(json.dumps(vars(job.found)), flush=True)


class Watched:
    """A job's process seen from the command: its folders, its progress, its end."""

    def __init__(self, options: argparse.Namespace, number: int, place: pathlib.Path):
        self.canary = Canary(place / "canary")
        folders = self.canary.folders
        command = [sys.executable, "-B", "-m", "tests.verify_fuzz", "--job", str(number), "--jobs", str(options.jobs)]
        for name in ("cases", "seed", "deadline", "memory", "sample"):
            command += [f"--{name}", str(getattr(options, name))]
        command += ["--bait_path", self.canary.bait.path, "--bait_port", str(self.canary.bait.port)]
        if options.save:
            command += ["--save", os.path.abspath(options.save)]
        self._errors = open(place / "stderr", "w+", encoding="utf-8")  # noqa: SIM115 (closed in `end`)
        self._process = subprocess.Popen(
            command, cwd=folders["cwd"], stdout=subprocess.PIPE, stderr=self._errors, stdin=subprocess.DEVNULL,
            text=True, env=os.environ | {
                "HOME": str(folders["home"]), "TMPDIR": str(folders["tmp"]), "PYTHONPATH": str(REPOSITORY),
                "HYPOTHESIS_STORAGE_DIRECTORY": str(place / "hypothesis"),
            },
        )  # fmt: skip
        self.done = 0
        self.findings: dict[str, Any] | None = None
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "done" in message:
                self.done = message["done"]
            else:
                self.findings, self.done = message, message["cases"]

    def end(self) -> tuple[list[str], str | None]:
        """(effects, why it counts as crashed or None)."""
        if self.thread.is_alive():
            self._process.kill()
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read()
        self._errors.close()
        self.thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        effects = self.canary.effects()
        self.canary.close()
        if status == 0 and self.findings is not None:
            return effects, None
        return effects, f"exit status {status}: {said[-600:]!a}"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.job is not None:
        work(options)
        return 0
    begin, last = time.monotonic(), 0.0
    total, crashes = Findings(), []
    with tempfile.TemporaryDirectory(prefix="verify_fuzz_") as place:
        jobs = [Watched(options, number, pathlib.Path(place) / str(number)) for number in range(options.jobs)]
        try:
            while any(job.thread.is_alive() for job in jobs):
                time.sleep(0.1)
                elapsed, done = time.monotonic() - begin, sum(job.done for job in jobs)
                if elapsed - last > 10.0 and done:
                    last = elapsed
                    left = elapsed / done * (options.cases - done)
                    print(f"{done}/{options.cases} cases, {done / elapsed:.0f}/s, {left:.0f} s left", flush=True)
        finally:
            for number, job in enumerate(jobs):
                effects, crash = job.end()
                total.effects += effects
                if crash:
                    crashes.append(f"job {number}: {crash}")
                if job.findings is not None:
                    total.add(job.findings)
    return report(options, total, crashes, time.monotonic() - begin)


def report(options: argparse.Namespace, total: Findings, crashes: list[str], seconds: float) -> int:
    """Prints the table and the last line; the exit status."""
    for line in (*crashes, *total.effects, *total.notes):
        print(line)
    names = sorted({key.split(": ")[0] for key in total.statuses})
    print(f"{'family':14}" + "".join(f"{status.value:>11}" for status in Status))
    for name in names:
        print(f"{name:14}" + "".join(f"{total.statuses[f'{name}: {status.value}']:11d}" for status in Status))
    is_blind = sys.platform == "linux" and total.symbolic > 0 and total.looks == 0
    violations = {
        "hangs": total.hangs,
        "crashes": len(crashes) + total.failures,
        "side_effects": len(total.effects),
        "over_memory": total.over_memory,
        "changed_verdicts": total.changed_verdicts,
        "not_asked": max(0, options.cases - total.cases),
        "unseen_workers": int(is_blind),
    }
    counts = vars(total)
    rest = {name: counts[name] for name in counts if name not in ("statuses", "effects", "notes", *violations)}
    rest = {name: round(value, 3) if isinstance(value, float) else value for name, value in rest.items()}
    print(
        json.dumps(
            {
                "name": "verify_fuzz", "seed": options.seed, "jobs": options.jobs, **violations, **rest,
                "deadline_s": options.deadline, "limit_mb": options.memory, "seconds": round(seconds, 1),
                "cases_per_s": round(total.cases / seconds, 1),
            }
        )
    )  # fmt: skip
    return int(any(violations.values()))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.verify_fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes that ask, each with one worker"
    )
    parser.add_argument("--deadline", type=float, default=1.0, help="seconds a check may take")
    parser.add_argument("--memory", type=int, default=VerifySettings.memory_mb, help="MiB of address space of a worker")
    parser.add_argument("--sample", type=int, default=400, help="cases checked again in another order")
    parser.add_argument(
        "--save", help="append cases that ran out of time or memory or that break a promise to this file"
    )
    for name, kind in (("job", int), ("bait_path", str), ("bait_port", int)):  # of the command to its own jobs
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
