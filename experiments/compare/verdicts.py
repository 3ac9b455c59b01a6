"""Whether the runs of a suite bear its claims out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.compare import statistics, testing
from experiments.compare.claims import MEASURES, Claim, verdict
from experiments.compare.measure import RunCurves
from experiments.compare.statistics import Estimate


def _judged(claim: Claim, figure: Estimate, seeds: int) -> dict[str, Any]:
    meaning, neutral = MEASURES[claim.measure]
    if claim.level:
        meaning = meaning.replace("a level", f"{claim.level:g}")
    return {
        "source": claim.source, "text": claim.text, "better": claim.better, "worse": claim.worse, "meaning": meaning,
        "figure": figure, "seeds": seeds, "verdict": verdict(figure, neutral),
    }  # fmt: skip


def judge_training(
    claims: Sequence[Claim], runs: Mapping[str, Mapping[int, RunCurves]],
    tests: Mapping[str, Mapping[int, dict[str, Any]]], *, draws: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Claims on trained policies of one setting, in pairs by seed; those whose runs are missing are left out."""
    found = []
    for claim in claims:
        pairs: list[Mapping[int, Any]] = [(tests if claim.measure == "accuracy" else runs).get(name, {})
                                          for name in (claim.better, claim.worse)]  # fmt: skip
        seeds = sorted(set(pairs[0]) & set(pairs[1]))
        if not seeds:
            continue
        first, second = ([some[seed] for seed in seeds] for some in pairs)
        if claim.measure == "accuracy":
            rates = [[testing.rates(test) for test in some] for some in (first, second)]
            figure = statistics.difference_estimate(*rates, draws=draws)
        elif claim.measure == "tokens":
            ours, theirs = ([run.curve("generated_tokens") for run in some] for some in (first, second))
            figure = statistics.ratio_estimate(ours, theirs, claim.level, draws=draws)
        else:
            figure = _of_seeds([_cached_growth(run) for run in first], draws)
        found.append(_judged(claim, figure, len(seeds)))
    return found


def judge_frozen(
    claims: Sequence[Claim], searches: Mapping[str, Mapping[int, list[dict[str, Any]]]], *, draws: int
) -> list[dict[str, Any]]:
    """Claims on searches of one setting: {method: {seed: rows of its repeats}}, in pairs by seed."""
    found = []
    for claim in claims:
        pairs = [searches.get(name, {}) for name in (claim.better, claim.worse)]
        seeds = sorted(set(pairs[0]) & set(pairs[1]))
        if not seeds:
            continue
        first, second = ([some[seed] for seed in seeds] for some in pairs)
        if claim.measure == "reward":
            rewards = [[np.mean([row["rewards"] for row in rows], axis=0) for rows in some] for some in (first, second)]
            figure = statistics.difference_estimate(*rewards, draws=draws)
        elif claim.measure == "expansions":
            figure = _of_seeds([_mean(b, "expansions") / _mean(a, "expansions") for a, b in zip(first, second)], draws)
        else:
            figure = statistics.ratio_of_means([_solved(a) for a in first], [_solved(b) for b in second], draws=draws)
        found.append(_judged(claim, figure, len(seeds)))
    return found


def _of_seeds(values: Sequence[float], draws: int) -> Estimate:
    """Median over seeds of a figure that is of no single problem."""
    return statistics.mean_estimate([np.array([value]) for value in values], draws=draws)


def _cached_growth(run: RunCurves) -> float:
    rows = [row for row in run.rows if row["kind"] == "train"]
    share = {number: np.mean([row["cached_share"] for row in rows if row["round"] == number])
             for number in (rows[0]["round"], rows[-1]["round"])}  # fmt: skip
    return float(share[rows[-1]["round"]] - share[rows[0]["round"]])


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _solved(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """[P] whether each problem was solved, per 1,000 tokens of a problem; tokens are shared evenly among them."""
    solved = np.mean([np.array(row["correct"]) > 0 for row in rows], axis=0)
    return 1000 * solved * len(solved) / _mean(rows, "tokens")
