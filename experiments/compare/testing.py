"""Test problems: sampled once, at the end, for the chosen runs of each method and for the policy they started from."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from deepsearch_jax.runtime import build_task
from deepsearch_jax.runtime.accuracy import pass_at_k
from deepsearch_jax.runtime.rollouts import Purpose
from deepsearch_jax.runtime.workdir import write_json
from experiments.compare.cells import drop_programs, make_start, start_of
from experiments.compare.sampling import frozen_sampler
from experiments.compare.suite import Cell, settings_of

START = "start"  # in the place of a method: the policy before RL
TEMPERATURES = (1.0, 0.5, 0.0)  # the last one is greedy, one sample


def test_file(workdir: pathlib.Path, setting: str, method: str, seed: int) -> pathlib.Path:
    return workdir / "test" / setting / method / f"seed-{seed}.json"


def sample_test_set(cell: Cell, workdir: pathlib.Path, say: Callable[[str], None], *, before: bool) -> None:
    """Samples the test problems for a cell's trained policy, or (`before`) for the policy it started from; only once.

    Anew where what is there is of another grid point, or of another number of problems or samples.

    Written is how many of the samples were right, for each problem and temperature. The start gets twice as many at
    temperature 1: its first half chooses the hard problems, its second half measures them, or the choice itself would
    make them look harder than they are.

    Raises:
      ValueError: the setting has no held-out problems behind its validation set.
    """
    if read_test(cell, workdir, before=before):
        return
    path = _path(cell, workdir, before)
    if path.exists():
        say(f"{path} is of another grid point, or of other numbers of problems or samples; it is written anew")
    start = make_start(workdir, cell.setting, cell.seed, say)
    settings = settings_of(cell.config(start if before else cell.directory(workdir) / "policy"))
    task = build_task(settings.task, settings.model.path or str(start), settings.seed)
    try:
        problems = list(task.eval_problems)[settings.evaluation.num_problems :][: cell.setting.num_test or None]
        if not problems or not settings.evaluation.num_problems:
            raise ValueError(
                f"setting {cell.setting.name} has {len(task.eval_problems)} held-out problems and validates on the "
                f"first {settings.evaluation.num_problems or 'all'}; none is left to test on"
            )
        say(f"test of {cell.setting.name}/{path.parent.name}/seed-{cell.seed}: {len(problems)} problems")
        sampler, params = frozen_sampler(settings, task)
        result: dict[str, Any] = {
            "sources": [problem.source for problem in problems], "point": cell.point_name,
            "num_test": cell.setting.num_test, "counts": {},
        }  # fmt: skip
        for number, temperature in enumerate(TEMPERATURES):
            samples = cell.suite.test_samples if temperature else 1
            parts = 2 if before and number == 0 else 1
            for part in range(parts):
                groups = sampler.direct(
                    params, problems, samples, Purpose.EVALUATION, (1 + part, number), temperature=temperature
                )
                counts = [group.num_correct for group in groups]
                name = "selection" if part < parts - 1 else f"{temperature:g}"
                result["counts"][name] = {"samples": samples, "correct": counts}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
    finally:
        task.close()
    drop_programs()


def _path(cell: Cell, workdir: pathlib.Path, before: bool) -> pathlib.Path:
    return test_file(workdir, cell.setting.name, START if before else cell.method.name, cell.seed)


def read_test(cell: Cell, workdir: pathlib.Path, *, before: bool) -> dict[str, Any] | None:
    """What `sample_test_set` wrote for this cell; None if there is nothing, or only what it would write anew."""
    path = _path(cell, workdir, before)
    if not path.exists():
        return None
    saved = json.loads(path.read_text())
    is_of_cell = before or saved["point"] == cell.point_name  # a start has no grid point: its file has any of them
    return saved if is_of_cell and _has_samples(saved, cell, before) and _has_problems(saved, cell) else None


def _has_samples(saved: dict[str, Any], cell: Cell, before: bool) -> bool:
    names = [f"{temperature:g}" for temperature in TEMPERATURES] + ["selection"] * before
    wanted = {name: 1 if name == "0" else cell.suite.test_samples for name in names}
    return {name: counts["samples"] for name, counts in saved["counts"].items()} == wanted


def _has_problems(saved: dict[str, Any], cell: Cell) -> bool:
    """Whether the test set is of the size that the setting asks for."""
    found, wanted, config = len(saved["sources"]), cell.setting.num_test, cell.config(None)
    generated = {"arithmetic": config.task.arithmetic, "countdown": config.task.countdown}.get(config.task.name)
    if generated is not None:
        left = generated.num_heldout_problems - config.evaluation.num_problems
        return found == min(wanted or left, left)
    # Files may hold fewer than are asked for. What was asked for is not in the files of earlier versions.
    return saved.get("num_test", found if wanted else 0) == wanted


def rates(result: dict[str, Any], name: str = "1") -> np.ndarray:
    """[P] share of right samples at a temperature."""
    counts = result["counts"][name]
    return np.asarray(counts["correct"], float) / counts["samples"]


def hard_problems(start: dict[str, Any]) -> np.ndarray:
    """[P] bool: problems of which the start solved none in the samples kept apart for this choice."""
    return np.asarray(start["counts"]["selection"]["correct"]) == 0


def pass_at(result: dict[str, Any], k: int, chosen: np.ndarray) -> np.ndarray:
    """Unbiased pass@k at temperature 1 of the chosen problems."""
    counts = result["counts"]["1"]
    return pass_at_k(np.asarray(counts["correct"])[chosen], counts["samples"], k)


__all__ = ["START", "hard_problems", "pass_at", "rates", "read_test", "sample_test_set", "start_of", "test_file"]
