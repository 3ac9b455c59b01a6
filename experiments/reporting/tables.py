"""The tables of a report as plain text: rows of cells, escaped by whoever puts them on a page."""

import datetime
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deepsearch_jax.config import to_config
from deepsearch_jax.runtime import RunSettings
from experiments.compare.statistics import difference_estimate
from experiments.compare.tables import number
from experiments.reporting.runs import Row, Run, changed_settings, differing_settings, value_of
from experiments.reporting.series import alarms, costs, phases, rounds, time_split

# Two runs whose settings below these names are equal were measured on the same held-out problems.
_HELD_OUT = ("seed", "task.", "model.path", "evaluation.num_problems", "evaluation.num_samples")


_DIFFERENCE = 11  # column of the overview, behind the last pass@1


class Table(NamedTuple):
    """A table: cells of the head, then of each row; `note` is one sentence under it."""

    head: list[str]
    rows: list[list[str]]
    note: str = ""


def duration(seconds: float) -> str:
    """For example 35.2 s, 2 min 10 s, 3 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def overview(runs: Sequence[Run]) -> Table:
    """One row a run: what it is, how far it got, what it cost and reached."""
    head = ["run", "method and task", "steps", "rounds", "generated tokens", "gradient steps", "time", "tokens/s",
            "peak memory", "pass@1 before", "pass@1 last", "best", "alarms", "last row"]  # fmt: skip
    paired = len(runs) > 1
    if paired:
        head.insert(_DIFFERENCE, f"last, minus {runs[0].name}")
    rows = []
    for run in runs:
        spent, evaluations = costs(run.rows)[-1], run.of_kind("eval")
        best = max((value_of(row, "pass_at_1") or 0.0 for row in evaluations), default=None)
        cells = [
            run.name, f"{run.setting('method', '?')}, {run.setting('task.name', '?')}", _steps(run),
            str(len({value_of(row, "round") for row in run.of_kind("train")})), number(spent["generated_tokens"]),
            number(spent["gradient_steps"]), duration(spent["seconds"]), _rate(run), _memory(run),
            _accuracy(evaluations[0]) if evaluations else "–", _accuracy(evaluations[-1]) if evaluations else "–",
            "–" if best is None else f"{best:.3f}",
            str(sum(map(len, alarms(run).values()))), _written(run),
        ]  # fmt: skip
        if paired:
            cells.insert(_DIFFERENCE, "" if run is runs[0] else _difference(run, runs[0]))
        rows.append(cells)
    note = "Intervals: 95 % bootstrap over held-out problems. Time: of the phases of all rows; starts are not in it."
    if paired:
        note += " Differences: last evaluations, in pairs of the same problems."
    return Table(head, rows, note)


def _steps(run: Run) -> str:
    done, planned = run.rows[-1]["step"], run.setting("rounds.steps_per_round", 0)
    rounds_planned = run.setting("rounds.num_rounds", 0)
    is_known = all(type(value) is int and value > 0 for value in (planned, rounds_planned))
    return f"{done} of {planned * rounds_planned}" if is_known else str(done)


def _written(run: Run) -> str:
    return datetime.datetime.fromtimestamp(run.written).astimezone().strftime("%Y-%m-%d %H:%M")


def _rate(run: Run) -> str:
    """Sampled tokens by the time of the training steps."""
    steps = run.of_kind("train")
    seconds = sum(seconds for row in steps for _, seconds in phases(row))
    tokens = sum(value_of(row, "step_tokens") or 0.0 for row in steps)
    return number(tokens / seconds) if seconds else "–"


def _memory(run: Run) -> str:
    peaks = [peak for row in run.rows if (peak := value_of(row, "peak_memory_gib")) is not None]
    return f"{max(peaks):.2f} GiB" if peaks else "–"


def _accuracy(row: Row) -> str:
    value, low, high = (value_of(row, f"pass_at_1{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _difference(run: Run, first: Run) -> str:
    """pass@1 of the last evaluation minus that of the first run, where both answered the same problems."""
    if any(name.startswith(_HELD_OUT) for name in differing_settings([first, run])):
        return "other problems"
    mine, other = _rates(run), _rates(first)
    if mine is None or other is None or mine.shape != other.shape:
        return "–"
    value, low, high = difference_estimate([mine], [other])
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _rates(run: Run) -> np.ndarray | None:
    """[P] share of right samples of each held-out problem in the last evaluation."""
    evaluations, samples = run.of_kind("eval"), run.setting("evaluation.num_samples")
    correct = evaluations[-1].get("num_correct") if evaluations else None
    if not isinstance(correct, list) or not correct or type(samples) is not int or samples < 1:
        return None
    return np.array(correct, float) / samples if all(type(count) is int for count in correct) else None


_ROUND_COLUMNS = {
    "round": ("round", "{:.0f}"),
    "steps": ("steps", "{:.0f}"),
    "candidates": ("filtered", "{:.0f}"),
    "hard": ("hard", "{:.0f}"),
    "success_rate": ("success rate", "{:.3f}"),
    "trees": ("trees", "{:.0f}"),
    "tree_expansions": ("expansions", "{:.1f}"),
    "tree_nodes": ("nodes", "{:.1f}"),
    "tree_depth": ("depth", "{:.2f}"),
    "terminal_depth": ("terminal depth", "{:.2f}"),
    "tree_solved_share": ("trees solved", "{:.3f}"),
    "seconds_per_tree": ("rollout s/tree", "{:.3g}"),
    "entropy": ("entropy", "{:.3f}"),
    "reward": ("reward", "{:+.3f}"),
    "solved_share": ("solved", "{:.3f}"),
    "cached_share": ("cached", "{:.3f}"),
    "response_length": ("length", "{:.1f}"),
    "pass_at_1": ("pass@1", "{:.3f}"),
}


def round_table(runs: Sequence[Run]) -> Table:
    """What search and learning were like in each round (Tables 3 and 6 of the paper)."""
    rows = [
        [run.name, *("–" if (value := figures[key]) is None else form.format(value)
                     for key, (_, form) in _ROUND_COLUMNS.items())]
        for run in runs
        for figures in rounds(run)
    ]  # fmt: skip
    note = (
        "As Tables 3 and 6 of the paper: expansions (iterations), nodes and depth are means over trees; reward and "
        "length over responses; entropy in nats per trained token; cached: share of groups that the solution cache "
        "served; pass@1: the last evaluation after a step of the round."
    )
    return Table(["run", *(label for label, _ in _ROUND_COLUMNS.values())], rows, note)


def time_table(runs: Sequence[Run]) -> Table:
    """Wall time of each phase, with its share."""
    splits = [time_split(run) for run in runs]
    names = sorted({name for split in splits for name in split}, key=lambda n: -max(s.get(n, 0.0) for s in splits))
    rows = []
    for run, split in zip(runs, splits, strict=True):
        total = sum(split.values())
        cells = [f"{duration(split[n])} ({split[n] / (total or 1):.0%})" if n in split else "–" for n in names]
        rows.append([run.name, *cells, duration(total)])
    return Table(["run", *names, "all"], rows)


def alarm_table(runs: Sequence[Run]) -> Table:
    """The limits of `alarms` that were crossed."""
    rows = [
        [run.name, name, str(len(steps)), str(steps[0]), str(steps[-1])]
        for run in runs
        for name, steps in alarms(run).items()
    ]
    return Table(["run", "alarm", "times", "first step", "last step"], rows)


def settings_table(runs: Sequence[Run]) -> Table:
    """Settings in which the runs differ; of one run, those that are not the default."""
    if len(runs) > 1:
        found = differing_settings(runs)
        return Table(["setting", *(run.name for run in runs)], [[name, *values] for name, values in found.items()])
    changed = changed_settings(runs[0], to_config(RunSettings()).to_dict())
    return Table(["setting", "default", runs[0].name], [[name, *values] for name, values in changed.items()])


def versions_table(runs: Sequence[Run]) -> Table:
    """Package versions; those that differ first."""
    names = list(dict.fromkeys(name for run in runs for name in run.versions))
    rows = [[name, *(str(run.versions.get(name, "–")) for run in runs)] for name in names]
    rows.sort(key=lambda row: len(set(row[1:])) == 1)
    return Table(["package", *(run.name for run in runs)], rows)
