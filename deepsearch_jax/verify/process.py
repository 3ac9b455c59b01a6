"""The parent's handle of one worker process: start, ask with a deadline, kill."""

import json
import os
import pathlib
import select
import subprocess
import sys
import time
from typing import Any

STARTUP_SECONDS = 60.0
_PACKAGE_ROOT = pathlib.Path(__file__).resolve().parents[2]
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "SYSTEMROOT")


class WorkerDied(RuntimeError):
    """The process ended by itself or from outside while it was asked or started."""


class Overrun(RuntimeError):
    """No reply before the deadline."""


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


class WorkerProcess:
    """One worker. Not thread-safe: its dispatcher thread alone uses it. That thread must live as long as the worker,
    because Linux ends a child with the thread that started it (PR_SET_PDEATHSIG)."""

    def __init__(self, memory_mb: int, module: str = "deepsearch_jax.verify.worker", *arguments: str):
        """Starts `module` as a program; `arguments` follow the limit and our process id on its command line."""
        command = [sys.executable, "-P", "-m", module, str(memory_mb), str(os.getpid()), *arguments]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=worker_environment(),
            start_new_session=True,  # signals to the caller's group (Ctrl-C, a scheduler's SIGTERM) pass it by
            bufsize=0,
        )
        self._pending = b""
        self.pid = self._process.pid
        try:
            self._read(time.monotonic() + STARTUP_SECONDS)
        except (WorkerDied, Overrun):
            self.kill()
            raise

    def ask(self, answer: str, ground_truth: str, deadline_s: float) -> dict[str, Any]:
        """The worker's reply. Raises Overrun after `deadline_s` seconds, WorkerDied if there is no process any more."""
        question = json.dumps([answer, ground_truth, deadline_s]).encode() + b"\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(question)
        except OSError as error:
            raise WorkerDied(str(error)) from error
        return self._read(time.monotonic() + deadline_s)

    def _read(self, until: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLHUP)
        while b"\n" not in self._pending:
            remaining = until - time.monotonic()
            if remaining <= 0:
                raise Overrun
            if not poll.poll(max(1, int(remaining * 1000))):
                continue
            chunk = os.read(fd, 65536)
            if not chunk:
                raise WorkerDied("end of its output")
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        reply = json.loads(line)
        assert isinstance(reply, dict)
        return reply

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
