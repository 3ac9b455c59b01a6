"""Saving and restoring a run with Orbax: one pytree of arrays and one JSON record of counters per step.

A step directory appears under its final name only when everything in it is on disk, with a manifest of its files, so a
killed process leaves the checkpoint before it untouched. On start the newest one whose files are what was written is
taken; damaged ones are put aside.
"""

import dataclasses
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from deepsearch_jax.runtime.lost_processes import tells_of_lost_process
from deepsearch_jax.runtime.manifest import Damaged, check_files, read_facts, write_manifest

T = TypeVar("T")

_FORMAT = 3
_NONE_YET, _NONE_GOOD = -1, -2  # in the place of a number
_DAMAGED = "damaged"  # directory of the checkpoints that were put aside


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """When a run is saved, and what stays on disk.

    Attributes:
      every_steps: training steps between two saves (50 supervised steps of a warm start count as one); the last step,
        a SIGTERM and the end of a phase save too.
      every_minutes: minutes after which the next finished step is saved whatever its number; 0 = off.
      keep: how many of the newest checkpoints stay on disk.
      keep_best: how many more stay, those with the highest held-out pass@1; each evaluation is then followed by a save.
        0 = none.
    """

    every_steps: int = 5
    every_minutes: float = 0.0
    keep: int = 2
    keep_best: int = 0

    def __post_init__(self):
        if self.every_steps < 1 or self.keep < 1:
            raise ValueError(f"every_steps={self.every_steps} and keep={self.keep} must be at least 1")
        if not self.every_minutes >= 0 or self.keep_best < 0:
            raise ValueError(f"every_minutes={self.every_minutes} and keep_best={self.keep_best} must be at least 0")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written and the last good one is still there, or none of those there can be read."""


class Checkpoints:
    """The checkpoints of one workdir, saved in the background."""

    def __init__(
        self, workdir: pathlib.Path, settings: CheckpointSettings, tell: Callable[[str], None] = lambda line: None
    ):
        """Looks for the newest checkpoint whose files are what was written.

        Args:
          tell: is given a line for every checkpoint that cannot be used.

        Raises:
          CheckpointError: there are checkpoints, and all of them are damaged.
        """
        self._directory = (workdir / "checkpoints").resolve()
        self._settings, self._saved_at = settings, time.monotonic()
        self._held_out: dict[int, float] = {}
        self._saving: tuple[int, dict[str, Any]] = (0, {})
        self._settle(tell)
        self._manager = _Manager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Retention(settings, self._held_out),
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
                # Called by the first process when all is written, before the directory gets its final name.
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    @property
    def latest(self) -> int | None:
        """Number of the newest complete checkpoint."""
        return self._manager.latest_step()

    def is_due(self, step: int) -> bool:
        """Whether the state after this training step is to be saved; all processes of a run ask together."""
        return step % self._settings.every_steps == 0 or self.is_late()

    def is_late(self) -> bool:
        """Whether the last save is checkpoint.every_minutes ago, by the clock of the first process."""
        if not self._settings.every_minutes:
            return False
        return bool(_of_the_first(time.monotonic() - self._saved_at >= 60 * self._settings.every_minutes))

    def save(
        self, number: int, arrays: Any, record: dict[str, Any], *, held_out: float | None = None, wait: bool = False
    ) -> None:
        """Saves under `number`, which must grow; returns once the arrays are copied, or with `wait` once on disk.

        Args:
          held_out: pass@1 of these parameters on held-out problems, if they were evaluated.

        Raises:
          CheckpointError: this save or the one before it could not be written (a full disk, for example).
          JaxRuntimeError: another process of the run has ended.
        """
        try:
            self._manager.wait_until_finished()  # its manifest is that of the number before
            self._saving = number, {} if held_out is None else {"held_out": held_out}
            if held_out is not None:
                self._held_out[number] = held_out
            with jax.transfer_guard("allow"):  # a save amid a warm start is no part of its hot steps
                self._manager.save(
                    number,
                    args=ocp.args.Composite(
                        arrays=ocp.args.StandardSave(arrays),
                        record=ocp.args.JsonSave({"format": _FORMAT, **record}),
                    ),
                    force=True,
                )
            self._saved_at = time.monotonic()
            if wait:
                self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            if tells_of_lost_process(error):
                raise  # no disk is to blame for that
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
        """The arrays of the newest checkpoint, with the structure, dtypes and shardings of `like`.

        Args:
          like: arrays, or their shapes, dtypes and shardings alone: every device then reads its part into place.
        """
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(shapes_of(like)))
        return self._manager.restore(self.latest, args=args).arrays

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
          CheckpointError: a background save failed.
        """
        self._do(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for what is being saved. Raises: CheckpointError as `wait`."""
        try:
            self.wait()
        finally:
            self._do(self._manager.close)  # may tell of a failed save once more

    def _do(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except (OSError, ValueError, RuntimeError) as error:
            if tells_of_lost_process(error):
                raise  # no disk is to blame for that
            raise CheckpointError(self._complaint(None, error)) from error

    def _settle(self, tell: Callable[[str], None]) -> None:
        """Leaves under their numbers only checkpoints that can be used; the first process looks, all take its word."""
        outcome, complaint = _NONE_YET, ""
        if jax.process_index() == 0:
            try:
                outcome = self._choose(tell)
            except CheckpointError as error:
                outcome, complaint = _NONE_GOOD, str(error)
        outcome = int(_of_the_first(outcome))
        if outcome == _NONE_GOOD:
            raise CheckpointError(complaint or "none of the checkpoints can be used; the first process says why")
        for number in self._numbers():
            if (held_out := read_facts(self._directory / str(number)).get("held_out")) is not None:
                self._held_out[number] = held_out

    def _choose(self, tell: Callable[[str], None]) -> int:
        """Number of the newest checkpoint with nothing but the bytes that were written; newer ones are put aside."""
        damages: dict[int, Damaged] = {}
        numbers = sorted(self._numbers(), reverse=True)
        for number in numbers:
            try:
                check_files(self._directory / str(number), contents=True)
                break
            except Damaged as error:
                damages[number] = error
        else:
            if not numbers:
                return _NONE_YET
            found = "; ".join(f"checkpoint {number}: {damage}" for number, damage in damages.items())
            raise CheckpointError(
                f"none of the checkpoints in {self._directory} can be used ({found}). Put a copy of one of them in its "
                "place and start the same command again, or start in a new workdir"
            )
        for damaged, damage in damages.items():
            aside = self._put_aside(damaged)
            tell(f"checkpoint {damaged} is damaged: {damage}. It was moved to {aside}; going on from {number}")
        for place, older in enumerate(numbers[len(damages) + 1 :], len(damages) + 1):
            self._look_after(older, tell, may_be_in_removal=place >= self._settings.keep)
        return number

    def _look_after(self, older: int, tell: Callable[[str], None], *, may_be_in_removal: bool) -> None:
        """Finishes the removal of an older checkpoint that a killed process began; puts aside a damaged one."""
        directory = self._directory / str(older)
        try:
            check_files(directory, contents=False)
        except Damaged as damage:
            if damage.is_missing and may_be_in_removal:
                shutil.rmtree(directory)
                tell(f"what was left of the old checkpoint {older} was removed ({damage})")
            else:
                tell(f"the old checkpoint {older} is damaged: {damage}. It was moved to {self._put_aside(older)}")

    def _put_aside(self, number: int) -> pathlib.Path:
        """Moves a checkpoint where nobody restores it; it may still be of use to a person."""
        (self._directory / _DAMAGED).mkdir(exist_ok=True)
        names = (f"{number}", *(f"{number}.{again}" for again in range(1, 1000)))
        place = next(place for name in names if not (place := self._directory / _DAMAGED / name).exists())
        return (self._directory / str(number)).rename(place)

    def _numbers(self) -> list[int]:
        """Of the directories that have the name of a complete checkpoint."""
        if not self._directory.exists():
            return []
        return [int(path.name) for path in self._directory.iterdir() if path.name.isdigit() and path.is_dir()]

    def _seal(self) -> None:
        """Writes the manifest of the checkpoint that is being saved."""
        number, facts = self._saving
        (directory,) = self._directory.glob(f"{number}.orbax-checkpoint-tmp*")
        write_manifest(directory, facts)

    def _complaint(self, number: int | None, error: Exception) -> str:
        which = "a checkpoint" if number is None else f"checkpoint {number}"
        self._manager.reload()  # its list already lacks the old one that the new one was to replace
        return (
            f"{which} could not be written ({error}); the last good one is {self.latest}. "
            "Free some space and start the same command again to go on from there"
        )


class _Manager(ocp.CheckpointManager):
    """Orbax's, without its own look at preemption notices: it would count saves where the run counts its looks."""

    def reached_preemption(self, step: int) -> bool:
        """False; the run saves when it was asked to stop (processes.SharedStop)."""
        del step
        return False


@dataclasses.dataclass
class _Retention:
    """Which checkpoints stay: the newest, and the best on held-out problems; of equals the newer."""

    settings: CheckpointSettings
    held_out: dict[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For each checkpoint, in growing order; what Orbax asks of a preservation policy."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        rated = sorted((self.held_out[step], step) for step in steps if step in self.held_out)
        best = {step for _, step in rated[max(len(rated) - self.settings.keep_best, 0) :]}
        return [step in best or step in steps[-self.settings.keep :] for step in steps]


def shapes_of(arrays: Any) -> Any:
    """Shapes, dtypes and shardings of arrays, which may then be freed."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)


def _of_the_first(value: float) -> Any:
    """What the first process says, in all of them."""
    return value if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(np.asarray(value))
