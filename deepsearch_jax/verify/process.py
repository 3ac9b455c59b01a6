"""The parent's handle of one worker process: start, ask with a deadline, kill."""

import dataclasses
import json
import math
import os
import pathlib
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

STARTUP_SECONDS = 60.0
MAX_REPLY_BYTES = 65536  # a worker says less than 1 KiB
_PACKAGE_ROOT = pathlib.Path(__file__).resolve().parents[2]
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "SYSTEMROOT")


class WorkerDied(RuntimeError):
    """The process ended by itself or from outside while it was asked or started."""


class Overrun(RuntimeError):
    """No reply before the deadline."""


def worker_command(module: str = "deepsearch_jax.verify.worker") -> list[str]:
    """Starts a worker; the limit of memory and the parent's process id follow."""
    return [sys.executable, "-P", "-m", module]


def worker_environment() -> dict[str, str]:
    """A small environment: no credentials, one thread, no accelerator, the package importable from where we are."""
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    paths = [str(_PACKAGE_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",  # sympy orders terms by hash in places: the same question takes the same way
        "OMP_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
    }
    return environment


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a worker says of one question. It has read hostile text: what it sends is JSON, checked field by field.

    Attributes:
      equal: the verdict, None if the check failed.
      memory_mb: resident memory of the worker after the check.
      refused: attempts to touch files, network, processes or to evaluate text that the worker refused.
      events: audit events of files, code and processes during the check, by name (imports of modules among them).
      score: in [0, 1], of a worker that knows scores between; None otherwise.
    """

    equal: bool | None
    memory_mb: int
    refused: int
    events: dict[str, int]
    score: float | None = None

    @classmethod
    def of(cls, message: dict[str, Any]) -> "Reply":
        """Raises WorkerDied if a field is missing or not what it should be."""
        equal, memory_mb, refused = (message.get(name) for name in ("equal", "memory_mb", "refused"))
        events = message.get("events")
        score = message.get("score")
        if score is not None and not (type(score) is float and 0 <= score <= 1):
            raise WorkerDied("it sent nonsense")
        numbers = [memory_mb, refused, *(events.values() if isinstance(events, dict) else (None,))]
        if not (equal is None or isinstance(equal, bool)) or not all(type(number) is int for number in numbers):
            raise WorkerDied("it sent nonsense")
        return cls(equal, cast(int, memory_mb), cast(int, refused), cast(dict[str, int], events), score)


class WorkerProcess:
    """One worker. Not thread-safe: its dispatcher thread alone uses it. That thread must live as long as the worker,
    because Linux ends a child with the thread that started it (PR_SET_PDEATHSIG)."""

    def __init__(self, memory_mb: int, command: Sequence[str] = (), *arguments: str):
        """Starts `command` in place of `worker_command()`; `arguments` follow the limit and our process id."""
        self._process = subprocess.Popen(
            [*(command or worker_command()), str(memory_mb), str(os.getpid()), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=worker_environment(),
            start_new_session=True,  # signals to the caller's group (Ctrl-C, a scheduler's SIGTERM) pass it by
            bufsize=0,
        )
        self._pending = b""
        self.pid = self._process.pid
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        try:
            self._read(time.monotonic() + STARTUP_SECONDS)
        except Overrun:
            self.kill()
            raise WorkerDied(f"it was not ready within {STARTUP_SECONDS:g} s") from None
        except WorkerDied:
            self.kill()
            raise

    def ask(self, answer: str, ground_truth: str, deadline_s: float) -> Reply:
        """The worker's reply. Raises Overrun after `deadline_s` seconds, WorkerDied if there is no process any more."""
        until = time.monotonic() + deadline_s
        self._write(json.dumps([answer, ground_truth, deadline_s]).encode() + b"\n", until)
        return Reply.of(self._read(until))

    def _write(self, data: bytes, until: float) -> None:
        """A stopped worker reads nothing: a pipe that stays full must not outlast the deadline either."""
        assert self._process.stdin is not None
        fd = self._process.stdin.fileno()
        while data:
            self._wait(fd, select.POLLOUT, until)
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise WorkerDied(str(error)) from error

    def _read(self, until: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._pending:
            if len(self._pending) > MAX_REPLY_BYTES:
                raise WorkerDied("it sent nonsense without end")
            self._wait(fd, select.POLLIN, until)
            chunk = os.read(fd, 4096)
            if not chunk:
                raise WorkerDied("end of its output")
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or self._pending:  # one question, one line
            raise WorkerDied("it sent nonsense")
        return message

    @staticmethod
    def _wait(fd: int, event: int, until: float) -> None:
        poll = select.poll()
        poll.register(fd, event)
        while True:
            remaining = until - time.monotonic()
            if remaining <= 0:
                raise Overrun
            if poll.poll(max(1, math.ceil(remaining * 1000))):
                return

    def interrupt(self) -> None:
        """Ends the process from another thread; the dispatcher sees it die and cleans up with `kill`."""
        self._process.kill()

    def kill(self) -> None:
        """Ends the process at once and leaves no zombie and no open pipe."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
