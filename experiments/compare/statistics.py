"""The arithmetic of a comparison: cost to reach a level, bootstrap intervals over seeds and problems."""

import functools
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


class Resamples(NamedTuple):
    """Hierarchical draws: seeds with replacement, then for each drawn seed its problems with replacement.

    Attributes:
      seeds: [D, S] numbers of the drawn seeds; the first draw has each once, with its problems as they are.
      counts: [D, S, P] how often each problem was drawn; 0 behind the last one of the seed.
    """

    seeds: np.ndarray
    counts: np.ndarray


def cost_to_reach(cost: np.ndarray, accuracy: np.ndarray, level: float) -> float:
    """Where the running maximum of `accuracy` [E], joined by straight lines over `cost` [E], first is at `level`.

    A curve measured on few problems goes up and down; its running maximum makes the crossing unique. inf if it stays
    below the level.
    """
    return float(_costs_to_reach(cost, accuracy[None], level)[0])


def _costs_to_reach(cost: np.ndarray, accuracy: np.ndarray, level: float) -> np.ndarray:
    """`cost_to_reach` of several curves over one cost: [E], [N, E] -> [N]."""
    highest = np.maximum.accumulate(accuracy, axis=1)
    reached = highest >= level
    index = np.argmax(reached, axis=1)  # the first of them, 0 where there is none
    before = np.maximum(index - 1, 0)
    row = np.arange(len(accuracy))
    below, above = highest[row, before], highest[row, index]
    share = np.divide(level - below, above - below, out=np.zeros(len(row)), where=index > 0)
    found = cost[before] + share * (cost[index] - cost[before])
    return np.where(reached[row, index], found, np.inf)


@functools.lru_cache(maxsize=4)
def _resamples(num_problems: tuple[int, ...], draws: int, seed: int) -> Resamples:
    rng, num_seeds = np.random.default_rng(seed), len(num_problems)
    seeds = np.empty((draws + 1, num_seeds), int)
    counts = np.zeros((draws + 1, num_seeds, max(num_problems)))
    seeds[0] = np.arange(num_seeds)
    for position, count in enumerate(num_problems):
        counts[0, position, :count] = 1
    for draw in range(1, draws + 1):
        seeds[draw] = rng.integers(num_seeds, size=num_seeds)
        for position, chosen in enumerate(seeds[draw]):
            count = num_problems[chosen]
            problems = rng.integers(count, size=count)
            counts[draw, position, :count] = np.bincount(problems, minlength=count)
    return Resamples(seeds, counts)


def bootstrap(
    statistic: Callable[[Resamples], np.ndarray], num_problems: Sequence[int], *, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """A statistic of seeds and their problems with its interval from resampled seeds and problems.

    Args:
      statistic: [D] values of the draws of `Resamples`.
      num_problems: P of each seed.
    Returns:
      The statistic of all seeds and problems as they are, and quantiles of the resampled ones (order statistics, so
      that inf is a possible end); nan is left out of the quantiles.
    """
    value, *rest = statistic(_resamples(tuple(num_problems), draws, seed)).tolist()
    drawn = np.array(rest)
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size:
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, INTERVAL, method="inverted_cdf")
    return Estimate(value, float(low), float(high))


def median(values: Sequence[float]) -> float:
    """Median in which inf counts as larger than all numbers; nan of nothing."""
    return float(medians(np.array(values, float)[None])[0])


