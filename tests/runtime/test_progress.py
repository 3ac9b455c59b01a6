"""What a person sees of a run: the panel on a real pseudo-terminal, plain lines elsewhere, how often it is drawn."""

import fcntl
import io
import os
import pathlib
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

import pytest
from rich.console import Console

from deepsearch_jax.runtime import panel
from deepsearch_jax.runtime.panel import LivePanel, PanelState, clock, panel_lines
from deepsearch_jax.runtime.progress import RemainingTime, Reporter

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def full_state():
    state = PanelState(began=0.0)
    state.take_row("eval", 10, {"pass_at_1": 0.31, "pass_at_1_low": 0.25, "pass_at_1_high": 0.375}, {})
    state.take_row("train", 12, {"round": 1, "alarms": ["entropy_floor"]}, {"tokens_per_second": 12345.6})
    state.num_steps, state.num_rounds, state.ends_at = 40, 3, 230.0
    state.phase, state.phase_began, state.total, state.done, state.detail = "rollout", 88.0, 64, 16, "9876 tokens"
    return state


def test_the_panel_says_where_the_run_is():
    lines = [line.plain.rstrip("─ ") for line in panel_lines(full_state(), 100.0, 100, 30)]
    assert lines == [
        "step 12/40 · round 2/3",
        "rollout 0m12s " + "━" * 24 + " 16/64 9876 tokens",
        "left 2m10s · elapsed 1m40s · tokens/s 12,346",
        "held-out pass@1 0.310 [0.250, 0.375] at step 10",
        "alarms: entropy_floor (step 12)",
    ]


def test_a_run_that_has_just_begun_has_a_panel_too():
    state = PanelState(began=0.0, phase="warm start")
    assert [line.plain for line in panel_lines(state, 5.0, 80, 30)] == [
        "warm start 0m05s ", "left ? · elapsed 0m05s · tokens/s –",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [1, 5, 20, 39, 80, 400])
@pytest.mark.parametrize("height", [1, 3, 50])
def test_the_panel_fits_into_every_window(width, height):
    lines = panel_lines(full_state(), 100.0, width, height)
    assert all(line.cell_len <= max(width - 1, 1) for line in lines)
    assert 1 <= len(lines) <= max(height - 1, 1)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0m00s"), (59.6, "1m00s"), (130, "2m10s"), (11100, "3h05m"), (-3, "0m00s")]
)
def test_times(seconds, text):
    assert clock(seconds) == text


