"""A worker that turned against its parent, or against the machine: programs in its place that try."""

import contextlib
import json
import os
import sys
import textwrap
import threading
import time

import pytest

from deepsearch_jax.verify import Status, VerifierPool, WorkersUnavailable, process
from deepsearch_jax.verify.process import Overrun, Reply, WorkerDied, WorkerProcess
from tests.hostile.watch import Canary

HARD = (r"\boxed{\sqrt{8}}", r"2\sqrt{2}")
READY = "import sys, time\nprint('{\"ready\": true}', flush=True)\n"


def _instead(monkeypatch, program):
    monkeypatch.setattr(process, "worker_command", lambda: [sys.executable, "-c", textwrap.dedent(program)])


NONSENSE = {
    "no JSON": "sys.stdin.readline(); print('{', flush=True)",
    "no object": "sys.stdin.readline(); print('[1]', flush=True)",
    "fields missing": "sys.stdin.readline(); print('{}', flush=True)",
    "no verdict": 'sys.stdin.readline(); print(\'{"equal": 1, "memory_mb": 1, "refused": 0}\', flush=True)',
    "no number": 'sys.stdin.readline(); print(\'{"equal": true, "memory_mb": [], "events": {}}\', flush=True)',
    "deep": "sys.stdin.readline(); print('[' * 50000, flush=True)",
    "without end": "sys.stdin.readline()\nwhile True: sys.stdout.write('x' * 4096)",
    "two answers": "sys.stdin.readline(); sys.stdout.write('{}\\n{}\\n'); sys.stdout.flush()",
    "binary": "sys.stdin.readline(); sys.stdout.buffer.write(b'\\xff\\x00\\n'); sys.stdout.flush()",
}


@pytest.mark.parametrize("name", sorted(NONSENSE))
def test_nonsense_is_a_death_not_an_exception_of_ours(monkeypatch, name):
    _instead(monkeypatch, READY + NONSENSE[name] + "\ntime.sleep(30)")
    worker = WorkerProcess(512)
    try:
        with pytest.raises(WorkerDied):
            worker.ask("1", "2", 20.0)
    finally:
        worker.kill()


def test_the_pool_survives_workers_that_talk_nonsense(monkeypatch):
    _instead(monkeypatch, READY + NONSENSE["no object"])
    with VerifierPool(num_workers=1) as pool:
        assert pool.submit(*HARD).result(timeout=60).status is Status.ERROR
        monkeypatch.undo()
        assert pool.submit(*HARD).result(timeout=60).status is Status.CORRECT
        assert (pool.stats.errors, pool.stats.restarts) == (1, 2)


