"""The weight of confidence: by hand, against the slope that made the data, and what is no evidence."""

import dataclasses

import numpy as np
import pytest

from deepsearch_jax.data.problems import Problem
from deepsearch_jax.runtime.confidence import ConfidenceSettings, Evidence, entropy_weight, evidence_of
from deepsearch_jax.runtime.responses import Group, Response
from deepsearch_jax.types import Outcome

SETTINGS = ConfidenceSettings()
PROBLEM = Problem(0, "p", "q", "a")


def tree_of(nll, correct):
    rewards = np.where(correct, 1.0, -1.0).astype(np.float32)
    return Group(PROBLEM, [1], [], rewards, np.array(nll, np.float32))


def response(log_probs, is_correct, origin="direct"):
    known = None if log_probs is None else np.array(log_probs, np.float32)
    outcome = Outcome.CORRECT if is_correct else Outcome.INCORRECT
    return Response(
        np.ones(2, np.int32), np.array([2]), np.ones(1), known, 1.0 if is_correct else -1.0, outcome, "", origin
    )


def test_by_hand():
    # Correct 1 and 2, wrong 4, 5, 6: means 1.5 and 5, squares 0.5 + 2, pairs 2 * 3 / 5, difference -3.5.
    evidence = evidence_of([tree_of([1, 2, 4, 5, 6], [True, True, False, False, False])])
    assert evidence == Evidence(pairs=1.2, difference=pytest.approx(1.2 * -3.5), squares=2.5, freedom=3)
    assert evidence.slope == pytest.approx(-3.5 / (2.5 / 3))  # -4.2
    # Half of the way is left to the prior with pairs = prior_weight.
    wide = ConfidenceSettings(low=-100, prior_weight=1.2)
    assert entropy_weight(evidence, 0.0, wide) == pytest.approx(-2.1)
    assert entropy_weight(evidence, 1.0, wide) == pytest.approx(-1.6)
    assert entropy_weight(evidence, 0.0, dataclasses.replace(wide, low=-2.0)) == -2.0
    later = evidence.decayed(0.5, Evidence(1.0, 4.0, 1.0, 2.0))
    assert later == Evidence(1.6, pytest.approx(-2.1 + 4), 2.25, 3.5)


def test_direct_groups_count_their_responses_but_for_those_of_the_cache():
    group = Group(PROBLEM, [1], [
        response([-1, -3], True), response([-4, -4], False), response([-5, -7], False), response(None, True, "cache"),
    ])  # fmt: skip
    assert evidence_of([group]) == evidence_of([tree_of([2, 4, 6], [True, False, False])])


@pytest.mark.parametrize("correct", [[True] * 3, [False] * 3])
def test_a_group_of_equal_rewards_says_nothing(correct):
    assert evidence_of([tree_of([1, 2, 4], correct)]) == Evidence()
    assert entropy_weight(Evidence(), -3.0, SETTINGS) == -3.0
    # One of each has no spread within its class yet.
    assert entropy_weight(evidence_of([tree_of([1, 2], [True, False])]), 0.5, SETTINGS) == 0.5


@pytest.mark.parametrize("slope", [-6.0, 2.0])
def test_it_finds_the_slope_of_the_log_odds_whatever_the_difficulty(slope):
    """Correctness drawn from a logistic model: hard problems have large H and few correct, in one step."""
    rng, groups = np.random.default_rng(0), []
    for difficulty in rng.uniform(0.0, 1.5, 4000):
        nll = 0.3 + difficulty + 0.1 * rng.normal(size=8)
        logit = slope * (nll - 0.3 - difficulty) - 3 * difficulty
        groups.append(tree_of(nll, rng.random(8) < 1 / (1 + np.exp(-logit))))
    evidence = evidence_of(groups)
    assert evidence.slope == pytest.approx(slope, rel=0.15)
    assert entropy_weight(evidence, 0.0, SETTINGS) == pytest.approx(slope, rel=0.15)
    # Over all responses, difficulty would hide it.
    nll, correct = (np.concatenate([getattr(g, f) for g in groups]) for f in ("terminal_nll", "terminal_rewards"))
    assert nll[correct > 0].mean() < nll[correct < 0].mean() - 0.2


@pytest.mark.parametrize("changes", [{"low": 4.0}, {"prior_weight": 0.0}, {"decay": 1.0}])
def test_settings_without_sense_are_refused(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))}="):
        ConfidenceSettings(**changes)
