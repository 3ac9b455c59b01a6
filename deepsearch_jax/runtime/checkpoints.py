"""Saving and restoring a run with Orbax: one pytree of arrays and one JSON record of counters per step.

A step directory appears under its final name only when everything in it is on disk, so a killed process leaves the
checkpoint before it untouched.
"""

import dataclasses
import pathlib
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

T = TypeVar("T")

_FORMAT = 2


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """When a run is saved.

    Attributes:
      every_steps: training steps between two saves (50 supervised steps of a warm start count as one); the last step,
        a SIGTERM and the end of a phase save too.
      keep: how many checkpoints stay on disk.
    """

    every_steps: int = 5
    keep: int = 2

    def __post_init__(self):
        if self.every_steps < 1 or self.keep < 1:
            raise ValueError(f"every_steps={self.every_steps} and keep={self.keep} must be at least 1")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the last good one is still there."""


class Checkpoints:
    """The checkpoints of one workdir, saved in the background."""

    def __init__(self, workdir: pathlib.Path, settings: CheckpointSettings):
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").resolve(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=settings.keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
            ),
        )

    @property
    def latest(self) -> int | None:
        """Number of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, number: int, arrays: Any, record: dict[str, Any], *, wait: bool = False) -> None:
        """Saves under `number`, which must grow; returns once the arrays are copied, or with `wait` once on disk.

        Raises:
          CheckpointError: this save or the one before it could not be written (a full disk, for example).
        """
        try:
            self._manager.save(
                number,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(arrays),
                    record=ocp.args.JsonSave({"format": _FORMAT, **record}),
                ),
                force=True,
            )
            if wait:
                self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(self._complaint(number, error)) from error

    def restore_record(self) -> dict[str, Any]:
        """The counters of the newest checkpoint.

        Raises:
          ValueError: the checkpoint has another format version.
        """
        record = self._manager.restore(self.latest, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
        if record["format"] != _FORMAT:
            raise ValueError(f"checkpoint {self.latest} has format {record['format']}, this version reads {_FORMAT}")
        return record

    def restore_arrays(self, like: T) -> T:
        """The arrays of the newest checkpoint, with the structure, dtypes and shardings of `like`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract))
        return self._manager.restore(self.latest, args=args).arrays

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
          CheckpointError: a background save failed.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(self._complaint(None, error)) from error

    def close(self) -> None:
        self._manager.close()

    def _complaint(self, number: int | None, error: Exception) -> str:
        which = "a checkpoint" if number is None else f"checkpoint {number}"
        return (
            f"{which} could not be written ({error}); the last good one is {self.latest}. "
            "Free some space and start the same command again to go on from there"
        )
