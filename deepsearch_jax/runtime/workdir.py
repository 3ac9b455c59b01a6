"""The working directory of a run: one process at a time, one config, its versions written down."""

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Iterator
from typing import IO, Any

from deepsearch_jax.config import differing_keys

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "numpy", "sympy", "math-verify", "grain")

# Settings that may change between a stop and the next start: they say how long and how to report, not what is computed.
# Other devices, slots and pages, pieces of a batch, its padding and recomputation change only rounding; alarms and
# records only watch. A lower rate or clip is the way out of updates that are not finite.
FREE_KEYS = (
    "rounds.num_rounds",
    "alarms.",
    "loggers.",
    "debug.",
    "guards.",
    "watchdog.",
    "record.",
    "checkpoint.",
    "task.math.verify.num_workers",
    "task.reasoning_gym.num_workers",
    "optimizer.learning_rate",
    "optimizer.max_grad_norm",
    "optimizer.micro_batch_",
    "model.remat",
    "rollout.num_slots",
    "rollout.half_batches",
    "rollout.rows_at_once",
    "rollout.page_pool_gib",
    "pack.min_rows",
    "log_prob_chunk",
    "compile_cache",
    "num_devices",
    "mesh.",
)


class Workdir:
    """A locked directory; `close` gives the lock back (so does the end of the process)."""

    def __init__(self, path: str | os.PathLike[str], *, is_owner: bool = True):
        """Creates the directory if needed and locks it.

        Args:
          is_owner: False in all processes of a run but the first, which neither lock nor write.

        Raises:
          ValueError: the directory cannot be created or written, or another process runs in it.
        """
        self.path = pathlib.Path(path)
        self._lock: IO[str] | None = None
        if not is_owner:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 (held for the whole run)
        except OSError as error:
            raise ValueError(f"workdir {self.path} cannot be used ({error.strerror}); give a writable one") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ValueError(f"workdir {self.path} is in use by another run; stop that one or choose another") from None
        except OSError as error:  # some network file systems have no locks
            self._lock.close()
            raise ValueError(
                f"workdir {self.path} cannot be locked ({error.strerror}), so that two runs could write into it; "
                "choose one on a file system with locks"
            ) from error

    def check_config(self, config: dict[str, Any], free_keys: tuple[str, ...] = FREE_KEYS) -> None:
        """Checks that the config is that of the run being resumed, if there is one.

        Args:
          free_keys: beginnings of the dotted names that may differ.

        Raises:
          ValueError: the workdir belongs to another config; the message lists the keys that differ.
        """
        wanted = json.loads(json.dumps(config))
        path = self.path / "config.json"
        if path.exists():
            try:
                saved = json.loads(path.read_text())
            except ValueError as error:
                raise ValueError(
                    f"{path} is damaged ({error}); restore it from a copy (every checkpoint holds the config in "
                    "checkpoints/NUMBER/record) or start in a new workdir"
                ) from None
            refuse_other_config(saved, wanted, f"workdir {self.path}", free_keys)

    def record_config(self, config: dict[str, Any]) -> None:
        """Saves the resolved config and the package versions; called once the run is known to start."""
        if self._lock is None:
            return
        write_json(self.path / "config.json", json.loads(json.dumps(config)))
        versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
        write_json(self.path / "versions.json", {"python": platform.python_version(), **versions})

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()


def refuse_other_config(
    saved: dict[str, Any], wanted: dict[str, Any], where: str, free_keys: tuple[str, ...] = FREE_KEYS
) -> None:
    """Compares two configs, both as JSON has them.

    Args:
      where: what holds the saved one, for the message.
      free_keys: beginnings of the dotted names that may differ.

    Raises:
      ValueError: they differ; the message lists the keys.
    """
    differing = [key for key in differing_keys(saved, wanted) if not key.split(":")[0].startswith(free_keys)]
    if differing:
        raise ValueError(
            f"{where} holds a run of another config; choose another workdir or undo these changes: "
            + "; ".join(differing)
        )


class WorkdirError(RuntimeError):
    """The workdir cannot be written any more; what is in it is intact up to the last checkpoint."""


# What a file system says that takes nothing more.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def explain_unwritable(path: pathlib.Path) -> Iterator[None]:
    """Says what to do where a file system takes nothing more.

    Raises:
      WorkdirError: instead of the OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise WorkdirError(
            f"the workdir {path} cannot be written any more ({error}); free some space or make it writable "
            "and start the same command again: it goes on from the last checkpoint"
        ) from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of it; so do two writers at a time."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())  # or a loss of power may leave an empty file under the new name
    os.replace(temporary, path)
