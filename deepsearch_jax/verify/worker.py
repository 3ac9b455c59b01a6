"""A worker process: reads questions as JSON lines, answers them with sympy, and can do nothing else.

Run as `python -m deepsearch_jax.verify.worker`; the pool is its only user. The process starts from nothing (no copy of
the caller's memory or __main__), limits its own memory, processor time and file sizes, refuses files, sockets,
processes and evaluated text from inside (an audit hook), and dies with its parent.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1
_FORBIDDEN_EVENTS = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.remove", "os.rename",
    "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate", "os.listdir", "os.scandir",
    "os.putenv", "shutil.", "tempfile.", "glob.", "pty.", "ctypes.", "urllib.", "ftplib.", "smtplib.", "mmap.",
)  # fmt: skip
_CODE_WRITERS = frozenset(("dataclasses", "collections", "typing", "sympy.polys.monomials"))
_CODE_SUFFIXES = (".py", ".pyc", ".so")


def refuse_side_effects(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook: modules may still be imported from files, everything else that touches the world is refused."""
    if event == "open":
        path, mode = args[0], args[1] or "r"
        if not (isinstance(path, str) and path.endswith(_CODE_SUFFIXES) and mode in ("r", "rb")):
            raise PermissionError("a verifier worker opens no files")
    elif event == "compile":
        # Importing compiles whole files; text that is evaluated has no file. The modules named write such code
        # themselves, from numbers and field names, never from an answer.
        if args[0] is not None and str(args[1]).startswith("<"):
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller not in _CODE_WRITERS:
                raise PermissionError(f"a verifier worker evaluates no text (asked by {caller})")
    elif event.startswith(_FORBIDDEN_EVENTS):
        raise PermissionError(f"a verifier worker may not use {event}")


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we could ask
        os._exit(1)


def _limit(memory_mb: int) -> None:
    bytes_ = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (bytes_, bytes_))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def _limit_processor_time(seconds: float) -> None:
    """The kernel ends a question that overran even if the pool is gone and the interpreter cannot react."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def _warm_up() -> Callable[[str, str], dict[str, Any]]:
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
    return lambda pred, gold: {"equal": bool(judge(pred, gold, set_equal))}


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


def serve(
    prepare: Callable[[], Callable[[str, str], dict[str, Any]]],
    audit: Callable[[str, tuple[Any, ...]], None] = refuse_side_effects,
) -> None:
    """Answers questions until the pipe ends.

    Args:
      prepare: called once within the limits and before side effects are refused; gives the function that answers.
      audit: hook that refuses side effects.
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
    sys.addaudithook(audit)
    replies.write(b'{"ready": true}\n')
    replies.flush()
    for line in questions:  # ends with the pool's end of the pipe
        pred, gold, seconds = json.loads(line)
        _limit_processor_time(seconds)
        try:
            reply = answer(pred, gold)
        except Exception as error:  # the worker border: any failure of a library is a result, not a crash
            reply = {"error": type(error).__name__}
        reply["memory_mb"] = resident_memory()
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


if __name__ == "__main__":
    serve(_warm_up)