def test_time_left_follows_the_pace_of_this_process(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("deepsearch_jax.runtime.progress.time.monotonic", lambda: now[0])
    remaining = RemainingTime(10, 4)
    assert (remaining.text(4), remaining.seconds(4)) == ("?", None)
    now[0] = 120.0
    assert (remaining.seconds(6), remaining.text(6)) == (40.0, "0m40s")


def test_elsewhere_there_are_plain_lines(monkeypatch):
    monkeypatch.setattr("deepsearch_jax.runtime.progress._PLAIN_INTERVAL_S", 0.0)
    output = io.StringIO()
    reporter = Reporter(Console(file=output, highlight=False, soft_wrap=True))
    with reporter.phase("rollout", 8):
        reporter.advance(4, "120 tokens")
    reporter.line("step 1 [not markup]")
    reporter.close()
    assert output.getvalue() == "  rollout: 4/8 120 tokens\nstep 1 [not markup]\n"
    assert set(reporter.take_times()) == {"seconds_rollout"}
    assert reporter.take_times() == {}


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    output = io.StringIO()
    reporter = Reporter(Console(file=output, force_terminal=True, highlight=False))
    with reporter.phase("rollout"):
        reporter.line("a line")
    reporter.close()
    assert output.getvalue() == "a line\n"


def terminal_reporter(monkeypatch, output):
    monkeypatch.setenv("TERM", "xterm-256color")
    return Reporter(Console(file=output, force_terminal=True, width=100, height=40, soft_wrap=True, highlight=False))


class Clocks:
    """The clocks of a panel and the event that ends it: a run that works this share of the time, for `turns` waits."""

    def __init__(self, picture_s, work_share, turns):
        self.picture_s, self.work_share, self.turns = picture_s, work_share, turns
        self.wall = self.cpu = self.thread = 0.0
        self.num_pictures = 0

    def monotonic(self):
        return self.wall

    def process_time(self):
        return self.cpu

    def thread_time(self):
        return self.thread

    def wait(self, seconds):
        self.wall += seconds
        self.cpu += seconds * self.work_share
        self.turns -= 1
        return self.turns < 0

    def refresh(self):
        self.num_pictures += 1
        self.thread += self.picture_s
        self.cpu += self.picture_s
        self.wall += self.picture_s


@pytest.mark.parametrize(
    ("picture_s", "work_share", "pictures"),
    [
        (0.0005, 1.0, 400),  # cheap pictures: one every MIN_INTERVAL_S
        (0.0019, 1.0, 200),  # 1.9 ms are paid with almost 0.5 s of CPU time
        (0.0019, 2.0, 400),  # which two busy cores give in half the time
        (0.0099, 1.0, 40),  # almost 2.5 s
        (0.0019, 0.0, 34),  # a run that waits: one every MAX_INTERVAL_S, 3 s
        (0.100, 1.0, 34),
    ],
)
def test_pictures_are_paid_with_cpu_time_of_the_run(monkeypatch, picture_s, work_share, pictures):
    """Pictures drawn in the 400 turns of 100 s; what a real one costs is measured by benchmarks/progress.py."""
    clocks = Clocks(picture_s, work_share, turns=400)
    live = LivePanel(Console(file=io.StringIO(), force_terminal=True), PanelState())
    monkeypatch.setattr(panel, "time", clocks)
    monkeypatch.setattr(live, "_over", clocks)
    monkeypatch.setattr(live, "_live", clocks)
    live._draw()
    assert clocks.num_pictures == pytest.approx(pictures, abs=2)
    assert live.cpu_seconds == pytest.approx(clocks.num_pictures * picture_s)
    if work_share and picture_s <= 0.01:
        assert live.cpu_seconds / clocks.cpu < 0.005


def test_calls_of_the_run_draw_nothing(monkeypatch):
    """However often a run says how far it is, pictures come from the panel's thread alone."""
    monkeypatch.setattr(panel, "MIN_INTERVAL_S", 3600.0)
    reporter = terminal_reporter(monkeypatch, io.StringIO())
    pictures = []
    monkeypatch.setattr(panel, "panel_lines", lambda *_: pictures.append(0) or [])
    with reporter.phase("rollout", 100):
        at_start = len(pictures)
        for done in range(1000):
            reporter.advance(done, f"{done} tokens")
        assert len(pictures) == at_start
    reporter.close()


def test_a_terminal_that_is_gone_does_not_end_the_run(monkeypatch):
    class Gone(io.StringIO):
        is_gone = False

        def write(self, text):
            if self.is_gone:
                raise OSError(5, "Input/output error")
            return super().write(text)

    monkeypatch.setattr(panel, "MIN_INTERVAL_S", 0.01)
    output = Gone()
    reporter = terminal_reporter(monkeypatch, output)
    with reporter.phase("rollout"):
        output.is_gone = True
        time.sleep(0.1)
        output.is_gone = False
    reporter.close()


CHILD = """
import fcntl
import termios
import time

fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C comes as a key, not as a signal of ours

from deepsearch_jax.runtime.interrupt import Interrupted, StopRequest
from deepsearch_jax.runtime.progress import RemainingTime, Reporter

reporter, stop = Reporter(), StopRequest()
stop.install()
reporter.expect(RemainingTime(40, 0), 2)
try:
    with reporter.phase("rollout", 64):
        for done in range(10_000):
            reporter.advance(done % 64, f"{done} tokens, and a word that makes the line long: " + "x" * 200)
            if done % 40 == 0:
                reporter.line(f"a line of the run, number {done}")
            time.sleep(0.02)
            stop.check()
except Interrupted as interrupted:
    reporter.line(f"{interrupted}: saving")
finally:
    reporter.close()
print("after the panel")
"""


class Terminal:
    """A program on a pseudo-terminal of its own, and all that it wrote."""

    def __init__(self, program, columns):
        self.master, slave = pty.openpty()
        self.resize(columns)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=REPOSITORY, stdin=slave, stdout=slave, stderr=slave, close_fds=True,
            env={**os.environ, "TERM": "xterm-256color", "XLA_FLAGS": ""}, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def resize(self, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))

    def read_until(self, done, seconds=90.0):
        """Reads until `done(text)`, or until the program has ended."""
        end = time.monotonic() + seconds
        while not done(self.text):
            assert time.monotonic() < end, self.text[-2000:]
            if not select.select([self.master], [], [], 0.2)[0]:
                continue
            try:
                self.text += os.read(self.master, 65536).decode("utf-8", "replace")
            except OSError:  # the other end is closed
                return

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


def widths(text):
    """Lengths of what is drawn between two line ends, without the sequences that move and colour."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [len(line) for line in re.split(r"[\r\n]+", plain)]


@pytest.mark.slow  # waits for pictures of another process: on a busy machine they may come late
def test_on_a_real_terminal_the_panel_follows_the_window_and_ctrl_c_leaves_it_clean():
    terminal = Terminal(CHILD, columns=40)
    try:
        terminal.read_until(lambda text: text.count("rollout") >= 4)
        assert terminal.text.count(HIDE) == 1
        assert SHOW not in terminal.text
        drawn = [line for line in re.split(r"[\r\n]+", terminal.text) if "━" in line]
        assert drawn
        assert max(max(widths(line)) for line in drawn) < 40
        before = len(terminal.text)
        terminal.resize(90)
        terminal.read_until(lambda text: any(40 < width < 90 for width in widths(text[before:])))
        os.write(terminal.master, b"\x03")
        terminal.read_until(lambda text: False)  # to the end
        assert terminal.process.wait(30) == 0
        rest = terminal.text[before:]
        assert "SIGINT: saving" in rest
        assert rest.rstrip().endswith("after the panel")
        assert terminal.text.count(SHOW) == 1
        assert "rollout" not in rest[rest.rindex(SHOW) :]
        assert "Traceback" not in terminal.text
    finally:
        terminal.close()
