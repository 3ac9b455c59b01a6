"""Two processes train together what one trains alone; one that is killed ends the other, and both go on again."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax.runtime import processes
from deepsearch_jax.runtime.checkpoints import CheckpointError, Checkpoints, CheckpointSettings
from deepsearch_jax.runtime.lost_processes import tells_of_lost_process
from deepsearch_jax.runtime.metrics import MACHINE_KEY, read_rows
from deepsearch_jax.runtime.processes import _indexed_job, _is_launched, _visible_devices, connect, decode, encode
from deepsearch_jax.runtime.responses import Group, Response
from deepsearch_jax.types import Outcome
from tests.test_run import SMALL

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# How slots and pages were used, and how much padding the rows of an update have, depends on who has how many of them.
OF_THE_MACHINE = {
    "busy_slot_share", "peak_pages", "page_evictions", "encoded_per_generated", "recomputed_tokens", "iterations",
    "processed_tokens",
}  # fmt: skip


def start(tmp_path, workdir, num_processes, *arguments):
    config = tmp_path / "small.py"
    config.write_text(SMALL)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    base = [sys.executable, "-m", "experiments.run", f"--config={config}", f"--workdir={workdir}", *arguments]
    together = [f"--coordinator=localhost:{port}", f"--num_processes={num_processes}"]
    return [
        subprocess.Popen(
            base + ([*together, f"--process_id={number}"] if num_processes > 1 else []), cwd=REPOSITORY,
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for number in range(num_processes)
    ]  # fmt: skip


def finish(processes, timeout=420):
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


def rows(workdir):
    return [{k: v for k, v in row.items() if k != MACHINE_KEY} for row in read_rows(workdir / "metrics.jsonl")]


def wait_for(kind, workdir, process):
    """Until the metrics have a row of this kind."""
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while not any(row["kind"] == kind for row in read_rows(metrics)):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def assert_same_rows(workdir, other):
    for row, expected in zip(rows(workdir), rows(other), strict=True):
        assert row.keys() == expected.keys()
        for name in row.keys() - OF_THE_MACHINE:
            if isinstance(row[name], float):
                np.testing.assert_allclose(row[name], expected[name], rtol=2e-3, atol=1e-5, err_msg=name)
            else:
                assert row[name] == expected[name], name


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_survive_a_kill(tmp_path):
    steps = ("--config.rounds.num_rounds=1", "--config.rounds.steps_per_round=3")
    finish(start(tmp_path, tmp_path / "one", 1, *steps))
    outputs = finish(start(tmp_path, tmp_path / "two", 2, *steps))
    assert "step 3" in outputs[0]
    assert "step" not in outputs[1]  # one writer
    assert_same_rows(tmp_path / "two", tmp_path / "one")

    slow = (*steps, "--config.checkpoint.every_steps=1")
    first, second = start(tmp_path, tmp_path / "killed", 2, *slow)
    wait_for("train", tmp_path / "killed", first)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    output = first.communicate(timeout=180)[0]
    assert first.returncode != 0
    assert "another process of this run" in output or "distributed service" in output, output
    finish(start(tmp_path, tmp_path / "killed", 2, *slow))
    assert_same_rows(tmp_path / "killed", tmp_path / "one")

    stopped = start(tmp_path, tmp_path / "stopped", 2, *slow)
    wait_for("eval", tmp_path / "stopped", stopped[0])  # the first step then has programs to compile
    stopped[1].send_signal(signal.SIGTERM)  # the one that does not write
    outputs = finish(stopped)
    assert "the same command goes on" in outputs[0]
    assert len(rows(tmp_path / "stopped")) < len(rows(tmp_path / "one"))
    finish(start(tmp_path, tmp_path / "stopped", 2, *slow))
    assert_same_rows(tmp_path / "stopped", tmp_path / "one")


LOST = "UNKNOWN: Gloo AllGather failed: [pair.cc:538] Read error [127.0.0.1]:31145: Connection reset by peer"


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError, RuntimeError])
def test_a_collective_that_failed_tells_of_a_lost_process_where_there_are_several(monkeypatch, kind):
    assert not tells_of_lost_process(kind(LOST))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert tells_of_lost_process(kind(LOST))
    for text in ("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes", "[Errno 28] No space left on device", "x"):
        assert not tells_of_lost_process(kind(text))


def test_a_save_cut_by_a_lost_process_is_not_called_a_full_disk(monkeypatch, tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointSettings())

    def fail(*arguments: object, **more: object) -> None:
        raise ValueError(LOST)

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(CheckpointError, match="could not be written"):
        checkpoints.save(1, {"a": jnp.arange(4)}, {})
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="Gloo AllGather failed"):
        checkpoints.save(1, {"a": jnp.arange(4)}, {})


ENDED = """
import jax
from experiments import run
error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")
try:
    run._status_of(error)
except RuntimeError:
    print("raised alone")
jax.process_count = lambda: 2
try:
    run._leave(run._status_of(error))
finally:
    print("the usual way out")
