"""The arithmetic of a comparison: cost to reach a level, bootstrap intervals over seeds and problems."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2000
INTERVAL = (0.025, 0.975)


class Estimate(NamedTuple):
    """A figure with its 95 % bootstrap interval; inf is a level not reached, nan a figure that does not exist."""

    value: float
    low: float
    high: float


class Curve(NamedTuple):
    """What one run (one seed) reached at what cost.

    Attributes:
      cost: [E] what had been spent at each evaluation, not falling.
      rates: [E, P] share of right samples of each validation problem.
    """

    cost: np.ndarray
    rates: np.ndarray


def cost_to_reach(cost: np.ndarray, accuracy: np.ndarray, level: float) -> float:
    """Where the running maximum of `accuracy` [E], joined by straight lines over `cost` [E], first is at `level`.

    A curve measured on few problems goes up and down; its running maximum makes the crossing unique. inf if it stays
    below the level.
    """
    highest = np.maximum.accumulate(accuracy)
    reached = np.flatnonzero(highest >= level)
    if not reached.size:
        return float("inf")
    index = int(reached[0])
    if index == 0:
        return float(cost[0])
    below, above = highest[index - 1], highest[index]
    return float(cost[index - 1] + (level - below) / (above - below) * (cost[index] - cost[index - 1]))


def _resamples(rng: np.random.Generator, num_seeds: int, num_problems: Sequence[int]) -> list[tuple[int, np.ndarray]]:
    """One hierarchical draw: seeds with replacement, then for each drawn seed its problems with replacement."""
    return [
        (seed, rng.integers(num_problems[seed], size=num_problems[seed]))
        for seed in rng.integers(num_seeds, size=num_seeds).tolist()
    ]


def bootstrap(
    statistic: Callable[[list[tuple[int, np.ndarray]]], float], num_problems: Sequence[int], *, draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:  # fmt: skip
    """A statistic of (seed, problems of it) pairs with its interval from resampled seeds and problems.

    Args:
      statistic: of a list of (number of the seed, [P] numbers of its problems).
      num_problems: P of each seed.
    Returns:
      The statistic of all seeds and problems as they are, and quantiles of the resampled ones (order statistics, so
      that inf is a possible end); nan is left out of the quantiles.
    """
    rng = np.random.default_rng(seed)
    value = statistic([(index, np.arange(count)) for index, count in enumerate(num_problems)])
    drawn = np.array([statistic(_resamples(rng, len(num_problems), num_problems)) for _ in range(draws)])
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size:
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, INTERVAL, method="inverted_cdf")
    return Estimate(float(value), float(low), float(high))


def median(values: Sequence[float]) -> float:
    """Median in which inf counts as larger than all numbers; nan of nothing."""
    ordered = sorted(value for value in values if not np.isnan(value))
    if not ordered:
        return float("nan")
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return low if low == high else (low + high) / 2


def cost_estimate(curves: Sequence[Curve], level: float, *, draws: int = DRAWS) -> Estimate:
    """Median over seeds of the cost to reach a level."""

    def statistic(chosen: list[tuple[int, np.ndarray]]) -> float:
        return median([_cost(curves[seed], problems, level) for seed, problems in chosen])

    return bootstrap(statistic, [curve.rates.shape[1] for curve in curves], draws=draws)


def ratio_estimate(ours: Sequence[Curve], theirs: Sequence[Curve], level: float, *, draws: int = DRAWS) -> Estimate:
    """Median over seeds of (their cost / our cost) of a level, in pairs (same seeds, same problems).

    A seed in which only they fail counts as inf, only we as 0, both as no seed.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} seeds of one method and {len(theirs)} of the other cannot be paired")

    def statistic(chosen: list[tuple[int, np.ndarray]]) -> float:
        ratios = []
        for seed, problems in chosen:
            own, other = _cost(ours[seed], problems, level), _cost(theirs[seed], problems, level)
            both = np.isinf(own) and np.isinf(other)
            ratios.append(float("nan") if both else ratio(other, own))
        return median(ratios)

    return bootstrap(statistic, [curve.rates.shape[1] for curve in ours], draws=draws)


def mean_estimate(rates: Sequence[np.ndarray], *, draws: int = DRAWS) -> Estimate:
    """Median over seeds of the mean over problems; `rates` holds [P] a seed."""

    def statistic(chosen: list[tuple[int, np.ndarray]]) -> float:
        return median([float(rates[seed][problems].mean()) for seed, problems in chosen])

    return bootstrap(statistic, [len(rate) for rate in rates], draws=draws)


def difference_estimate(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], *, draws: int = DRAWS) -> Estimate:
    """Median over seeds of the mean over problems of (ours - theirs), in pairs."""
    return mean_estimate([one - other for one, other in zip(ours, theirs, strict=True)], draws=draws)


def ratio_of_means(first: Sequence[np.ndarray], second: Sequence[np.ndarray], *, draws: int = DRAWS) -> Estimate:
    """Median over seeds of the ratio of means over problems, first / second, in pairs; 0 / 0 counts as no seed."""

    def statistic(chosen: list[tuple[int, np.ndarray]]) -> float:
        means = [(float(first[seed][some].mean()), float(second[seed][some].mean())) for seed, some in chosen]
        return median([ratio(one, other) for one, other in means])

    return bootstrap(statistic, [len(rates) for rates in first], draws=draws)


def _cost(curve: Curve, problems: np.ndarray, level: float) -> float:
    return cost_to_reach(curve.cost, curve.rates[:, problems].mean(axis=1), level)


def ratio(numerator: float, denominator: float) -> float:
    """nan for 0 / 0, which tells nothing, and inf for anything else over 0."""
    if denominator == 0:
        return float("nan") if numerator == 0 else float("inf")
    return numerator / denominator
