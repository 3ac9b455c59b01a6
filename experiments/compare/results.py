"""From the finished runs of a suite to figures: which grid point, what cost, what accuracy, with which intervals."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.compare import statistics, testing
from experiments.compare.cells import is_finished
from experiments.compare.measure import COSTS, RunCurves, read_run
from experiments.compare.statistics import Estimate
from experiments.compare.suite import Cell, Suite, final_cells, grid_cells
from experiments.compare.verdicts import judge_training

Chosen = dict[tuple[str, str], dict[str, Any]]


def tuning_score(runs: list[RunCurves], suite: Suite, budget: float) -> float:
    """How good a grid point is: mean log of the cost to reach each level, over levels and seeds; lower is better.

    A level that was not reached costs twice the budget. Read are validation problems alone. Accuracy at the end breaks
    ties, which are frequent where nothing is reached.

    Args:
      budget: the most that a run of any point has spent; the same for all points, since the few tokens by which runs
        end over their limit would decide between those that reach nothing.
    """
    logs = []
    for run in runs:
        spent = run.costs[suite.select_by]
        for level in suite.levels:
            cost = statistics.cost_to_reach(spent, run.accuracy, level)
            logs.append(math.log(max(2 * budget if math.isinf(cost) else cost, 1.0)))
    return float(np.mean(logs)) - 1e-3 * float(np.mean([run.accuracy[-1] for run in runs]))


def choose_points(suite: Suite, workdir: pathlib.Path) -> tuple[Chosen, list[dict[str, Any]]]:
    """The best grid point of each (setting, method) whose grid has been run, and the table of all points."""
    runs: dict[tuple[str, str, tuple], list[RunCurves]] = {}
    for cell in grid_cells(suite):
        if is_finished(cell, workdir):
            key = (cell.setting.name, cell.method.name, cell.point)
            runs.setdefault(key, []).append(read_run(cell.directory(workdir)))
    chosen: Chosen = {}
    table = []
    for setting in suite.settings:
        for method in suite.methods:
            points = suite.points(method)
            if not suite.is_tuned(method):
                chosen[setting, method.name] = points[0]
                continue
            of_points = [runs.get((setting, method.name, tuple(point.items())), []) for point in points]
            if all(len(found) == len(suite.grid_seeds) for found in of_points):
                budget = max(float(run.costs[suite.select_by][-1]) for found in of_points for run in found)
                scored = [(tuning_score(found, suite, budget), point, found) for point, found in zip(points, of_points)]
                best = min(range(len(scored)), key=lambda i: scored[i][0])
                chosen[setting, method.name] = scored[best][1]
                table += [
                    {"setting": setting, "method": method.name, "point": point, "score": score, "chosen": i == best,
                     "validation": [float(run.accuracy[-1]) for run in found]}
                    for i, (score, point, found) in enumerate(scored)
                ]  # fmt: skip
    return chosen, table


def collect(suite: Suite, workdir: pathlib.Path, *, draws: int = statistics.DRAWS) -> dict[str, Any]:
    """All figures of a suite, as JSON: what is finished counts, the rest is listed as missing."""
    chosen, grid = choose_points(suite, workdir)
    cells = final_cells(suite, chosen)
    by_key: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if is_finished(cell, workdir):
            by_key.setdefault((cell.setting.name, cell.method.name), []).append(cell)
    settings = {
        name: _setting(suite, workdir, name, {m: c for (s, m), c in by_key.items() if s == name}, draws)
        for name in suite.settings
        if any(s == name for s, _ in by_key)
    }
    return {
        "suite": suite.name, "title": suite.title, "ours": suite.ours, "levels": list(suite.levels),
        "seeds": list(suite.seeds), "test_samples": suite.test_samples,
        "grid": grid, "settings": settings,
        "missing": [cell.name for cell in cells if not is_finished(cell, workdir)]
        + [f"{s}/{m.name}: grid" for s in suite.settings for m in suite.methods if (s, m.name) not in chosen],
    }  # fmt: skip


def _setting(
    suite: Suite, workdir: pathlib.Path, name: str, methods: Mapping[str, list[Cell]], draws: int
) -> dict[str, Any]:
    runs = {
        method: {cell.seed: read_run(cell.directory(workdir)) for cell in cells} for method, cells in methods.items()
    }
    first = {method: cells[0] for method, cells in methods.items()}
    tests = {method: _read_tests(cell, workdir, before=False) for method, cell in first.items()}
    tests = {testing.START: _read_tests(next(iter(first.values())), workdir, before=True), **tests}
    found: dict[str, Any] = {"methods": {}, "summary": next(iter(methods.values()))[0].setting.summary}
    for method, cells in methods.items():
        curves = [runs[method][cell.seed] for cell in cells]
        found["methods"][method] = {
            "point": dict(cells[0].point),
            "seeds": [cell.seed for cell in cells],
            "is_baseline": suite.method(method).is_baseline,
            "costs": {
                cost: [statistics.cost_estimate([c.curve(cost) for c in curves], level, draws=draws)
                       for level in suite.levels]
                for cost in COSTS
            },
            "reached": [sum(not math.isinf(statistics.cost_to_reach(c.costs["steps"], c.accuracy, level))
                            for c in curves) for level in suite.levels],
            "spent": {cost: float(np.median([c.costs[cost][-1] for c in curves])) for cost in COSTS},
            "curves": [
                {"accuracy": c.accuracy.tolist(), **{k: v.tolist() for k, v in c.costs.items()}} for c in curves
            ],
            "trainer": _trainer_means(curves),
        }  # fmt: skip
    found["test"] = _tests(tests, draws)
    found["ratios"] = _ratios(suite, runs, tests, draws)
    found["claims"] = judge_training(suite.claims, name, runs, tests, draws=draws)
    return found


def _read_tests(cell: Cell, workdir: pathlib.Path, *, before: bool) -> dict[int, dict[str, Any]]:
    """By seed: what was sampled of the test problems for a cell and for its like with other seeds."""
    cells = [dataclasses.replace(cell, seed=seed) for seed in cell.suite.seeds]
    found = {other.seed: testing.read_test(other, workdir, before=before) for other in cells}
    return {seed: test for seed, test in found.items() if test}


def _trainer_means(curves: list[RunCurves]) -> dict[str, Any]:
    """Means over training steps (and seeds) of what explains a method: solved problems, cache, groups, trees."""
    names = ("solved_share", "cached_share", "trained_groups", "drawn_groups", "tree_nodes", "entropy")
    rows = [row for curve in curves for row in curve.rows if row["kind"] == "train"]
    means: dict[str, Any] = {}
    for name in names:
        values = [row[name] for row in rows if row.get(name) is not None]
        means[name] = float(np.mean(values)) if values else None
    rounds = sorted({row["round"] for row in rows})
    means["cached_by_round"] = [
        float(np.mean([row["cached_share"] for row in rows if row["round"] == number])) for number in rounds
    ]
    return means


def _tests(tests: Mapping[str, Mapping[int, dict[str, Any]]], draws: int) -> dict[str, Any]:
    """Test accuracy of the start and of each method: by temperature, by difficulty, pass@k on the hard problems."""
    starts = tests[testing.START]
    found: dict[str, Any] = {}
    for method, by_seed in tests.items():
        seeds = sorted(set(by_seed) & set(starts))
        if not seeds:
            continue
        some = by_seed[seeds[0]]
        hard = {seed: testing.hard_problems(starts[seed]) for seed in seeds}
        ks = [k for k in (1, 4, 8, 16, 32, 64) if k <= some["counts"]["1"]["samples"]]
        sources = sorted(set(some["sources"]))
        by_source = {
            source: [testing.rates(by_seed[s])[np.array(by_seed[s]["sources"]) == source] for s in seeds]
            for source in sources
        }
        hard_rates = {k: [testing.pass_at(by_seed[s], k, hard[s]) for s in seeds] for k in ks}
        found[method] = {
            "accuracy": {
                name: statistics.mean_estimate([testing.rates(by_seed[seed], name) for seed in seeds], draws=draws)
                for name in some["counts"]
                if name != "selection"
            },
            "hard_share": float(np.mean([hard[seed].mean() for seed in seeds])),
            "hard": {k: statistics.mean_estimate(v, draws=draws) for k, v in hard_rates.items() if all(map(len, v))},
            "by_source": {
                source: statistics.mean_estimate(values, draws=draws)
                for source, values in by_source.items()
                if all(len(value) for value in values)
            },
        }
    return found


def collect_starts(suite: Suite, workdir: pathlib.Path, *, draws: int) -> dict[str, Any]:
    """Accuracy of each setting's policy before RL."""
    found = {}
    for name in suite.settings:
        cell = Cell(suite, suite.setting(name), suite.methods[0], (), suite.seeds[0])
        tests = _read_tests(cell, workdir, before=True)
        if tests:
            measured = _tests({testing.START: tests}, draws)[testing.START]
            found[name] = {"summary": suite.setting(name).summary, "seeds": len(tests), **measured}
    return found


