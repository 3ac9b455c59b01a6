"""Compiled programs on disk: a run that starts again, or a second one, need not compile what an earlier one did."""

import os
import pathlib
from typing import Any

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"  # also where the program came from the cache on disk
_num_compiled = 0


def _listen(event: str, duration_secs: float, **more: Any) -> None:
    global _num_compiled
    del duration_secs, more
    _num_compiled += event == _COMPILED


jax.monitoring.register_event_duration_secs_listener(_listen)


class CompileCount:
    """Counts the programs that this process compiled, so that a step that waited for one can be told apart."""

    def __init__(self) -> None:
        self._before = _num_compiled

    def take(self) -> int:
        """Programs compiled or loaded since the last call, or since the start."""
        count, self._before = _num_compiled - self._before, _num_compiled
        return count


def enable_compile_cache(setting: str) -> pathlib.Path | None:
    """Switches the persistent compilation cache on, unless JAX was told about one already.

    Args:
      setting: "auto" for a folder of this project below the user's cache directory, "off", or a directory.

    Returns:
      The directory in use; None without a cache.
    """
    if setting == "off":
        return None
    configured = jax.config.values["jax_compilation_cache_dir"]
    if setting == "auto" and configured:
        return pathlib.Path(configured)  # from JAX_COMPILATION_CACHE_DIR, for example
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    directory = base / "deepsearch_jax" / "xla" if setting == "auto" else pathlib.Path(setting).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if setting == "auto":
            return None  # a home that cannot be written costs compile time, no more
        raise ValueError(
            f"compile_cache={setting!r} cannot be made ({error}); name another directory, or 'off'"
        ) from error
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    return directory
