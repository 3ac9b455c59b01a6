"""A worker process: reads questions as JSON lines, answers them with sympy, and can do nothing else.

Run as `python -m deepsearch_jax.verify.worker`; the pool is its only user. The process starts from nothing (no copy of
the caller's memory or __main__), limits its own memory, processor time and file sizes, refuses files, sockets,
processes and evaluated text from inside (an audit hook), and dies with its parent.
"""

import collections
import ctypes
import json
import os
import resource
import signal
import sys
import types
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1
_FORBIDDEN_EVENTS = (
    "os.", "socket.", "subprocess.", "shutil.", "tempfile.", "glob.", "pathlib.", "pty.", "ctypes.", "urllib.",
    "http.", "ftplib.", "smtplib.", "imaplib.", "poplib.", "nntplib.", "telnetlib.", "mmap.", "fcntl.", "signal.",
    "sqlite3.", "pickle.", "shelve.", "webbrowser.", "syslog.", "pdb.", "winreg.", "msvcrt.", "_winapi.", "_thread.",
    "_posixsubprocess.", "resource.prlimit", "sys.addaudithook", "sys.setprofile", "sys.settrace",
    "builtins.breakpoint", "builtins.input", "cpython.run_", "ensurepip.", "setopencodehook",
)  # fmt: skip
_CODE_WRITERS = frozenset(("dataclasses", "collections", "typing", "sympy.polys.monomials"))
_CODE_SUFFIXES = (".py", ".pyc", ".so")
_CHANGING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_TALLIED = frozenset(("open", "compile", "exec", "import"))


class Guard:
    """Audit hook: modules may still be imported from where Python keeps them, all else that touches the world is
    refused. Nothing can take the hook away again.

    Attributes:
      tally: events of files, code, processes and the like since the last `take`, by name.
      refused: how many of them were refused.
    """

    def __init__(self) -> None:
        roots = {sys.prefix, sys.base_prefix, sys.exec_prefix, *filter(None, sys.path)}
        both = {os.path.abspath(root) for root in roots} | {os.path.realpath(root) for root in roots}
        self._roots = tuple(root.rstrip(os.sep) + os.sep for root in sorted(both) if root != os.sep)
        self.tally: collections.Counter[str] = collections.Counter()
        self.refused = 0

    def take(self) -> tuple[dict[str, int], int]:
        """What was counted since the last call, and a fresh start."""
        taken = dict(self.tally), self.refused
        self.tally, self.refused = collections.Counter(), 0
        return taken

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _TALLIED:
            self.tally[event] += 1
            if event != "import" and not self.is_code(event, args):
                self._refuse(f"{event} {args[0]!r:.60}")
        elif event.startswith(_FORBIDDEN_EVENTS):
            self.tally[event] += 1
            if not (event == "os.listdir" and self._is_below_roots(f"{args[0]}{os.sep}")):  # looking for a module
                self._refuse(event)

    def _refuse(self, what: str) -> None:
        self.refused += 1
        raise PermissionError(f"a verifier worker may not do this: {what}")

    def _is_below_roots(self, path: object) -> bool:
        return isinstance(path, str) and path.startswith(self._roots) and ".." not in path

    def is_code(self, event: str, args: tuple[Any, ...]) -> bool:
        """Whether this opens, compiles or runs a module. Text that is evaluated has no file; `_CODE_WRITERS` write such
        code themselves, from numbers and field names, never from an answer."""
        if event == "open":
            path, mode, flags = args
            reads = mode in ("r", "rb", None) and not (flags or 0) & _CHANGING_FLAGS
            return reads and self._is_below_roots(path) and path.endswith(_CODE_SUFFIXES)
        name = args[0].co_filename if event == "exec" else str(args[1])
        if self._is_below_roots(name) or name.startswith("<frozen "):
            return True
        frame: types.FrameType | None = sys._getframe(1)  # outwards to whoever caused the event
        while frame is not None and frame.f_code.co_name in ("is_code", "__call__"):
            frame = frame.f_back
        return frame is not None and frame.f_globals.get("__name__", "") in _CODE_WRITERS


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we could ask
        os._exit(1)