"""


def test_one_of_several_processes_does_not_wait_for_the_others_after_any_error():
    done = subprocess.run([sys.executable, "-c", ENDED], cwd=REPOSITORY, text=True, capture_output=True)
    assert (done.returncode, done.stdout) == (1, "raised alone\n")
    assert "RuntimeError: RESOURCE_EXHAUSTED: Out of memory" in done.stderr


LOOKING = """
import sys, time
import jax
jax.distributed.initialize("localhost:" + sys.argv[1], 2, int(sys.argv[2]))
from deepsearch_jax.runtime.interrupt import Interrupted
from deepsearch_jax.runtime.processes import SharedStop
stop = SharedStop()
stop.install()
for look in range(1, 600):
    try:
        stop.check()
    except Interrupted as interrupted:
        print(f"stopped at look {look} by {interrupted}")
        break
    print("looking", flush=True)
    time.sleep(0.1)
"""


@pytest.mark.parametrize(("number", "words"), [(signal.SIGTERM, "preemption notice"), (signal.SIGINT, "SIGINT")])
def test_a_notice_to_one_process_stops_all_at_the_same_look(number, words):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOOKING, str(port), str(process)], cwd=REPOSITORY, text=True,
            env={**os.environ, "XLA_FLAGS": ""}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for process in range(2)
    ]  # fmt: skip
    while (line := processes[1].stdout.readline()) != "looking\n":
        assert line, processes[1].poll()
    processes[1].send_signal(number)
    first, second = (output.splitlines()[-1] for output in finish(processes))
    assert first == second
    assert first.startswith("stopped at look")
    assert words in first


def test_what_processes_tell_each_other_arrives_bit_for_bit():
    rng = np.random.default_rng(0)

    def response(length, nodes, known):
        return Response(
            rng.integers(0, 9, length).astype(np.int32), rng.integers(0, 9, nodes).astype(np.int32),
            rng.normal(size=nodes).astype(np.float32), rng.normal(size=length).astype(np.float32) if known else None,
            float(rng.normal()), Outcome.CORRECT, 'ends "so"\n\\boxed{½}', "search",
            rng.normal(size=length).astype(np.float32) if length == 3 else None,
        )  # fmt: skip

    groups = [
        Group(
            None,
            [],
            [response(5, 2, True), response(0, 1, False)],
            rng.normal(size=3).astype(np.float32),
            rng.normal(size=3).astype(np.float32),
        ),
        Group(None, [], []),
        Group(None, [], [response(3, 3, True)], np.zeros(0, np.float32)),
    ]
    got, said = decode(encode(groups, {"tokens": 7}))
    assert said == {"tokens": 7}
    for group, (responses, rewards, nll) in zip(groups, got, strict=True):
        for mine, its in ((rewards, group.terminal_rewards), (nll, group.terminal_nll)):
            assert (mine is None) == (its is None)
            if mine is not None:
                np.testing.assert_array_equal(mine, its)
        for expected, other in zip(group.responses, responses, strict=True):
            for name in ("tokens", "segment_lengths", "node_values", "log_probs"):
                one, two = getattr(expected, name), getattr(other, name)
                assert (one is None) == (two is None)
                if one is not None:
                    np.testing.assert_array_equal(one, two)
                    assert one.dtype == two.dtype
            assert (expected.reward, expected.text, expected.origin) == (other.reward, other.text, other.origin)
            assert other.outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_launchers_are_found(environment, expected):
    assert _is_launched(environment) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, []),
        ({"SLURM_STEP_TASKS_PER_NODE": "1,1"}, []),
        ({"SLURM_TASKS_PER_NODE": "1"}, []),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1,2"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_TASKS_PER_NODE": "1(x2)"}, None),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, []),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "JAX_LOCAL_DEVICE_IDS": "0,1"}, None),
        ({}, None),
    ],
)
def test_a_process_that_has_a_machine_to_itself_takes_all_its_devices(environment, expected):
    assert _visible_devices(environment) == expected


def test_jax_makes_all_devices_visible_where_it_is_told_none(monkeypatch):
    """What `_visible_devices` relies on: JAX's detection names one GPU, an empty list keeps it from doing so."""
    from jax._src.clusters.cluster import ClusterEnv

    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1",
             "SLURM_LOCALID": "0"}  # fmt: skip
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    detect = ClusterEnv.auto_detect_unset_distributed_params
    assert [detect(None, None, None, given, None, 1)[-1] for given in (None, [])] == [[0], []]


@pytest.mark.parametrize("size", [0, 3, 4, 9])
def test_what_is_exchanged_goes_in_pieces(monkeypatch, size):
    monkeypatch.setattr(processes, "_PIECE", 4)
    payload = bytes(range(size))
    assert processes.exchange(payload) == [payload]


def test_pods_of_an_indexed_job_find_the_first_one():
    host = "deepsearch-12.service.default.svc.cluster.local"
    coordinator = "deepsearch-0.service.default.svc.cluster.local:55527"
    assert _indexed_job("12", host) == (coordinator, 12)
    for wrong in ("deepsearch-12", "deepsearch-1.service"):
        with pytest.raises(ValueError, match="headless service"):
            _indexed_job("12", wrong)


@pytest.mark.parametrize("arguments", [("localhost:1", 0, 0), ("", 2, 0), ("localhost:1", 2, 2), ("", 0, 1)])
def test_arguments_belong_together(arguments):
    with pytest.raises(ValueError, match="belong together"):
        connect(*arguments)
