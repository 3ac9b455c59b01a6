"""Whether the runs of a suite bear its claims out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.compare import statistics, testing
from experiments.compare.claims import MEASURES, Claim, verdict
from experiments.compare.measure import RunCurves
from experiments.compare.statistics import Estimate


def judge_training(
    claims: Sequence[Claim], setting: str, runs: Mapping[str, Mapping[int, RunCurves]],
    tests: Mapping[str, Mapping[int, dict[str, Any]]], *, draws: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Claims on trained policies of one setting, in pairs by seed; those whose runs are missing are left out."""
    found = []
    for claim in _of_setting(claims, setting):
        first, second = _pairs(claim, tests if claim.measure == "accuracy" else runs)
        if not first:
            continue
        deciding = len(first)
        match claim.measure:
            case "accuracy":
                pairs = [(testing.rates(one), testing.rates(other)) for one, other in zip(first, second)]
                # A seed in which neither has learnt anything tells nothing.
                pairs = [pair for pair in pairs if max(rates.mean() for rates in pair) >= claim.level]
                figure = statistics.mean_estimate([one - other for one, other in pairs], draws=draws)
                deciding = len(pairs)
            case "tokens":
                ours, theirs = ([run.curve("generated_tokens") for run in some] for some in (first, second))
                figure = statistics.ratio_estimate(ours, theirs, claim.level, draws=draws)
                # A seed in which neither gets there tells nothing.
                deciding = sum(
                    any(bool(run.accuracy.max() >= claim.level) for run in pair) for pair in zip(first, second)
                )
            case "cached":
                figure = _of_seeds([_cached_growth(run) for run in first], draws)
            case _:
                raise ValueError(f"measure={claim.measure!r} is none of trained policies")
        found.append(_judged(claim, figure, deciding))
    return found


def judge_frozen(
    claims: Sequence[Claim], setting: str, searches: Mapping[str, Mapping[int, list[dict[str, Any]]]], *, draws: int
) -> list[dict[str, Any]]:
    """Claims on searches of one setting: {method: {seed: rows of its repeats}}, in pairs by seed."""
    found = []
    for claim in _of_setting(claims, setting):
        first, second = _pairs(claim, searches)
        is_known = claim.measure != "reward" or all("rewards" in row for rows in first + second for row in rows)
        if not first or not is_known:  # rows of older versions have no rewards
            continue
        deciding = len(first)
        match claim.measure:
            case "reward":
                rewards = [[np.mean([row["rewards"] for row in rows], axis=0) for rows in some]
                           for some in (first, second)]  # fmt: skip
                figure = statistics.difference_estimate(*rewards, draws=draws)
            case "expansions":
                ratios = [
                    statistics.ratio(_mean(b, "expansions"), _mean(a, "expansions")) for a, b in zip(first, second)
                ]
                figure, deciding = _of_seeds(ratios, draws), sum(not math.isnan(ratio) for ratio in ratios)
            case "solved":
                ours, theirs = ([_solved(rows) for rows in some] for some in (first, second))
                figure = statistics.ratio_of_means(ours, theirs, draws=draws)
                deciding = sum(bool(a.any() or b.any()) for a, b in zip(ours, theirs))
            case _:
                raise ValueError(f"measure={claim.measure!r} is none of searches")
        found.append(_judged(claim, figure, deciding))
    return found


def _of_setting(claims: Sequence[Claim], setting: str) -> list[Claim]:
    return [claim for claim in claims if not claim.settings or setting in claim.settings]


def _pairs(claim: Claim, by_method: Mapping[str, Mapping[int, Any]]) -> tuple[list[Any], list[Any]]:
    """What there is of both methods of a claim, seed by seed."""
    better, worse = (by_method.get(name, {}) for name in (claim.better, claim.worse))
    seeds = sorted(set(better) & set(worse))
    return [better[seed] for seed in seeds], [worse[seed] for seed in seeds]


def _judged(claim: Claim, figure: Estimate, num_seeds: int) -> dict[str, Any]:
    """Args: num_seeds: that tell anything."""
    measure = MEASURES[claim.measure]
    meaning = measure.meaning.replace("a level", f"{claim.level:g}") if claim.level else measure.meaning
    if claim.measure == "accuracy" and claim.level:
        meaning += f", of seeds in which one ends at {claim.level:g} or above"
    return {
        "source": claim.source, "text": claim.text, "better": claim.better, "worse": claim.worse, "meaning": meaning,
        "figure": figure, "seeds": num_seeds, "verdict": verdict(figure, measure.neutral, num_seeds),
    }  # fmt: skip


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