def _limit(memory_mb: int) -> None:
    """Limits that the kernel holds against this process, whatever its Python does; they cannot be raised again.

    Not every system has all of them (macOS has no limit on the address space that works): there the recycling by
    resident memory and the parent's deadline remain.
    """
    bytes_ = memory_mb * 2**20
    limits = {"AS": bytes_, "CORE": 0, "FSIZE": 0, "NOFILE": 64, "NPROC": 0, "MEMLOCK": 0, "MSGQUEUE": 0}
    for name, wanted in limits.items():
        number = getattr(resource, f"RLIMIT_{name}", None)
        if number is None:
            continue
        hard = resource.getrlimit(number)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(number, (value, value))
        except (OSError, ValueError):
            if sys.platform == "linux":
                raise


def _limit_processor_time(seconds: float) -> None:
    """The kernel ends a question that overran even if the pool is gone and the interpreter cannot react."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft, hard = int(usage.ru_utime + usage.ru_stime + seconds) + 2, resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard != resource.RLIM_INFINITY:  # as after `ulimit -t`: it can be kept or lowered, not raised
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def warm_up() -> Any:
    """Imports sympy and uses every path once, so that neither imports nor tables count against the first answer."""
    from deepsearch_jax.verify.judge import judge
    from deepsearch_jax.verify.symbolic import set_equal

    for pred, gold in (
        (r"(0,2)\cup(1,3)", "(0,3)"),
        ("x^2<4", "(-2,2)"),
        (r"\sqrt8", r"2\sqrt2"),
        (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}"),
        (r"\int_0^1 x dx", r"\frac12"),
        (r"\lim_{x\to 0}\frac{\sin x}{x}", "1"),
    ):
        judge(pred, gold, set_equal)
    return lambda pred, gold: judge(pred, gold, set_equal)


def _resident_memory() -> Callable[[], int]:
    """A function that tells this process's resident memory in MiB.

    Not ru_maxrss where it can be helped: on Linux a child starts with its parent's peak there, so the workers of a
    training process would all look enormous. The file is opened once, before opening files is refused.
    """
    try:
        statm = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:  # no such file system: there ru_maxrss is the process's own, in bytes on macOS
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
    page = os.sysconf("SC_PAGE_SIZE")
    return lambda: int(os.pread(statm, 200, 0).split()[1]) * page // 2**20


def serve(prepare: Callable[[], Callable[[str, str], dict[str, Any]]], guard: Guard) -> None:
    """Answers questions until the pipe ends.

    Args:
      prepare: called once within the limits and before side effects are refused; gives the function that answers.
      guard: the audit hook that refuses side effects.
    """
    memory_mb, parent = int(sys.argv[1]), int(sys.argv[2])
    questions, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):  # whatever a library prints must not reach the caller's terminal or the protocol
        os.dup2(nowhere, fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent(parent)
    _limit(memory_mb)
    answer = prepare()
    resident_memory = _resident_memory()
    sys.addaudithook(guard)
    replies.write(b'{"ready": true}\n')
    replies.flush()
    for line in questions:  # ends with the pool's end of the pipe
        pred, gold, seconds = json.loads(line)
        _limit_processor_time(seconds)
        try:
            reply = answer(pred, gold)
        except Exception as error:  # the worker border: any failure of a library is a result, not a crash
            reply = {"equal": None, "error": type(error).__name__}
        reply["memory_mb"] = resident_memory()
        reply["events"], reply["refused"] = guard.take()
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def _prepare() -> Callable[[str, str], dict[str, Any]]:
    judge = warm_up()
    return lambda pred, gold: {"equal": bool(judge(pred, gold))}


def main() -> None:
    serve(_prepare, Guard())


if __name__ == "__main__":
    main()
