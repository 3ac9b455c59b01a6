"""What a person sees while a run goes on: phase times, one line a step, time left. Plain lines when not a terminal."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

_PLAIN_INTERVAL_S = 30.0  # a log file gets a line of a running phase at most this often


class Reporter:
    """Times the phases of the current step and tells how far the run is.

    Attributes:
      phase_seconds: wall seconds of each phase since the last `take_times`.
      phase_cpu_seconds: CPU seconds of this process in each phase since the last `take_cpu_times`; those of the
        verifier's worker processes are not in them.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.phase_seconds: dict[str, float] = {}
        self.phase_cpu_seconds: dict[str, float] = {}
        self._started = time.monotonic()
        self._last_plain = 0.0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[None]:
        """Times what runs inside under `name`; `total` is the number of `advance` units expected."""
        begin, cpu_begin = time.monotonic(), time.process_time()
        self._last_plain = begin
        self._name, self._total = name, total
        if self.console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
                console=self.console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(name, total=total)
            self._bar.start()
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
            self.phase_seconds[name] = self.phase_seconds.get(name, 0.0) + time.monotonic() - begin
            self.phase_cpu_seconds[name] = self.phase_cpu_seconds.get(name, 0.0) + time.process_time() - cpu_begin

    def advance(self, done: float, detail: str = "") -> None:
        """Says that `done` units of the current phase are finished."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=f"{self._name} {detail}")  # type: ignore[arg-type]
        elif time.monotonic() - self._last_plain > _PLAIN_INTERVAL_S:
            self._last_plain = time.monotonic()
            of = f"/{self._total}" if self._total else ""
            self.line(f"  {self._name}: {done:g}{of} {detail}")

    def line(self, text: str) -> None:
        """Prints one line."""
        self.console.print(text, markup=False)

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
    """Time left, from the mean pace of the steps done by this process."""

    def __init__(self, total: int, done: int):
        self._total, self._first, self._begin = total, done, time.monotonic()

    def text(self, done: int) -> str:
        """For example `2m10s`; `?` before the first step of this process has ended."""
        if done <= self._first:
            return "?"
        left = (time.monotonic() - self._begin) / (done - self._first) * (self._total - done)
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def peak_memory_gib() -> float:
    """Largest resident size of this process so far, in GiB (host memory; the device's own is not in it)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