def medians(values: np.ndarray) -> np.ndarray:
    """`median` of each row: [N, S] -> [N]; nan is left out."""
    ordered = np.sort(values, axis=1)  # nan goes last
    known = np.sum(~np.isnan(ordered), axis=1)
    row = np.arange(len(ordered))
    if not ordered.shape[1]:
        return np.full(len(row), np.nan)
    low, high = ordered[row, np.maximum(known - 1, 0) // 2], ordered[row, np.minimum(known // 2, values.shape[1] - 1)]
    return np.where(known == 0, np.nan, np.where(low == high, low, (low + high) / 2))


def _of_seeds(
    resamples: Resamples, num_problems: Sequence[int], figure: Callable[[int, np.ndarray], np.ndarray]
) -> np.ndarray:
    """[D, S] of `figure(seed, counts)`, which makes [N] of [N, P] counts of the problems of a seed."""
    found = np.empty(resamples.seeds.shape)
    for seed, count in enumerate(num_problems):
        here = resamples.seeds == seed
        found[here] = figure(seed, resamples.counts[here][:, :count])
    return found


def cost_estimate(curves: Sequence[Curve], level: float, *, draws: int = DRAWS) -> Estimate:
    """Median over seeds of the cost to reach a level."""
    sizes = [curve.rates.shape[1] for curve in curves]

    def statistic(resamples: Resamples) -> np.ndarray:
        return medians(_of_seeds(resamples, sizes, lambda seed, counts: _costs(curves[seed], counts, level)))

    return bootstrap(statistic, sizes, draws=draws)


def ratio_estimate(ours: Sequence[Curve], theirs: Sequence[Curve], level: float, *, draws: int = DRAWS) -> Estimate:
    """Median over seeds of (their cost / our cost) of a level, in pairs (same seeds, same problems).

    A seed in which only they fail counts as inf, only we as 0, both as no seed.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} seeds of one method and {len(theirs)} of the other cannot be paired")
    sizes = [curve.rates.shape[1] for curve in ours]

    def statistic(resamples: Resamples) -> np.ndarray:
        def ratios_of(seed: int, counts: np.ndarray) -> np.ndarray:
            own, other = (_costs(curves[seed], counts, level) for curves in (ours, theirs))
            return np.where(np.isinf(own) & np.isinf(other), np.nan, ratios(other, own))

        return medians(_of_seeds(resamples, sizes, ratios_of))

    return bootstrap(statistic, sizes, draws=draws)


def mean_estimate(rates: Sequence[np.ndarray], *, draws: int = DRAWS) -> Estimate:
    """Median over seeds of the mean over problems; `rates` holds [P] a seed. nan of no seed."""
    if not rates:
        return Estimate(float("nan"), float("nan"), float("nan"))
    sizes = [len(rate) for rate in rates]

    def statistic(resamples: Resamples) -> np.ndarray:
        return medians(_of_seeds(resamples, sizes, lambda seed, counts: _means(rates[seed], counts)))

    return bootstrap(statistic, sizes, draws=draws)


def difference_estimate(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], *, draws: int = DRAWS) -> Estimate:
    """Median over seeds of the mean over problems of (ours - theirs), in pairs."""
    return mean_estimate([one - other for one, other in zip(ours, theirs, strict=True)], draws=draws)


def ratio_of_means(first: Sequence[np.ndarray], second: Sequence[np.ndarray], *, draws: int = DRAWS) -> Estimate:
    """Median over seeds of the ratio of means over problems, first / second, in pairs; 0 / 0 counts as no seed."""
    sizes = [len(rates) for rates in first]

    def statistic(resamples: Resamples) -> np.ndarray:
        def ratios_of(seed: int, counts: np.ndarray) -> np.ndarray:
            return ratios(_means(first[seed], counts), _means(second[seed], counts))

        return medians(_of_seeds(resamples, sizes, ratios_of))

    return bootstrap(statistic, sizes, draws=draws)


def _costs(curve: Curve, counts: np.ndarray, level: float) -> np.ndarray:
    """[N] costs of a level by [N, P] counts of the problems."""
    return _costs_to_reach(curve.cost, _means(curve.rates, counts), level)


def _means(rates: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means over problems drawn so often: [..., P], [N, P] -> [N, ...].

    Shares of a power of two of samples sum without rounding, so a level that is met exactly is met here too.
    """
    return counts @ rates.T / rates.shape[-1]


def ratio(numerator: float, denominator: float) -> float:
    """nan for 0 / 0, which tells nothing, and inf for anything else over 0."""
    return float(ratios(np.array([float(numerator)]), np.array([float(denominator)]))[0])


def ratios(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """`ratio` of each pair; nan of inf / inf too."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return numerators / denominators
