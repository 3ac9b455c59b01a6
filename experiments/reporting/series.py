"""From metric rows to what is drawn: values over tokens, steps and time, figures of rounds, time of phases."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from deepsearch_jax.runtime.metrics import MACHINE_KEY
from experiments.reporting.charts import AXES, CHARTS, Chart, Line
from experiments.reporting.runs import Row, Run, value_of

Values = list[float | None]
_PHASE = "seconds_"
MAX_POINTS = 2000  # of a curve; longer ones are drawn as means over equal numbers of steps


def costs(rows: Sequence[Row]) -> list[dict[str, float]]:
    """What had been spent at each row: sampled tokens, applied updates, seconds in phases, training steps."""
    spent = dict.fromkeys(AXES, 0.0)
    found, tried = [], 0.0
    for row in rows:
        spent["seconds"] += sum(seconds for _, seconds in phases(row))
        spent["generated_tokens"] = value_of(row, "generated_tokens") or spent["generated_tokens"]
        spent["step"] = float(row["step"])
        if row["kind"] == "train":
            tried += value_of(row, "updates") or 0.0
            spent["gradient_steps"] = tried - (value_of(row, "skipped_updates") or 0.0)
        found.append(dict(spent))
    return found


def phases(row: Row) -> list[tuple[str, float]]:
    """(phase, wall seconds) of the time since the row before."""
    machine = row.get(MACHINE_KEY)
    names = [name for name in machine if name.startswith(_PHASE)] if isinstance(machine, dict) else []
    return [(name.removeprefix(_PHASE), value_of(row, name) or 0.0) for name in names]


def time_split(run: Run) -> dict[str, float]:
    """Wall seconds of each phase over the whole run."""
    found: dict[str, float] = {}
    for row in run.rows:
        for name, seconds in phases(row):
            found[name] = found.get(name, 0.0) + seconds
    return found


def curves(run: Run, kind: str, metrics: Iterable[str]) -> dict[str, Any]:
    """{"x": by axis, "y": by metric} of the rows of one kind; a metric that no row has is left out."""
    chosen = [(spent, row) for spent, row in zip(costs(run.rows), run.rows, strict=True) if row["kind"] == kind]
    x: dict[str, Values] = {axis: [spent[axis] for spent, _ in chosen] for axis in AXES}
    y = {metric: [_drawn(row, metric) for _, row in chosen] for metric in metrics}
    size = -(-len(chosen) // MAX_POINTS) if chosen else 1
    return {
        "x": {axis: thinned(values, size) for axis, values in x.items()},
        "y": {
            metric: thinned(values, size) for metric, values in y.items() if any(value is not None for value in values)
        },
        "mean_over": size,
    }


def _drawn(row: Row, metric: str) -> float | None:
    """The value of a metric; none for the trees of a step that searched none."""
    return None if metric.startswith("tree_") and value_of(row, "trees") == 0 else value_of(row, metric)


def thinned(values: Values, size: int) -> Values:
    """Means of `size` neighbours each, over those that exist."""
    return [mean(values[start : start + size]) for start in range(0, len(values), size)] if size > 1 else values


def drawn_charts(runs: Sequence[Run]) -> list[Chart]:
    """The charts for which a run has values, with the lines for which one has."""
    found = []
    for chart in CHARTS:
        lines = chart.lines or tuple(Line(f"pass_at_{k}", f"k = {k}") for k in _sample_counts(runs))
        lines = tuple(line for line in lines if any(_has(run, chart.kind, line.metric) for run in runs))
        if lines:
            found.append(chart._replace(lines=lines))
    return found


def _has(run: Run, kind: str, metric: str) -> bool:
    return any(_drawn(row, metric) is not None for row in run.of_kind(kind))


def _sample_counts(runs: Sequence[Run]) -> list[int]:
    names = {name for run in runs for row in run.of_kind("eval") for name in row}
    return sorted({int(match[1]) for name in names if (match := re.fullmatch(r"pass_at_([1-9]\d{0,5})", name))} - {1})


def alarms(run: Run) -> dict[str, list[int]]:
    """Steps at which each alarm was raised."""
    found: dict[str, list[int]] = {}
    for row in run.of_kind("train"):
        names = row.get("alarms")
        for name in names if isinstance(names, list) else []:
            found.setdefault(str(name), []).append(row["step"])
    return found


def rounds(run: Run) -> list[dict[str, float | None]]:
    """Figures of each round, as in Tables 3 and 6 of the paper: means over steps, those of trees weighted by trees."""
    found: dict[int, list[Row]] = {}
    trained: int | None = None  # the round of the last training step
    for row in run.rows:
        number = value_of(row, "round")
        if row["kind"] == "train":
            trained = int(number or 0)
            found.setdefault(trained, [])
        if row["kind"] == "eval" and trained is not None:
            found[trained].append(row)  # of the policy that this round has left, also after the next filter
        elif number is not None and row["kind"] != "eval":
            found.setdefault(int(number), []).append(row)
    return [_round_figures(number, rows) for number, rows in sorted(found.items())]


def _round_figures(number: int, rows: list[Row]) -> dict[str, float | None]:
    steps = [row for row in rows if row["kind"] == "train"]
    filters = [row for row in rows if row["kind"] == "filter"]
    evaluations = [row for row in rows if row["kind"] == "eval"]
    trees = [value_of(row, "trees") or 0.0 for row in steps]
    groups = [value_of(row, "drawn_groups") or 0.0 for row in steps]
    responses = [value_of(row, "responses") or 0.0 for row in steps]
    rollout = sum(seconds for row in steps for name, seconds in phases(row) if name == "rollout")

    def average(metric: str, weights: Sequence[float]) -> float | None:
        return mean([value_of(row, metric) for row in steps], weights)

    return {
        "round": float(number),
        "steps": float(len(steps)),
        "candidates": value_of(filters[-1], "candidates") if filters else None,
        "hard": value_of(filters[-1], "hard") if filters else None,
        "success_rate": value_of(filters[-1], "success_rate") if filters else None,
        "trees": sum(trees),
        **{name: average(name, trees) for name in ("tree_expansions", "tree_nodes", "tree_depth", "tree_solved_share")},
        "terminal_depth": average("terminal_depth", trees),
        "seconds_per_tree": rollout / sum(trees) if sum(trees) else None,
        "entropy": average("entropy", [value_of(row, "trained_tokens") or 0.0 for row in steps]),
        "reward": average("reward", responses),
        "solved_share": average("solved_share", groups),
        "cached_share": average("cached_share", groups),
        "response_length": average("response_length", responses),
        "pass_at_1": value_of(evaluations[-1], "pass_at_1") if evaluations else None,
    }


def mean(values: Sequence[float | None], weights: Sequence[float] | None = None) -> float | None:
    """Weighted mean of the values that exist; None if there are none or they weigh nothing."""
    pairs = [(value, weight) for value, weight in zip(values, weights or [1.0] * len(values)) if value is not None]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else None
