"""Search with policies that stay as they are: what a token of search buys, before anything is trained on it."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from deepsearch_jax.runtime import build_task
from deepsearch_jax.runtime.compile_cache import CompileCount, enable_compile_cache
from deepsearch_jax.runtime.responses import Group, SearchStatistics
from deepsearch_jax.runtime.rollouts import Purpose
from deepsearch_jax.runtime.workdir import write_json
from deepsearch_jax.types import Outcome
from experiments.compare import statistics
from experiments.compare.cells import FINISHED, comparable, drop_programs, make_start
from experiments.compare.sampling import frozen_sampler
from experiments.compare.statistics import Estimate
from experiments.compare.suite import Cell, Suite, settings_of
from experiments.compare.verdicts import judge_frozen

NUM_PROBLEMS = 64
_REPEATS = 2  # searches of the same problems with other noise; the second one has its programs compiled


def run_frozen(cell: Cell, workdir: pathlib.Path, say: Callable[[str], None]) -> None:
    """Searches (or samples) the first training problems with the start's policy and writes what came out."""
    config = cell.config(make_start(workdir, cell.setting, cell.seed, say))
    enable_compile_cache(config.compile_cache)
    settings = settings_of(config)
    settings = dataclasses.replace(settings, rollout=dataclasses.replace(settings.rollout, num_slots=NUM_PROBLEMS))
    task = build_task(settings.task, settings.model.path, settings.seed)
    try:
        sampler, params = frozen_sampler(settings, task)
        problems = list(task.train_problems)[:NUM_PROBLEMS]
        rows = []
        for repeat in range(_REPEATS):
            before, count = sampler.generated_tokens, CompileCount()
            begin, cpu = time.monotonic(), time.process_time()
            found = SearchStatistics()
            if settings.method == "deepsearch":
                groups, found = sampler.search(params, problems, (repeat, 0))
            else:
                groups = sampler.direct(params, problems, settings.rounds.group_size, Purpose.DIRECT, (repeat, 0))
            rows.append({
                "seconds": time.monotonic() - begin, "cpu_seconds": time.process_time() - cpu,
                "compilations": count.take(), "tokens": sampler.generated_tokens - before, **_row(groups, found),
            })  # fmt: skip
    finally:
        task.close()
    place = cell.directory(workdir)
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "frozen.json", {"rows": rows})
    write_json(place / FINISHED, {"config": comparable(config)})
    drop_programs()


def _row(groups: list[Group], found: SearchStatistics) -> dict[str, Any]:
    responses = [response for group in groups for response in group.responses]
    costs = [float(-np.mean(r.log_probs)) for r in responses if r.log_probs is not None and len(r.log_probs)]
    return {
        "correct": [group.num_correct for group in groups],
        "distinct": [
            len({tuple(r.tokens.tolist()) for r in group.responses if r.outcome == Outcome.CORRECT}) for group in groups
        ],
        "rewards": [
            float(np.mean([r.reward for r in group.responses])) if group.responses else 0.0 for group in groups
        ],
        "responses": len(responses),
        "reward": float(np.mean([r.reward for r in responses])) if responses else 0.0,
        "depth": float(np.mean([len(r.segment_lengths) for r in responses])) if responses else 0.0,
        "entropy": float(np.mean(costs)) if costs else 0.0,
        "expansions": found.expansions / max(found.trees, 1),
        "nodes": found.nodes / max(found.trees, 1),
    }


def collect_frozen(suite: Suite, workdir: pathlib.Path, cells: list[Cell], *, draws: int) -> dict[str, Any]:
    """Figures of a frozen suite by setting, of methods and of claims, with intervals over seeds and problems."""
    found: dict[str, Any] = {}
    for setting in suite.settings:
        by_method: dict[str, dict[int, list[dict[str, Any]]]] = {}
        for cell in cells:
            path = cell.directory(workdir) / "frozen.json"
            if cell.setting.name == setting and path.exists():
                by_method.setdefault(cell.method.name, {})[cell.seed] = json.loads(path.read_text())["rows"]
        if by_method:
            found[setting] = {
                "methods": {name: _summary(list(seeds.values()), draws) for name, seeds in by_method.items()},
                "claims": judge_frozen(suite.claims, setting, by_method, draws=draws),
            }
    return found


def _summary(seeds: list[list[dict[str, Any]]], draws: int) -> dict[str, Any]:
    correct, distinct, solved = (
        [np.mean([function(row) for row in rows], axis=0) for rows in seeds]
        for function in (
            lambda row: np.array(row["correct"], float),
            lambda row: np.array(row["distinct"], float),
            lambda row: np.array(row["correct"]) > 0,
        )
    )
    # Tokens are told of all problems together, so they are shared evenly among them.
    tokens = [np.mean([row["tokens"] for row in rows]) / len(c) for rows, c in zip(seeds, correct)]

    def per_token(values: list[np.ndarray]) -> Estimate:
        return statistics.mean_estimate([1000 * v / t for v, t in zip(values, tokens)], draws=draws)

    last = [rows[-1] for rows in seeds]
    mean = {name: float(np.mean([row[name] for row in last])) for name in
            ("reward", "depth", "entropy", "expansions", "nodes", "tokens", "responses")}  # fmt: skip
    problems = len(correct[0])
    return {
        "seeds": len(seeds), "correct_per_1000": per_token(correct), "distinct_per_1000": per_token(distinct),
        "solved_per_1000": per_token([s.astype(float) for s in solved]),
        "solved": statistics.mean_estimate([s.astype(float) for s in solved], draws=draws), **mean,
        "cpu_ms_per_problem": float(np.median([1000 * row["cpu_seconds"] / problems for row in last])),
        "cpu_ms_per_expansion": float(np.median([
            1000 * row["cpu_seconds"] / problems / row["expansions"] for row in last if row["expansions"]
        ] or [float("nan")])),
    }  # fmt: skip
