"""Against enumerations, hand numbers and textbook intervals."""

import itertools
import math

import numpy as np
import pytest

from experiments.compare.statistics import (
    Curve,
    bootstrap,
    cost_estimate,
    cost_to_reach,
    difference_estimate,
    mean_estimate,
    median,
    ratio_estimate,
)

INF = math.inf


@pytest.mark.parametrize(
    ("accuracy", "level", "cost"),
    [
        ([0.1, 0.2, 0.4], 0.3, 15.0),  # half-way from 10 to 20
        ([0.1, 0.2, 0.4], 0.2, 10.0),  # exactly at an evaluation
        ([0.3, 0.2, 0.4], 0.3, 0.0),  # there before anything was spent
        ([0.1, 0.2, 0.4], 0.5, INF),
        ([0.2, 0.1, 0.4], 0.3, 15.0),  # the dip does not count: from 0.2 at 10 to 0.4 at 20
        ([0.1, 0.35, 0.2], 0.3, 8.0),  # 0.2 / 0.25 of the first ten; falling below again does not matter
    ],
)
def test_cost_to_reach_by_hand(accuracy, level, cost):
    assert cost_to_reach(np.array([0.0, 10.0, 20.0]), np.array(accuracy), level) == pytest.approx(cost)


def test_median_counts_what_was_not_reached_as_large():
    assert median([3.0, 1.0, INF]) == 3.0
    assert median([1.0, INF, INF]) == INF
    assert median([1.0, 3.0]) == 2.0
    assert median([INF, INF]) == INF
    assert median([2.0, math.nan]) == 2.0
    assert math.isnan(median([]))


def test_problems_alone_give_the_interval_of_a_binomial_share():
    rates = (np.arange(400) < 120).astype(float)
    found = mean_estimate([rates])
    error = 1.96 * math.sqrt(0.3 * 0.7 / 400)
    assert found.value == pytest.approx(0.3)
    assert found.high - found.value == pytest.approx(error, rel=0.15)
    assert found.value - found.low == pytest.approx(error, rel=0.15)


def test_seeds_alone_give_the_quantiles_of_all_draws():
    """Four seeds without any spread among problems: all 256 draws of four can be listed."""
    values = [0.1, 0.2, 0.6, 0.8]
    found = mean_estimate([np.full(5, value) for value in values])
    medians = np.sort([np.median(draw) for draw in itertools.product(values, repeat=4)])
    assert found.value == pytest.approx(0.4)
    assert found.low == pytest.approx(medians[math.ceil(0.025 * 256) - 1])
    assert found.high == pytest.approx(medians[math.ceil(0.975 * 256) - 1])


def test_a_bootstrap_written_out():
    """The same draws one by one: seeds of different numbers of problems and evaluations, levels not always reached."""
    rng = np.random.default_rng(3)
    ours = [curve(scale, rng, size) for scale, size in ((1.0, 30), (3.0, 20), (2.0, 25))]
    theirs = [curve(scale, rng, size, 0.65) for scale, size in ((2.0, 30), (3.5, 20), (5.0, 25))]
    theirs = [Curve(c.cost[:-1], c.rates[1:]) for c in theirs]
    draws, stream, drawn = 200, np.random.default_rng(0), []
    for _ in range(draws):
        found = []
        for seed in stream.integers(3, size=3):
            problems = stream.integers(ours[seed].rates.shape[1], size=ours[seed].rates.shape[1])
            own, other = (
                cost_to_reach(c.cost, c.rates[:, problems].mean(axis=1), 0.55) for c in (ours[seed], theirs[seed])
            )
            found.append(math.nan if own == other == INF else other / own)
        found = sorted(value for value in found if not math.isnan(value))
        drawn.append((found[(len(found) - 1) // 2] + found[len(found) // 2]) / 2 if found else math.nan)
    kept = sorted(value for value in drawn if not math.isnan(value))
    assert len({*kept}) > 100
    assert INF in kept
    expected = [kept[math.ceil(share * len(kept)) - 1] for share in (0.025, 0.975)]
    assert ratio_estimate(ours, theirs, 0.55, draws=draws)[1:] == pytest.approx(tuple(expected))


def test_both_levels_add_up():
    """Variances of seeds and of problems within them add: wider than either alone."""
    rng = np.random.default_rng(1)
    seeds = [(rng.random(40) < p).astype(float) for p in (0.3, 0.4, 0.5, 0.6, 0.7)]
    both = mean_estimate(seeds)
    only_seeds = mean_estimate([np.full(40, s.mean()) for s in seeds])

    def of_all_seeds(resamples):
        return np.array([np.median([(count * rate).mean() for count, rate in zip(draw, seeds)])
                         for draw in resamples.counts])  # fmt: skip

    only_problems = bootstrap(of_all_seeds, [40] * 5)
    assert both.high - both.low > max(only_seeds.high - only_seeds.low, only_problems.high - only_problems.low)


def curve(scale, rng, size=30, top=0.8):
    rates = (rng.random((5, size)) < np.linspace(0, top, 5)[:, None]).astype(float)
    return Curve(scale * np.arange(5.0), rates)


def test_pairs_take_out_what_both_methods_share():
    """Three seeds of very different speed; the other method always pays 2.5 times as much."""
    rng = np.random.default_rng(0)
    ours = [curve(scale, rng) for scale in (1.0, 10.0, 100.0)]
    theirs = [Curve(2.5 * c.cost, c.rates) for c in ours]
    assert ratio_estimate(ours, theirs, 0.5) == pytest.approx((2.5, 2.5, 2.5))
    spread = cost_estimate(ours, 0.5)
    assert spread.high / spread.low > 50


def test_a_level_that_only_one_side_reaches():
    steps = np.arange(3.0)
    low, high = np.zeros((3, 4)), np.array([[0.0] * 4, [0.5] * 4, [1.0] * 4])
    reaches, fails = Curve(steps, high), Curve(steps, low)
    assert ratio_estimate([reaches], [fails], 0.5) == (INF, INF, INF)
    assert ratio_estimate([fails], [reaches], 0.5) == (0, 0, 0)
    assert math.isnan(ratio_estimate([fails], [fails], 0.5).value)
    assert cost_estimate([reaches, reaches, fails], 0.5).value == 1.0
    assert cost_estimate([reaches, fails, fails], 0.5).value == INF
    with pytest.raises(ValueError, match="cannot be paired"):
        ratio_estimate([reaches], [reaches, fails], 0.5)


def test_differences_are_paired_by_problem():
    easy, hard = np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.9, 0.9, -0.1, -0.1])
    assert difference_estimate([easy], [hard]) == pytest.approx((0.1, 0.1, 0.1))
