"""Large memory pages for a command, where Linux gives them on request.

XLA's CPU client takes every large buffer fresh from the system and gives it back; in pages of 4 KiB the system then
spends up to a third of a small run's CPU time on them. glibc asks for large pages if it was told to when the process
began, so the command begins again: the same process, the same arguments, one more variable in its environment.
"""

import contextlib
import os
import pathlib
import sys
import threading

_VARIABLE, _SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def are_of_use() -> bool:
    """Whether glibc (2.35 or later) can ask the system for large pages and nobody set its tunables already."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        major, minor = map(int, version.split(".")[:2])
        pages = _PAGES.read_text()
    except (AttributeError, ValueError, OSError):
        return False  # another libc, another system, or pages that cannot be looked at
    return name == "glibc" and (major, minor) >= (2, 35) and "[madvise]" in pages and _VARIABLE not in os.environ


def begin_again_with_large_pages() -> None:
    """Begins the command of this process again with large pages; returns where that is of no use or not allowed.

    Call it before anything is started or printed. `GLIBC_TUNABLES`, set to anything, keeps the process as it is. One
    that is more than this command stays too: a notebook or a debugger (threads), a caller that has loaded JAX.
    """
    is_more = threading.active_count() > 1 or "jax" in sys.modules
    if is_more or not are_of_use() or not sys.executable or not sys.orig_argv:
        return
    with contextlib.suppress(OSError):  # then it is slower, but nothing else
        os.execve(sys.executable, sys.orig_argv, {**os.environ, _VARIABLE: _SETTING})
