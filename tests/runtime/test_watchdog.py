"""A stall is named with its phase and the stacks of the threads, once; a run that moves on is left alone."""

import dataclasses
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from deepsearch_jax.runtime import run
from deepsearch_jax.runtime import watchdog as watchdog_module
from deepsearch_jax.runtime.progress import Reporter
from deepsearch_jax.runtime.settings import RoundSettings
from deepsearch_jax.runtime.trainer import Trainer
from deepsearch_jax.runtime.watchdog import STALLED_STATUS, Watchdog, WatchdogSettings
from tests.conftest import REPOSITORY
from tests.runtime.conftest import tiny_settings


def watched(tmp_path, told, left, **settings):
    reporter = Reporter()
    watchdog = Watchdog(
        WatchdogSettings(**settings), reporter.pulse, tmp_path / "stall.txt", told.append, leave=left.append
    )
    watchdog.start()
    return reporter, watchdog


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def hang_here(until):
    until.wait(30)


@pytest.mark.parametrize("abort", [False, True])
def test_a_phase_that_stalls_is_named_with_the_stacks_of_all_threads(tmp_path, abort):
    told, left, until = [], [], threading.Event()
    other = threading.Thread(target=hang_here, args=(until,), daemon=True)
    other.start()
    reporter, watchdog = watched(tmp_path, told, left, stall_seconds=0.2, abort=abort)
    with reporter.phase("rollout"):
        wait_for(lambda: told)
        time.sleep(0.3)  # it stays silent: nothing more to tell
        assert len(told) == 1
    until.set()
    watchdog.stop()
    assert "stalled: nothing has moved in rollout for" in told[0]
    assert left == ([STALLED_STATUS] if abort else [])
    assert told[0].endswith(", leaving") == abort
    text = (tmp_path / "stall.txt").read_text()
    assert "nothing has moved in rollout" in text
    assert "in hang_here" in text  # the other thread
    assert "in wait_for" in text  # this one


def test_a_second_stall_is_told_anew_and_says_what_it_follows(tmp_path):
    told = []
    reporter, watchdog = watched(tmp_path, told, [], stall_seconds=0.2)
    with reporter.phase("update"):
        wait_for(lambda: len(told) == 1)
        reporter.advance(1)
    wait_for(lambda: len(told) == 2)
    watchdog.stop()
    assert "in what follows update" in told[1]
    assert (tmp_path / "stall.txt").read_text().count("stalled:") == 2


def test_a_run_that_moves_on_is_left_alone(tmp_path):
    told = []
    reporter, watchdog = watched(tmp_path, told, [], stall_seconds=2.0)
    with reporter.phase("rollout"):
        for done in range(30):
            time.sleep(0.1)
            reporter.advance(done)
    watchdog.stop()
    assert told == []
    assert not (tmp_path / "stall.txt").exists()


@pytest.mark.slow
def test_a_process_that_was_stopped_did_not_stall(tmp_path):
    """As `scontrol suspend` does to a job: the clock went on, and nobody could move."""
    program = textwrap.dedent(f"""
        import pathlib, time
        from deepsearch_jax.runtime.watchdog import Pulse, Watchdog, WatchdogSettings
        pulse = Pulse()
        pulse.beat("rollout")
        tell = lambda line: print(line, flush=True)
        settings, path = WatchdogSettings(stall_seconds=6.0, abort=True), pathlib.Path({str(tmp_path)!r}) / "s"
        Watchdog(settings, pulse, path, tell).start()
        print("ready", flush=True)
        time.sleep(2)
        pulse.beat("update")
        print("moved", flush=True)
        time.sleep(30)
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(9)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "moved\n"
        begin = time.monotonic()
        assert "nothing has moved in update" in process.stdout.readline()  # a stall after that is found
        assert 2 < time.monotonic() - begin < 20
        assert process.wait(20) == STALLED_STATUS
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_report_that_hangs_does_not_keep_the_process(tmp_path, monkeypatch):
    """The run hangs because nobody reads its terminal: nor can the watchdog write to it."""
    monkeypatch.setattr(watchdog_module, "_REPORT_SECONDS", 0.3)
    until, left = threading.Event(), []
    watchdog = Watchdog(
        WatchdogSettings(stall_seconds=0.2, abort=True), Reporter().pulse, tmp_path / "stall.txt",
        lambda line: until.wait(30), leave=left.append,
    )  # fmt: skip
    watchdog.start()
    try:
        wait_for(lambda: left == [STALLED_STATUS])
    finally:
        until.set()
        watchdog.stop()


def test_a_disk_that_cannot_be_written_is_told_too(tmp_path):
    told = []
    reporter = Reporter()
    watchdog = Watchdog(WatchdogSettings(stall_seconds=0.1), reporter.pulse, tmp_path / "gone/stall.txt", told.append)
    watchdog.start()
    wait_for(lambda: told)
    watchdog.stop()
    assert "cannot be written (No such file or directory)" in told[0]


def test_a_run_is_watched_from_its_start(tmp_path, monkeypatch):
    def hang(self):
        with self.reporter.phase("update"):
            wait_for((tmp_path / "stall.txt").exists)
            wait_for(lambda: "hang" in (tmp_path / "stall.txt").read_text())

    monkeypatch.setattr(Trainer, "run", hang)
    monkeypatch.setattr(sys.modules["deepsearch_jax.runtime.run"], "_finish", lambda *arguments: None)
    settings = tiny_settings(watchdog=WatchdogSettings(stall_seconds=3.0), rounds=RoundSettings(problems_per_step=4))
    assert run(settings, dataclasses.asdict(settings), tmp_path)
    assert "nothing has moved in update" in (tmp_path / "stall.txt").read_text()
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"stall_seconds": -1.0}, "stall_seconds=-1.0 must be at least 0"),
     ({"stall_seconds": 0.0, "abort": True}, "stall_seconds=0 never finds a stall")],
)  # fmt: skip
def test_settings_without_sense_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        WatchdogSettings(**settings)


def test_it_can_be_switched_off(tmp_path):
    reporter, watchdog = watched(tmp_path, [], [], stall_seconds=0.0)
    del reporter
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]
    watchdog.stop()
