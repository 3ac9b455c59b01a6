"""Claims and their verdicts, with figures by hand."""

import dataclasses

import numpy as np
import pytest

from experiments.compare.claims import Claim, verdict
from experiments.compare.measure import RunCurves
from experiments.compare.statistics import Estimate
from experiments.compare.tables import markdown
from experiments.compare.verdicts import judge_frozen, judge_training
from tests.compare.tiny_suite import get_suite


def of(measure, better="a", worse="b", level=0.0):
    return Claim("Table 0", "a beats b", better, worse, measure, level)


@pytest.mark.parametrize(
    ("figure", "neutral", "words"),
    [
        (Estimate(1.5, 1.1, 2), 1, "reproduced"),
        (Estimate(0.5, 0.4, 0.9), 1, "not reproduced: the opposite"),
        (Estimate(1.5, 0.9, 2), 1, "undecided"),
        (Estimate(0.1, 0, 0.2), 0, "undecided"),
        (Estimate(float("nan"), float("nan"), float("nan")), 1, "undecided"),
        (Estimate(float("inf"), 1.2, float("inf")), 1, "reproduced"),
    ],
)
def test_an_interval_decides(figure, neutral, words):
    assert verdict(figure, neutral) == words


def run(tokens, accuracies, cached=()):
    rows = [{"kind": "train", "round": i, "cached_share": share} for i, share in enumerate(cached)]
    rates = np.repeat(np.array(accuracies)[:, None], 4, axis=1)
    return RunCurves({"generated_tokens": np.array(tokens, float)}, rates, rows)


def outcome(*correct):
    return {"counts": {"1": {"samples": 4, "correct": list(correct)}}}


def test_claims_on_trained_policies_by_hand():
    # Level .2 at 100 and 200 tokens in seed 0 and at 100 and 300 in seed 1; seed 2 has no partner.
    runs = {
        "a": {0: run([0, 100], [0, 0.2], (0.1, 0.3, 0.4)), 1: run([0, 100], [0, 0.2], (0, 0, 0.5)), 2: run([0], [0])},
        "b": {0: run([0, 200], [0, 0.2]), 1: run([0, 300], [0, 0.2])},
    }
    tests = {"a": {0: outcome(4, 2), 1: outcome(4, 2)}, "b": {0: outcome(2, 2), 1: outcome(2, 0)}}
    claims = [of("tokens", level=0.2), of("accuracy"), of("cached", "a", "a"), of("accuracy", "a", "c")]
    tokens, accuracy, cached = judge_training(claims[:2] + claims[3:], runs, tests, draws=200) + judge_training(
        [of("cached", "a", "a")], {"a": {seed: runs["a"][seed] for seed in (0, 1)}}, {}, draws=200
    )
    assert tokens["figure"] == (2.5, 2.0, 3.0)
    assert tokens["verdict"] == "reproduced"
    assert tokens["seeds"] == 2
    assert "to 0.2" in tokens["meaning"]
    assert accuracy["figure"].value == pytest.approx((0.25 + 0.5) / 2)  # means over problems: .75 - .5 and .75 - .25
    assert cached["figure"].value == pytest.approx((0.3 + 0.5) / 2)
    assert cached["verdict"] == "reproduced"


def test_claims_on_searches_by_hand():
    def rows(expansions, rewards, correct, tokens):
        return [{"expansions": expansions, "rewards": rewards, "correct": correct, "tokens": tokens}] * 2

    searches = {
        "a": {0: rows(5.0, [1.0, 0.5], [1, 0], 100), 1: rows(4.0, [1.0, 0.5], [3, 1], 200)},
        "b": {0: rows(10.0, [0.0, -0.5], [1, 0], 200), 1: rows(4.0, [0.0, 0.5], [0, 1], 400)},
    }
    expansions, reward, solved = judge_frozen([of("expansions"), of("reward"), of("solved")], searches, draws=400)
    assert expansions["figure"].value == pytest.approx((2 + 1) / 2)
    assert expansions["verdict"] == "undecided"  # one of two seeds shows nothing
    assert reward["figure"].value == pytest.approx((1 + 0.5) / 2)
    assert solved["figure"].value == pytest.approx((2 + 4) / 2)  # .5 / 50 over .5 / 100 and 1 / 100 over .5 / 200


def test_mistakes_in_claims_are_told():
    with pytest.raises(ValueError, match="measure='speed'"):
        of("speed")
    with pytest.raises(ValueError, match="give level"):
        of("tokens")
    with pytest.raises(ValueError, match="names no method of it"):
        dataclasses.replace(get_suite(), claims=(of("accuracy"),))


def test_the_page_says_what_was_claimed_and_what_came_out():
    claim = {
        "source": "Table 4", "text": "a beats b", "better": "a", "worse": "b", "meaning": "pass@1",
        "figure": [0.1, 0.05, 0.2], "seeds": 5, "verdict": "reproduced",
    }  # fmt: skip
    estimates = ("correct_per_1000", "distinct_per_1000", "solved_per_1000", "solved")
    means = ("reward", "depth", "entropy", "expansions", "nodes", "tokens", "cpu_ms_per_problem")
    method = dict.fromkeys(estimates, (1.0, 0.5, 2.0)) | dict.fromkeys((*means, "cpu_ms_per_expansion"), 1.0)
    found = {"methods": {"a": method}, "claims": [claim]}
    text = markdown({"suite": "search", "title": "", "frozen": {"sparse": found}})
    assert "| Table 4 | a beats b | `a`, `b` | pass@1 | 0.100 [0.050, 0.200] | 5 | reproduced |" in text