def best_baseline(suite: Suite, runs: Mapping[str, Mapping[int, RunCurves]], cost: str, level: float) -> str | None:
    """The baseline that reaches a level at the lowest median cost; where none does, the most accurate at the end."""
    baselines = [name for name in runs if suite.method(name).is_baseline]
    if not baselines:
        return None

    def key(name: str) -> tuple[float, float]:
        curves = list(runs[name].values())
        costs = [statistics.cost_to_reach(c.costs[cost], c.accuracy, level) for c in curves]
        return statistics.median(costs), -float(np.median([c.accuracy.max() for c in curves]))

    return min(baselines, key=key)


def _ratios(
    suite: Suite, runs: Mapping[str, Mapping[int, RunCurves]], tests: Mapping[str, Mapping[int, dict[str, Any]]],
    draws: int,
) -> dict[str, Any]:  # fmt: skip
    """Cost of the best baseline over ours, level by level, and the difference in test accuracy; seeds in pairs."""
    if suite.ours not in runs:
        return {}
    found: dict[str, Any] = {}
    ours = runs[suite.ours]
    for cost in COSTS:
        found[cost] = []
        for level in suite.levels:
            other = best_baseline(suite, runs, cost, level)
            seeds = sorted(set(ours) & set(runs[other])) if other else []
            if other is None or not seeds:
                continue
            own, theirs = ([some[seed].curve(cost) for seed in seeds] for some in (ours, runs[other]))
            ratio = statistics.ratio_estimate(own, theirs, level, draws=draws)
            found[cost].append({"level": level, "baseline": other, "ratio": ratio})
    differences = {}
    for method in runs:
        seeds = sorted(set(tests[suite.ours]) & set(tests[method]))
        if method != suite.ours and seeds:
            pair_rates = [[testing.rates(tests[m][seed]) for seed in seeds] for m in (suite.ours, method)]
            differences[method] = statistics.difference_estimate(*pair_rates, draws=draws)
    found["test_difference"] = differences
    return found


def plain(value: Any) -> Any:
    """As JSON: estimates as [value, low, high], numbers that JSON has no word for as text."""
    if isinstance(value, Estimate):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else str(float(value))
    return value
