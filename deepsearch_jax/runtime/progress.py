"""What a person sees while a run goes on: phase times, one line a step, time left. Plain lines when not a terminal."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from deepsearch_jax.runtime.metrics import MACHINE_KEY
from deepsearch_jax.runtime.panel import LivePanel, PanelState, clock
from deepsearch_jax.runtime.printable import printable
from deepsearch_jax.runtime.watchdog import Pulse

_PLAIN_INTERVAL_S = 30.0  # a log file gets a line of a running phase at most this often


class Reporter:
    """Times the phases of the current step and tells how far the run is.

    On a terminal a panel stays at the bottom from the first phase to `close`; elsewhere there are plain lines.

    Attributes:
      phase_seconds: wall seconds of each phase since the last `take_times`.
      phase_cpu_seconds: CPU seconds of this process in each phase since the last `take_cpu_times`; those of the
        verifier's worker processes are not in them.
      panel_cpu_seconds: CPU time that panels have taken until they were closed.
      pulse: the last sign of life, for a watchdog.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.phase_seconds: dict[str, float] = {}
        self.phase_cpu_seconds: dict[str, float] = {}
        self.pulse = Pulse()
        self._started = time.monotonic()
        self._last_plain = 0.0
        self._state = PanelState()
        self._panel: LivePanel | None = None
        self.panel_cpu_seconds = 0.0
        self._remaining: RemainingTime | None = None

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[None]:
        """Times what runs inside under `name`; `total` is the number of `advance` units expected."""
        begin, cpu_begin = time.monotonic(), time.process_time()
        self._last_plain = begin
        self.pulse.beat(name)
        state = self._state
        state.done, state.detail, state.total, state.phase_began, state.phase = 0.0, "", total, begin, name
        if self._panel is None and LivePanel.suits(self.console):
            self._panel = LivePanel(self.console, state)
            self._panel.start()
        try:
            yield
        finally:
            state.phase = ""
            self.pulse.beat(f"what follows {name}")
            self.phase_seconds[name] = self.phase_seconds.get(name, 0.0) + time.monotonic() - begin
            self.phase_cpu_seconds[name] = self.phase_cpu_seconds.get(name, 0.0) + time.process_time() - cpu_begin

    def advance(self, done: float, detail: str = "") -> None:
        """Says that `done` units of the current phase are finished."""
        state = self._state
        state.done, state.detail = done, printable(detail)
        self.pulse.beat(state.phase)
        if self._panel is None and time.monotonic() - self._last_plain > _PLAIN_INTERVAL_S:
            self._last_plain = time.monotonic()
            of = f"/{state.total}" if state.total else ""
            self.line(f"  {state.phase}: {done:g}{of} {detail}")

    def expect(self, remaining: "RemainingTime", num_rounds: int) -> None:
        """Says how many steps and rounds there will be."""
        self._remaining = remaining
        self._state.num_steps, self._state.num_rounds = remaining.total, num_rounds

    def row(self, kind: str, step: int, values: dict[str, Any], machine: dict[str, Any]) -> None:
        """Takes a metric row as it is written."""
        self._state.take_row(kind, step, values, machine)
        if kind == "train" and self._remaining is not None:
            left = self._remaining.seconds(step)
            self._state.ends_at = None if left is None else time.monotonic() + left

    def recall(self, rows: Sequence[dict[str, Any]]) -> None:
        """Takes the rows that an earlier process of the run has written."""
        for row in rows:
            self._state.take_row(row["kind"], row["step"], row, row[MACHINE_KEY])

    def line(self, text: str) -> None:
        """Prints one line."""
        self.console.print(printable(text), markup=False)

    def close(self) -> None:
        """Takes the panel away; a later phase brings it back."""
        if self._panel is not None:
            self._panel.stop()
            self.panel_cpu_seconds += self._panel.cpu_seconds
            self._panel = None

    def take_times(self) -> dict[str, float]:
        """Phase times since the last call, in seconds, and a fresh start."""
        times, self.phase_seconds = self.phase_seconds, {}
        return {f"seconds_{name}": seconds for name, seconds in times.items()}

    def take_cpu_times(self) -> dict[str, float]:
        """The same in CPU seconds of all threads."""
        times, self.phase_cpu_seconds = self.phase_cpu_seconds, {}
        return {f"cpu_seconds_{name}": seconds for name, seconds in times.items()}

    def elapsed(self) -> float:
        """Wall seconds since this process started reporting."""
        return time.monotonic() - self._started


class RemainingTime:
    """Time left, from the mean pace of the steps done by this process.

    Attributes:
      total: steps of the run.
    """

    def __init__(self, total: int, done: int):
        self.total, self._first, self._begin = total, done, time.monotonic()

    def seconds(self, done: int) -> float | None:
        """Seconds left; None before the first step of this process has ended."""
        if done <= self._first:
            return None
        return (time.monotonic() - self._begin) / (done - self._first) * (self.total - done)

    def text(self, done: int) -> str:
        """For example `2m10s`; `?` before the first step of this process has ended."""
        left = self.seconds(done)
        return "?" if left is None else clock(left)


def step_line(step: int, values: dict[str, Any], times: dict[str, float], left: str) -> str:
    """What a log says of a training step: its metrics (`docs/metrics.md`), the seconds of its phases, the time left."""
    phases = " ".join(f"{k.removeprefix('seconds_')} {v:.1f}s" for k, v in times.items() if k.startswith("seconds"))
    loss, entropy = ("-" if values[n] is None else f"{values[n]:.3f}" for n in ("loss", "entropy"))
    return (
        f"step {step} r{values['round']} | solved {values['solved_share']:.2f} "
        f"reward {values['reward']:+.2f} loss {loss} entropy {entropy} "
        f"| cached {values['cached_share']:.2f} dropped {values['dropped_groups']} | {phases} "
        f"| {times['tokens_per_second']:.0f} tok/s | left {left}"
    )


def peak_memory_gib() -> float:
    """Largest resident size of this process so far, in GiB (host memory; the device's own is not in it)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
