"""Metric rows on disk: one JSON object a line in metrics.jsonl, scalars in TensorBoard, the same rows for both."""

import json
import math
import os
import pathlib
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

# Everything that depends on the machine's clock or memory lives under this key of a row: two runs of the same
# command on the same devices are equal bit for bit in everything else.
MACHINE_KEY = "machine"


class MetricsWriter:
    """Appends rows; a resumed run first drops the rows written after its checkpoint.

    Attributes:
      num_rows: rows in the file; saved with each checkpoint.
    """

    def __init__(self, workdir: pathlib.Path, num_rows: int):
        """Opens workdir/metrics.jsonl and keeps its first `num_rows` rows."""
        self.path = workdir / "metrics.jsonl"
        self.num_rows = num_rows
        kept = _first_rows(self.path, num_rows)
        if len(kept) < num_rows:
            raise ValueError(
                f"{self.path} has {len(kept)} rows but the checkpoint was written after {num_rows}; "
                "it was changed by hand. Restore the file or start in a new workdir"
            )
        _replace_file(self.path, "".join(kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close())
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=_last_step(kept) + 1)

    def write(self, kind: str, step: int, values: dict[str, Any], machine: dict[str, Any]) -> None:
        """Writes one row; `values` repeat exactly in a repeated run, `machine` holds times and memory."""
        row = {"kind": kind, "step": step, **plain(values), MACHINE_KEY: plain(machine)}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self.num_rows += 1
        for name, value in {**row, **row[MACHINE_KEY]}.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def sync(self) -> None:
        """Forces the rows to disk; called before a checkpoint counts them."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        self.sync()
        self._file.close()
        self._board.close()


class SilentMetrics(MetricsWriter):
    """Counts rows that another process writes."""

    def __init__(self, workdir: pathlib.Path, num_rows: int):
        del workdir
        self.num_rows = num_rows

    def write(self, kind: str, step: int, values: dict[str, Any], machine: dict[str, Any]) -> None:
        """Writes nothing."""
        del kind, step, values, machine
        self.num_rows += 1

    def sync(self) -> None:
        """Nothing to sync."""

    def close(self) -> None:
        """Nothing to close."""


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """All rows of a metrics.jsonl; an unfinished last line (the process was killed in it) is left out."""
    return [json.loads(line) for line in _first_rows(path, None)]


def plain(value: Any) -> Any:
    """Numpy and jax scalars as Python numbers; NaN and infinities as None, since JSON has no word for them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    array = np.asarray(value)
    if array.ndim:
        return [plain(item) for item in array.tolist()]
    number = array.item()
    return None if isinstance(number, float) and not math.isfinite(number) else number


def _first_rows(path: pathlib.Path, count: int | None) -> list[str]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")][:count]


def _last_step(rows: list[str]) -> int:
    return json.loads(rows[-1])["step"] if rows else -1


def _replace_file(path: pathlib.Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
