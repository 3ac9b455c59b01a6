"""Claims and their verdicts, with figures by hand."""

import dataclasses
import json

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
    ("figure", "neutral", "seeds", "words"),
    [
        (Estimate(1.5, 1.1, 2), 1, 5, "reproduced"),
        (Estimate(0.5, 0.4, 0.9), 1, 5, "not reproduced: the opposite"),
        (Estimate(1.5, 0.9, 2), 1, 5, "undecided"),
        (Estimate(0.1, 0, 0.2), 0, 5, "undecided"),
        (Estimate(float("nan"), float("nan"), float("nan")), 1, 5, "undecided"),
        (Estimate(float("inf"), 1.2, float("inf")), 1, 4, "reproduced"),
        (Estimate(1.5, 1.1, 2), 1, 3, "undecided: fewer than 4 seeds"),
    ],
)
def test_an_interval_decides(figure, neutral, seeds, words):
    assert verdict(figure, neutral, seeds) == words


def run(tokens, accuracies, cached=()):
    rows = [{"kind": "train", "round": i, "cached_share": share} for i, share in enumerate(cached)]
    rates = np.repeat(np.array(accuracies)[:, None], 4, axis=1)
    return RunCurves({"generated_tokens": np.array(tokens, float)}, rates, rows)


def outcome(*correct):
    return {"counts": {"1": {"samples": 4, "correct": list(correct)}}}


def test_claims_on_trained_policies_by_hand():
    # Level .2 at 100 tokens with the first; with the second at 200 in seeds 0 and 1, at 300 in 2 and 3; in seed 4
    # neither gets there, and seed 5 has no partner.
    first = {seed: run([0, 100], [0, 0.2], (0.1, 0.3, 0.5)) for seed in range(4)} | {4: run([0, 9], [0, 0.1])}
    second = {seed: run([0, 200 + 100 * (seed > 1)], [0, 0.2]) for seed in range(4)} | {4: run([0, 9], [0, 0.1])}
    runs = {"a": first | {5: run([0], [0])}, "b": second}
    tests = {
        "a": {seed: outcome(4, 2) for seed in range(4)},
        "b": {seed: outcome(2, 2 * (seed > 1)) for seed in range(4)},
    }
    claims = [of("tokens", level=0.2), of("accuracy"), of("accuracy", "a", "c")]
    tokens, accuracy = judge_training(claims, "tiny", runs, tests, draws=400)
    assert tokens["figure"].value == pytest.approx(2.5)
    assert tokens["verdict"] == "reproduced"
    assert tokens["seeds"] == 4  # that tell anything
    assert json.loads(json.dumps([tokens, accuracy]))[0]["seeds"] == 4  # the page is written from JSON
    assert "to 0.2" in tokens["meaning"]
    assert accuracy["figure"].value == pytest.approx((0.5 + 0.25) / 2)  # .75 - .25 twice, .75 - .5 twice
    few = {name: {seed: some[seed] for seed in (0, 1, 4)} for name, some in (("a", first), ("b", second))}
    assert "fewer than 4 seeds" in judge_training([of("tokens", level=0.2)], "tiny", few, {}, draws=50)[0]["verdict"]
    (cached,) = judge_training([of("cached", "a", "a")], "tiny", {"a": {s: first[s] for s in range(4)}}, {}, draws=50)
    assert cached["figure"] == pytest.approx((0.4, 0.4, 0.4))
    assert cached["verdict"] == "reproduced"


def test_a_seed_in_which_neither_learnt_does_not_count():
    tests = {"a": {0: outcome(4, 0), 1: outcome(0, 0), 2: outcome(0, 1)}, "b": {s: outcome(0, 0) for s in range(3)}}
    judged = [
        judge_training([of("accuracy", level=level)], "tiny", {}, tests, draws=50)[0] for level in (0, 0.125, 0.6)
    ]
    assert [claim["seeds"] for claim in judged] == [3, 2, 0]
    assert [claim["figure"].value for claim in judged[:2]] == [0.125, (0.5 + 0.125) / 2]
    assert np.isnan(judged[2]["figure"].value)
    assert "fewer than 4 seeds" in judged[2]["verdict"]
    assert "ends at 0.125" in judged[1]["meaning"]


def rows(expansions, rewards, correct, tokens):
    return [{"expansions": expansions, "rewards": rewards, "correct": correct, "tokens": tokens}] * 2


def test_claims_on_searches_by_hand():
    searches = {
        "a": {0: rows(5.0, [1.0, 0.5], [1, 0], 100), 1: rows(4.0, [1.0, 0.5], [3, 1], 200)},
        "b": {0: rows(10.0, [0.0, -0.5], [1, 0], 200), 1: rows(4.0, [0.0, 0.5], [0, 1], 400)},
    }
    claims = [of("expansions"), of("reward"), of("solved")]
    expansions, reward, solved = judge_frozen(claims, "tiny", searches, draws=400)
    assert expansions["figure"].value == pytest.approx((2 + 1) / 2)
    assert reward["figure"].value == pytest.approx((1 + 0.5) / 2)
    assert solved["figure"].value == pytest.approx((2 + 4) / 2)  # .5 / 50 over .5 / 100 and 1 / 100 over .5 / 200


def test_what_tells_nothing_is_no_seed_and_what_is_missing_no_claim():
    nothing = {0: rows(0.0, [0.0], [0], 10)}
    expansions, solved = judge_frozen([of("expansions"), of("solved")], "tiny", {"a": nothing, "b": nothing}, draws=50)
    assert (expansions["seeds"], solved["seeds"]) == (0, 0)
    direct = judge_frozen([of("expansions")], "tiny", {"a": nothing, "b": {0: rows(3.0, [0.0], [0], 10)}}, draws=50)
    assert direct[0]["figure"].value == float("inf")
    old = {0: [{"expansions": 1.0, "correct": [1], "tokens": 10}]}
    assert judge_frozen([of("reward")], "tiny", {"a": old, "b": old}, draws=50) == []


def test_a_claim_may_be_of_some_settings():
    claim = dataclasses.replace(of("expansions"), settings=("sparse",))
    searches = {name: {0: rows(3.0, [0.0], [0], 10)} for name in "ab"}
    assert judge_frozen([claim], "plateau", searches, draws=50) == []
    assert len(judge_frozen([claim], "sparse", searches, draws=50)) == 1


def test_mistakes_in_claims_are_told():
    with pytest.raises(ValueError, match="measure='speed'"):
        of("speed")
    with pytest.raises(ValueError, match="give level"):
        of("tokens")
    with pytest.raises(ValueError, match="names no method of it"):
        dataclasses.replace(get_suite(), claims=(of("accuracy"),))
    ours = get_suite().ours
    with pytest.raises(ValueError, match="measure='reward' is not of kind='train'; choose one of accuracy, tokens"):
        dataclasses.replace(get_suite(), claims=(of("reward", ours, ours),))
    with pytest.raises(ValueError, match="names no setting of it"):
        dataclasses.replace(get_suite(), claims=(Claim("", "", ours, ours, "accuracy", settings=("moon",)),))


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
