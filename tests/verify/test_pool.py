"""Workers that hang, die or are left behind. A stopped process (SIGSTOP) hangs on purpose, without any hook."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from deepsearch_jax.verify import Status, VerifierPool, VerifySettings

HARD = (r"\boxed{\sqrt{8}}", r"2\sqrt{2}")  # equal to double precision: needs a worker


def _is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_until_gone(pids, seconds=10.0):
    until = time.monotonic() + seconds
    while any(map(_is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return [pid for pid in pids if _is_alive(pid)]


def test_easy_answers_start_no_process():
    with VerifierPool() as pool:
        assert pool.submit(r"\boxed{\frac{2}{4}}", "0.5").result().status is Status.CORRECT
        assert pool.submit(r"\boxed{1.414}", r"\sqrt2").result().status is Status.INCORRECT
        assert pool.worker_pids == []
        assert pool.stats.symbolic == 0


def test_a_hanging_worker_is_killed_replaced_and_counted():
    with VerifierPool(num_workers=1, deadline_s=1.0) as pool:
        assert pool.submit(*HARD).result().status is Status.CORRECT
        (pid,) = pool.worker_pids
        os.kill(pid, signal.SIGSTOP)
        begin = time.monotonic()
        verdict = pool.submit(*HARD).result()
        assert verdict.status is Status.TIMEOUT
        assert verdict.score == 0.0
        assert 0.9 < time.monotonic() - begin < 5.0
        assert _wait_until_gone([pid]) == []
        assert pool.submit(*HARD).result().status is Status.CORRECT
        assert (pool.stats.timeouts, pool.stats.restarts) == (1, 1)


def test_a_killed_worker_costs_no_answer():
    with VerifierPool(num_workers=1) as pool:
        pool.submit(*HARD).result()
        os.kill(pool.worker_pids[0], signal.SIGKILL)
        assert pool.submit(*HARD).result().status is Status.CORRECT
        assert pool.stats.restarts == 1


def test_a_large_parent_does_not_make_its_workers_look_large():
    ballast = bytearray(700 * 2**20)
    ballast[::4096] = b"x" * len(ballast[::4096])  # resident, as the weights of a model are
    with VerifierPool(num_workers=1) as pool:
        pids = {pool.submit(*HARD).result().status and tuple(pool.worker_pids) for _ in range(3)}
        assert len(pids) == 1
        assert pool.stats.restarts == 0
    del ballast


def test_sixteen_threads_get_the_same_verdicts():
    cases = [HARD, (r"\boxed{5}", "5"), (r"\boxed{(x+1)^2}", "x^2+2x+1"), (r"\boxed{6}", "5")] * 10
    results = []
    with VerifierPool(num_workers=2) as pool:
        threads = [
            threading.Thread(target=lambda: results.append([v.status for v in pool.score(cases)])) for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert len(results) == 16
    assert all(result == results[0] for result in results)
    assert results[0][:4] == [Status.CORRECT, Status.CORRECT, Status.CORRECT, Status.INCORRECT]


def test_close_leaves_no_process_and_open_questions_end():
    pool = VerifierPool(num_workers=1, deadline_s=60.0)
    pool.submit(*HARD).result()
    pids = pool.worker_pids
    os.kill(pids[0], signal.SIGSTOP)
    futures = [pool.submit(*HARD) for _ in range(3)]
    time.sleep(0.2)
    pool.close()
    assert _wait_until_gone(pids) == []
    assert all(future.done() for future in futures)
    assert not any(thread.name.startswith("verifier-") for thread in threading.enumerate())


PROGRAM = textwrap.dedent(r"""
    import signal, sys, time
    from deepsearch_jax.verify import VerifierPool
    HOW = sys.argv[1]
    if HOW == "handler":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    pool = VerifierPool(num_workers=2)
    pool.score([(r"\boxed{\sqrt{8}}", r"2\sqrt{2}")] * 4)
    assert not [name for name in sys.modules if name.split(".")[0] in ("jax", "sympy")], "the parent stays light"
    print(*pool.worker_pids, flush=True)
    if HOW != "exit":
        time.sleep(60)
""")


@pytest.mark.parametrize(
    ("how", "send"),
    [("exit", None), ("handler", signal.SIGTERM), ("plain", signal.SIGTERM), ("plain", signal.SIGKILL)],
    ids=["interpreter exit", "SIGTERM handled", "SIGTERM", "kill -9"],
)
def test_workers_die_with_their_program(how, send, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-W", "error", str(script), how]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as program:
        pids = [int(pid) for pid in program.stdout.readline().split()]
        assert pids, program.stderr.read()
        if send is not None:
            program.send_signal(send)
        _, errors = program.communicate(timeout=30)
    assert errors == ""
    assert program.returncode == (0 if how != "plain" else -send)
    assert _wait_until_gone(pids) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_worker_that_cannot_notice_dies_with_its_program(tmp_path):
    """A stopped worker reads no end of its pipe: only the kernel can end it."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, str(script), "plain"]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as program:
        pids = [int(pid) for pid in program.stdout.readline().split()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        program.kill()
    assert pids
    assert _wait_until_gone(pids) == []


@pytest.mark.parametrize("case", [(None, "7"), (r"\boxed{7}", 7)], ids=["response_text", "ground_truth"])
def test_what_is_no_text_is_named(case, request):
    with VerifierPool() as pool, pytest.raises(TypeError, match=request.node.callspec.id):
        pool.submit(*case)


def test_memory_is_limited_in_the_worker():
    """A check that wants more than its share is an error of that check alone, and the pool goes on."""
    from deepsearch_jax.verify.process import WorkerProcess

    worker = WorkerProcess(memory_mb=700)
    try:
        with open(f"/proc/{worker.pid}/limits", encoding="ascii") as file:
            limits = {line[:25].strip(): line[26:].split()[0] for line in file}
    finally:
        worker.kill()
    assert int(limits["Max address space"]) == 700 * 2**20
    assert int(limits["Max file size"]) == 0


@pytest.mark.parametrize(
    ("name", "value"), [("mode", "maths"), ("num_workers", 0), ("deadline_s", 0.0), ("memory_mb", 8), ("recycle_mb", 1)]
)
def test_bad_settings_name_themselves(name, value):
    with pytest.raises(ValueError, match=name):
        VerifySettings(**{name: value})