def test_a_mistake_of_ours_costs_one_answer(monkeypatch):
    with VerifierPool(num_workers=1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(WorkerProcess, "ask", lambda *_: 1 / 0)
            assert pool.submit(*HARD).result(timeout=60).status is Status.ERROR
        assert pool.submit(*HARD).result(timeout=60).status is Status.CORRECT


def test_a_worker_that_reads_nothing_meets_the_deadline_too(monkeypatch):
    _instead(monkeypatch, READY + "time.sleep(30)")
    worker = WorkerProcess(512)
    begin = time.monotonic()
    try:
        with pytest.raises(Overrun):
            worker.ask("x" * 2_000_000, "2", 0.5)  # more than a pipe holds
    finally:
        worker.kill()
    assert time.monotonic() - begin < 5.0


def test_a_worker_that_does_not_get_ready_again_is_an_error_not_a_late_answer(monkeypatch):
    with VerifierPool(num_workers=1) as pool:
        assert pool.submit(*HARD).result(timeout=60).status is Status.CORRECT
        _instead(monkeypatch, "import time; time.sleep(30)")
        monkeypatch.setattr(process, "STARTUP_SECONDS", 0.3)
        pool._workers[0].interrupt()
        assert pool.submit(*HARD).result(timeout=60).status is Status.ERROR
        assert pool.stats.timeouts == 0


@pytest.mark.parametrize("program", ["raise SystemExit(1)", "import time; time.sleep(30)"])
def test_workers_that_can_never_start_end_the_run_and_not_every_answer(monkeypatch, program):
    _instead(monkeypatch, program)
    monkeypatch.setattr(process, "STARTUP_SECONDS", 0.3)
    with VerifierPool(num_workers=1, memory_mb=640) as pool:
        for _ in range(2):
            with pytest.raises(WorkersUnavailable, match=r"no verifier worker could be started \(.+\).*memory_mb=640"):
                pool.submit(*HARD).result(timeout=60)
        assert pool.submit(r"\boxed{3}", "3").result(timeout=60).status is Status.CORRECT  # needs none
        monkeypatch.undo()
        assert pool.submit(*HARD).result(timeout=60).status is Status.CORRECT


def test_a_limit_on_processor_time_that_was_there_before_is_kept(monkeypatch):
    """As under `ulimit -t` of a batch system: raising it is refused, and every check was an error for that."""
    limited = ["bash", "-c", 'ulimit -t 300; exec "$@"', "bash", *process.worker_command()]
    monkeypatch.setattr(process, "worker_command", lambda: limited)
    worker = WorkerProcess(512)
    try:
        assert worker.ask(HARD[0][7:-1], HARD[1], 20.0).equal is True
        with open(f"/proc/{worker.pid}/limits", encoding="ascii") as file:
            (limit,) = [line.split()[3:5] for line in file if line.startswith("Max cpu time")]
    finally:
        worker.kill()
    assert limit[1] == "300"
    assert int(limit[0]) < 60


def test_a_reply_is_checked_field_by_field():
    good = {"equal": True, "memory_mb": 80, "refused": 0, "events": {"import": 2}}
    assert Reply.of(good) == Reply(True, 80, 0, {"import": 2})
    for change in ({"equal": 1}, {"memory_mb": True}, {"refused": "0"}, {"events": {"x": "y"}}, {"events": None}):
        with pytest.raises(WorkerDied):
            Reply.of(good | change)


# The real worker with a checker that attacks from inside, as a hole in a library would.
ATTACKER = """
import os, sys
from deepsearch_jax.verify import worker

def attack(pred, gold):
    what = pred.split("|")
    if what[0] == "file":
        open(what[1], "w")
    elif what[0] == "os":
        os.open(what[1] + ".py", os.O_CREAT | os.O_WRONLY)
    elif what[0] == "process":
        os.system("touch " + what[1])
    elif what[0] == "fork":
        os.fork()
    elif what[0] == "network":
        import socket
        socket.create_connection(("127.0.0.1", int(what[1])))
    elif what[0] == "text":
        eval("open(%r, 'w')" % what[1])
    elif what[0] == "memory":
        bytearray(4 * 2**30)
    elif what[0] == "print":
        print("forged\\n" * 1000); sys.stderr.write("forged"); sys.__stdout__.flush()
    elif what[0] == "leave":
        os._exit(0)
    elif what[0] == "kill":
        os.kill(os.getppid(), 9)
    return True

worker.warm_up = lambda: attack
worker.main()
"""


@pytest.fixture
def canary(tmp_path):
    canary = Canary(tmp_path)
    yield canary
    canary.close()


def test_a_worker_that_attacks_reaches_nothing(monkeypatch, canary, capfd):
    """Every way out that Python has is refused, counted, and costs the attacker its process, not the run."""
    _instead(monkeypatch, ATTACKER)
    attacks = {
        "file": canary.bait.path, "os": canary.bait.path, "process": canary.bait.path, "fork": "",
        "network": str(canary.bait.port), "text": canary.bait.path, "kill": "",
    }  # fmt: skip
    worker = WorkerProcess(1024)
    try:
        for kind, target in attacks.items():
            reply = worker.ask(f"{kind}|{target}", "", 20.0)
            assert reply.equal is None, kind
            assert reply.refused >= 1, kind
            assert reply.events, kind
        assert worker.ask("memory", "", 20.0).equal is None
        assert worker.ask("print", "", 20.0).equal is True
        with pytest.raises(WorkerDied):
            worker.ask("leave", "", 20.0)
    finally:
        worker.kill()
    assert canary.effects() == []
    assert capfd.readouterr() == ("", "")


def test_refused_attempts_are_counted_by_the_pool(monkeypatch, canary):
    _instead(monkeypatch, ATTACKER)
    with VerifierPool(num_workers=1) as pool:
        answer = f"\\int file|{canary.bait.path}"
        monkeypatch.setattr(VerifierPool, "_decide_here", lambda self, response, gold: (response, None))
        assert pool.submit(f"file|{canary.bait.path}", answer).result(timeout=60).status is Status.ERROR
        assert pool.stats.refused == 1
        assert pool.events["open"] == 1
    assert canary.effects() == []


def test_a_canary_sees_what_it_is_for(canary):
    assert canary.effects() == []
    (canary.folders["home"] / "new").touch()
    (canary.folders["cwd"] / "notes.txt").write_text("changed", encoding="utf-8")
    import socket

    socket.create_connection(("127.0.0.1", canary.bait.port)).close()
    until = time.monotonic() + 5.0
    while not any("connections" in effect for effect in canary.effects()) and time.monotonic() < until:
        time.sleep(0.01)
    effects = "\n".join(canary.effects())
    assert all(word in effects for word in ("new", "notes.txt", "1 connections"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_kernel_holds_the_limits():
    worker = WorkerProcess(memory_mb=700)
    try:
        with open(f"/proc/{worker.pid}/limits", encoding="ascii") as file:
            limits = {line[:25].strip(): line[26:].split()[:2] for line in file}
    finally:
        worker.kill()
    assert limits["Max address space"] == [str(700 * 2**20)] * 2
    for name in ("Max file size", "Max core file size", "Max processes", "Max locked memory"):
        assert limits[name] == ["0", "0"], name
    assert limits["Max open files"] == ["64", "64"]


def test_sixteen_threads_while_workers_are_killed():
    """Nobody waits for ever, whatever dies; and what was decided is decided right."""
    cases = [HARD, (r"\boxed{(x+1)^2}", "x^2+2x+1"), (r"\boxed{6}", "5"), (r"\boxed{\sqrt{8}}", r"3\sqrt{2}")] * 10
    right = [Status.CORRECT, Status.CORRECT, Status.INCORRECT, Status.INCORRECT] * 10
    results = []
    is_over = threading.Event()
    with VerifierPool(num_workers=2, deadline_s=20.0) as pool:

        def kill_now_and_then():
            killed = set()
            while not is_over.wait(0.05) and len(killed) < 4:
                for pid in set(pool.worker_pids[:1]) - killed:
                    killed.add(pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, 9)

        def ask():
            results.append([verdict.status for verdict in pool.score(cases)])

        killer = threading.Thread(target=kill_now_and_then)
        threads = [threading.Thread(target=ask, daemon=True) for _ in range(16)]
        for thread in (killer, *threads):
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
        is_over.set()
        killer.join()
        assert not any(thread.is_alive() for thread in threads)
        assert pool.submit(*HARD).result(timeout=60).status is Status.CORRECT
        assert pool.stats.restarts >= 4
    assert len(results) == 16
    for statuses in results:  # a worker killed twice over one question is an error; never a wrong verdict
        assert all(got in (expected, Status.ERROR) for got, expected in zip(statuses, right, strict=True))


def test_closing_among_sixteen_threads_ends_them_all():
    pool = VerifierPool(num_workers=1, deadline_s=20.0)
    pool.submit(*HARD).result(timeout=60)
    ended = []

    def ask():
        try:
            for _ in range(2000):
                pool.submit(*HARD).result(timeout=60)
        except BaseException as error:
            ended.append(type(error).__name__)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(16)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    pool.close()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert set(ended) <= {"RuntimeError", "CancelledError"}, json.dumps(ended)
