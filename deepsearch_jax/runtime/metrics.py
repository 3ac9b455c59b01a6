"""Metric rows on disk: one JSON object a line in metrics.jsonl, the same rows for every other logger."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from deepsearch_jax.runtime.loggers import MACHINE_KEY, LoggerSettings, open_loggers

__all__ = ["MACHINE_KEY", "MetricsWriter", "SilentMetrics", "plain", "read_rows"]


class MetricsWriter:
    """Appends rows; a resumed run first drops the rows written after its checkpoint.

    Attributes:
      num_rows: rows in the file; saved with each checkpoint.
    """

    def __init__(
        self, workdir: pathlib.Path, num_rows: int, loggers: LoggerSettings | None = None, *,
        config: dict[str, Any] | None = None, note: Callable[[str], None] = print,
    ):  # fmt: skip
        """Opens workdir/metrics.jsonl and keeps its first `num_rows` rows.

        Args:
          loggers: who else gets the rows.
          config: of the run, for those who show it.
          note: tells the user what a logger lacks.

        Raises:
          ValueError: there are fewer rows, or one of them is damaged.
        """
        self.path = workdir / "metrics.jsonl"
        self.num_rows = num_rows
        kept = _first_rows(self.path, num_rows)
        if len(kept) < num_rows:
            raise ValueError(
                f"{self.path} has {len(kept)} rows but the checkpoint was written after {num_rows}; "
                "it was changed by hand. Restore the file or start in a new workdir"
            )
        rows = _parsed(self.path, kept)
        _replace_file(self.path, "".join(kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close())
        try:
            self._loggers = open_loggers(loggers or LoggerSettings(), workdir, rows, config or {}, note)
        except OSError:
            self._file.close()
            raise

    def write(self, kind: str, step: int, values: dict[str, Any], machine: dict[str, Any]) -> None:
        """Writes one row; `values` repeat exactly in a repeated run, `machine` holds times and memory."""
        row = {"kind": kind, "step": step, **plain(values), MACHINE_KEY: plain(machine)}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for logger in self._loggers:
            logger.write(self.num_rows, row)
        self.num_rows += 1

    def sync(self) -> None:
        """Forces the rows to disk; called before a checkpoint counts them."""
        self._file.flush()
        os.fsync(self._file.fileno())
        for logger in self._loggers:
            logger.sync()

    def close(self) -> None:
        """Closes the file and all loggers, even where one of them fails. Raises: OSError on a full disk."""
        with contextlib.ExitStack() as stack:
            for end in (self._file.close, *(logger.close for logger in self._loggers)):
                stack.callback(end)
            self.sync()


class SilentMetrics(MetricsWriter):
    """Counts rows that another process writes."""

    def __init__(self, workdir: pathlib.Path, num_rows: int, loggers: LoggerSettings | None = None, **_: Any):
        del workdir, loggers
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
    """All rows of a metrics.jsonl; an unfinished last line (the process was killed in it) is left out.

    Raises:
      ValueError: one of them is damaged.
    """
    return _parsed(path, _first_rows(path, None))


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
    # Bytes that are no text are damage, of which `_parsed` tells the line. What follows the last line end is no row.
    lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")[:-1]
    return [line + "\n" for line in lines][:count]


def _parsed(path: pathlib.Path, lines: list[str]) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is damaged ({error}); restore the file from a copy or start in a new workdir"
            ) from None
    return rows


def _replace_file(path: pathlib.Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
