"""Reads what runs wrote: rows that may still grow, settings, versions, and names a reader can tell apart."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from deepsearch_jax.runtime import printable
from deepsearch_jax.runtime.metrics import MACHINE_KEY
from experiments.files import runs_below

Row = dict[str, Any]
NOT_SET = "(not set)"
_MAX_HINTS = 5
_MOST = 1e100  # no measurement; sums of larger numbers, and axes that hold them, overflow


@dataclasses.dataclass(frozen=True)
class Run:
    """One run as it was when it was read.

    Attributes:
      name: short, printable, different from those of the other runs of the report.
      path: its workdir.
      rows: of metrics.jsonl, in order.
      config: of config.json, {} if there is none.
      versions: of versions.json, {} if there is none.
      notes: what a reader should know about the files.
      written: when metrics.jsonl was changed last, seconds since 1970.
    """

    name: str
    path: pathlib.Path
    rows: list[Row]
    config: dict[str, Any]
    versions: dict[str, Any]
    notes: list[str]
    written: float

    def of_kind(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row["kind"] == kind]

    def setting(self, path: str, default: Any = None) -> Any:
        """A value of the config by its dotted name."""
        value: Any = self.config
        for key in path.split("."):
            if not isinstance(value, Mapping) or key not in value:
                return default
            value = value[key]
        return value


def load_runs(paths: Sequence[pathlib.Path]) -> list[Run]:
    """Reads the runs in these workdirs; a run may go on while it is read.

    Raises:
      ValueError: a folder is missing or holds no metrics, no path or one path twice.
    """
    if not paths:
        raise ValueError("no run is given; name the --workdir of one or several runs")
    resolved = [path.expanduser().resolve() for path in paths]
    twice = {str(path) for path in resolved if resolved.count(path) > 1}
    if twice:
        raise ValueError(f"{', '.join(sorted(twice))} is given twice; name every run once")
    return [_load(path, name) for path, name in zip(resolved, short_names(resolved), strict=True)]


def short_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """The last parts of each path that tell it apart from the others, printable."""
    names = []
    for path in paths:
        others = [other for other in paths if other != path]
        length = 1
        while length < len(path.parts) and any(other.parts[-length:] == path.parts[-length:] for other in others):
            length += 1
        names.append(printable("/".join(path.parts[-length:])))
    for index, name in enumerate(names):  # what differs in characters that cannot be shown
        if names.count(name) > 1:
            names[index] = f"{name} ({index + 1})"
    return names


def value_of(row: Row, name: str) -> float | None:
    """A number of a row or of its machine part that can be added up and drawn; None for anything else."""
    machine = row.get(MACHINE_KEY)
    value = row.get(name, machine.get(name) if isinstance(machine, dict) else None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if abs(value) < _MOST else None
    except OverflowError:
        return None


def differing_settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    """By dotted name, the settings in which the runs differ, as text; a run without the setting says so."""
    flat = [_flat(run.config) for run in runs]
    found = {name: [one.get(name, NOT_SET) for one in flat] for name in sorted(set().union(*flat))}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def changed_settings(run: Run, defaults: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """By dotted name, the settings of a run that are not as in `defaults`: (default, run)."""
    usual, mine = _flat(json.loads(json.dumps(defaults))), _flat(run.config)
    return {
        name: (usual.get(name, NOT_SET), mine.get(name, NOT_SET))
        for name in sorted({*usual, *mine})
        if usual.get(name) != mine.get(name)
    }


def _flat(config: Mapping[str, Any], path: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{path}{key}.")
        else:
            found[f"{path}{key}"] = json.dumps(value, ensure_ascii=False)
    return found


def _load(path: pathlib.Path, name: str) -> Run:
    metrics = path / "metrics.jsonl"
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; name the --workdir of a run")
    if not metrics.is_file():
        raise ValueError(f"{path} holds no metrics.jsonl{runs_below(path)}; name the --workdir of a run")
    text, written = metrics.read_bytes(), metrics.stat().st_mtime
    rows, notes = _parse(text)
    if not rows:
        raise ValueError(f"{metrics} has no complete row yet; the first one comes with the first filter or evaluation")
    config, versions = (_json(path / file, notes) for file in ("config.json", "versions.json"))
    return Run(name, path, rows, config, versions, notes, written)


def _parse(text: bytes) -> tuple[list[Row], list[str]]:
    """Rows of complete lines. What follows the last line end is a row that is being written."""
    *lines, rest = text.split(b"\n")
    rows, damaged, notes = [], [], []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("kind"), str) and type(row.get("step")) is int:
            rows.append(row)
        else:
            damaged.append(number)
    if rest:
        notes.append("the last line was still being written (or the run was killed in it) and is left out")
    if damaged:
        some = ", ".join(map(str, damaged[:_MAX_HINTS])) + (" ..." if len(damaged) > _MAX_HINTS else "")
        notes.append(f"{len(damaged)} lines of metrics.jsonl are damaged and left out: {some}")
    return rows, notes


def _json(path: pathlib.Path, notes: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        notes.append(f"{path.name} is missing or damaged")
        return {}
    return value
