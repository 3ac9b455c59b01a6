"""Batches on disk, with all that their update was made from: `experiments.replay_batch` makes it again.

A directory holds batch.npz (arrays by field, nothing pickled), state/ (parameters, optimizer and counters, by Orbax)
and record.json (settings, architecture, keys, what the update gave). The state is the one before the update; an update
that was skipped left parameters and optimizer as they were.
"""

import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from deepsearch_jax.config import from_config
from deepsearch_jax.policy import ModelConfig
from deepsearch_jax.runtime.guards import FAILED_BATCH, TooManySkipped
from deepsearch_jax.runtime.responses import Group
from deepsearch_jax.runtime.settings import RunSettings
from deepsearch_jax.runtime.workdir import write_json
from deepsearch_jax.training import Batch, TrainState
from deepsearch_jax.types import PackedBatch, TokenBatch, TokenSums

_FORMAT = 1
RECORD = "record.json"


class Origin(NamedTuple):
    """Where a batch comes from.

    Attributes:
      round_index, step: counters that its rollouts drew their keys with; steps done before this one.
      update: number of the update within the step, from 0.
      problems: name, key and number of responses of each group in it, in their order.
      micro_batch_rows: rows of a pass; see `groups.Packed`.
      warm_start_rate: learning rate of a supervised step; 0 for an update on the policy loss.
    """

    round_index: int = 0
    step: int = 0
    update: int = 0
    problems: tuple[tuple[str, int, int], ...] = ()
    micro_batch_rows: int = 0
    warm_start_rate: float = 0.0

    @property
    def is_supervised(self) -> bool:
        """Whether it is a step of the warm start."""
        return self.warm_start_rate > 0


def problems_of(groups: Sequence[Group]) -> tuple[tuple[str, int, int], ...]:
    """What an Origin says of groups."""
    return tuple((group.problem.id, group.problem.key, len(group.responses)) for group in groups)


class KeptBatch(NamedTuple):
    """What `load` reads: the record as it was written, and what it says turned into objects."""

    record: dict[str, Any]
    settings: RunSettings
    model: ModelConfig
    origin: Origin
    batch: Batch


class BatchKeeper:
    """Writes batches of one run."""

    def __init__(
        self, settings: RunSettings, model: ModelConfig, mesh: Mesh | None, workdir: pathlib.Path,
        base: Callable[[], str],
    ):  # fmt: skip
        """
        Args:
          mesh: of the update.
          base: gives the fingerprint of the frozen weights under adapters.
        """
        self._settings, self._model, self._workdir, self._base = settings, model, workdir, base
        self._num_devices = 1 if mesh is None else mesh.size

    def stop_at(self, state: TrainState, batch: Batch, metrics: Mapping[str, Any], origin: Origin) -> NoReturn:
        """Keeps the batch at which the run stops; the state may be the one after its update, which was skipped.

        Raises:
          TooManySkipped: always.
        """
        path = self.save(FAILED_BATCH, state, batch, metrics, origin)
        way_out = (
            "Lower the learning_rate of the warm start's stages and start in a new workdir"
            if origin.is_supervised
            else "Lower optimizer.learning_rate or optimizer.max_grad_norm and start again in the same workdir"
        )
        raise TooManySkipped(
            f"loss or gradient was not finite in {self._settings.guards.max_skipped_updates} updates in a row; the "
            f"last batch is in {path}, and `python -m experiments.replay_batch {path}` says where it happens. {way_out}"
        )

    def save(
        self, name: str, state: TrainState, batch: Batch, metrics: Mapping[str, Any], origin: Origin
    ) -> pathlib.Path:
        """Writes a batch below the workdir, and the state that its update began with; an older one makes room for it.

        All processes of a run call it. The directory is there once it is complete.
        Args:
          metrics: what the update gave.
        """
        directory = self._workdir / name
        record = {
            "format": _FORMAT,
            "origin": origin._asdict(),
            "base": self._base(),
            "run_key": np.asarray(jax.device_get(jax.random.key_data(jax.random.key(self._settings.seed)))).tolist(),
            "num_devices": self._num_devices,
            "metrics": {name: _as_text(value) for name, value in metrics.items()},
            "model": dataclasses.asdict(self._model),
            "settings": dataclasses.asdict(self._settings),
        }
        part = directory.with_name(directory.name + ".part")
        is_first = jax.process_index() == 0
        with jax.transfer_guard("allow"):  # this is no hot step any more
            if is_first:
                shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True, exist_ok=True)
            with ocp.StandardCheckpointer() as checkpointer:  # returns when everything is on disk
                checkpointer.save((part / "state").resolve(), state, force=True)
            arrays = {name: np.asarray(value) for name, value in _named_arrays(batch).items()}
        if is_first:
            np.savez_compressed(part / "batch.npz", **arrays)  # type: ignore[arg-type]  # names of arrays
            write_json(part / RECORD, record)
            shutil.rmtree(directory, ignore_errors=True)
            part.rename(directory)
        return directory


def load(directory: pathlib.Path) -> KeptBatch:
    """Reads all of a kept batch but its state.

    Raises:
      ValueError: there is none, or it is of another version.
    """
    path = directory / RECORD
    if not path.exists():
        raise ValueError(
            f"{directory} holds no kept batch ({RECORD} is not there); give the workdir of a run that stopped at "
            "updates that were not finite, or a directory that guards.save_batch_at made in it"
        )
    record = json.loads(path.read_text("utf-8"))
    if record.get("format") != _FORMAT:
        raise ValueError(f"{path} has format {record.get('format')!r}, this version reads {_FORMAT}")
    with np.load(directory / "batch.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    settings = from_config(RunSettings, record["settings"], "settings")
    model = from_config(ModelConfig, record["model"], "model")
    return KeptBatch(record, settings, model, Origin(**record["origin"]), _as_batch(arrays))


def restore_state(directory: pathlib.Path, like: TrainState) -> TrainState:
    """The state of a kept batch, laid out as `like` is."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((directory / "state").resolve(), abstract)


def _named_arrays(batch: Batch) -> dict[str, Any]:
    """Fields of a batch by name, those of its sums beside them; what is not there is left out."""
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    if isinstance(batch, PackedBatch):
        sums = fields.pop("sums")
        fields |= {f"sums.{f.name}": getattr(sums, f.name) for f in dataclasses.fields(sums)}
    return {name: value for name, value in fields.items() if value is not None}


def _as_batch(arrays: dict[str, np.ndarray]) -> Batch:
    sums = {name.removeprefix("sums."): arrays.pop(name) for name in list(arrays) if name.startswith("sums.")}
    if sums:
        return PackedBatch(**arrays, sums=TokenSums(**sums))  # type: ignore[arg-type]  # host arrays on purpose
    return TokenBatch(**arrays)  # type: ignore[arg-type]


def _as_text(value: Any) -> float | str:
    """A number as JSON has it, exactly; NaN and infinities, for which it has no word, as text that float() reads."""
    number = float(value)
    return number if math.isfinite(number) else str(number)
