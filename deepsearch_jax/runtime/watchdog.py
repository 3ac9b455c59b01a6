"""Names the phase that stalls: a thread watches for progress and writes down where all threads are if there is none."""

import dataclasses
import datetime
import faulthandler
import os
import pathlib
import threading
import time
from collections.abc import Callable

# Status of a process that the watchdog ended: EX_TEMPFAIL of sysexits.h, "try again later".
STALLED_STATUS = 75
_REPORT_SECONDS = 30.0  # what the report may take before a process that is to be ended is ended without it


@dataclasses.dataclass(frozen=True)
class WatchdogSettings:
    """When a run counts as stalled.

    Attributes:
      stall_seconds: wall seconds without any progress (a phase begun, ended or moved on) after which WORKDIR/stall.txt
        gets the name of the phase and the stacks of all threads; 0 = never. Compiling the programs of a large model is
        one such silence and may take many minutes.
      abort: end the process then, with status 75, so that a scheduler starts the same command again; it goes on from
        the last checkpoint.
    """

    stall_seconds: float = 3600.0
    abort: bool = False

    def __post_init__(self) -> None:
        if not self.stall_seconds >= 0:
            raise ValueError(f"stall_seconds={self.stall_seconds} must be at least 0; 0 switches the watchdog off")
        if self.abort and not self.stall_seconds:
            raise ValueError("abort=True, but stall_seconds=0 never finds a stall; set the longest silence to wait for")


class Pulse:
    """The last sign of life of a run; written by the thread that works, read by the watchdog."""

    def __init__(self) -> None:
        self._last = "the start", time.monotonic()

    def beat(self, phase: str) -> None:
        """Says that something has just moved in `phase`."""
        self._last = phase, time.monotonic()  # one assignment: a reader sees the old pair or the new one

    @property
    def last(self) -> tuple[str, float]:
        """Phase, and time by time.monotonic."""
        return self._last


class Watchdog:
    """Watches a pulse from a daemon thread between `start` and `stop`."""

    def __init__(
        self, settings: WatchdogSettings, pulse: Pulse, path: pathlib.Path, tell: Callable[[str], None], *,
        leave: Callable[[int], None] = os._exit,
    ):  # fmt: skip
        """
        Args:
          path: of the file that stalls are appended to.
          tell: prints one line.
          leave: ends the process; nothing can be tidied up where everything may hang.
        """
        self._settings, self._pulse, self._path, self._tell, self._leave = settings, pulse, path, tell, leave
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to watch; does nothing where stall_seconds is 0."""
        if self._settings.stall_seconds:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def _watch(self) -> None:
        limit, told_of = self._settings.stall_seconds, 0.0
        interval = min(limit / 4, 10.0)
        before, asleep, of = time.monotonic(), 0.0, 0.0
        while not self._is_over.wait(interval):
            phase, since = self._pulse.last
            now = time.monotonic()
            asleep = asleep if since == of else 0.0
            # A process that was stopped (SIGSTOP, a suspended job) did not stall: its watchdog slept as well.
            gap = now - max(before, since)
            asleep += gap - interval if gap > 2 * interval else 0.0
            before, of, silence = now, since, now - since - asleep
            if silence < limit or since == told_of:  # a stall is told once
                continue
            told_of = since
            if not self._settings.abort:
                self._report(phase, silence)
                continue
            # What the run waits for (a disk, a pipe that nobody reads, the terminal's lock) may hold the report too.
            report = threading.Thread(target=self._report, args=(phase, silence), name="watchdog report", daemon=True)
            report.start()
            report.join(timeout=_REPORT_SECONDS)
            self._leave(STALLED_STATUS)

    def _report(self, phase: str, silence: float) -> None:
        line = f"stalled: nothing has moved in {phase} for {silence:.0f}s"
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
                file.write(f"{now} process {os.getpid()} {line}\n")
                file.flush()
                faulthandler.dump_traceback(file=file, all_threads=True)
                file.write("\n")
            line += f"; the stacks of all threads are in {self._path}"
        except OSError as error:  # a full or vanished disk may be what it waits for
            line += f"; {self._path} cannot be written ({error.strerror})"
        self._tell(f"warning: {line}" + (", leaving" if self._settings.abort else ""))
