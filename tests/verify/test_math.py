"""Mode `math` on labelled cases: the project's own file always, the shared 200 where they are."""

import collections
import json
import pathlib

import pytest

from deepsearch_jax.verify import Status, VerifierPool, score_math
from deepsearch_jax.verify.__main__ import read_cases

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"


def _wrong(cases):
    with VerifierPool() as pool:
        verdicts = pool.score((case["prediction"], case["ground_truth"]) for case in cases)
    return {
        case["id"]: f"{case['category']}: {case['prediction']!r} against {case['ground_truth']!r}: {verdict.status}"
        for case, verdict in zip(cases, verdicts)
        if (verdict.status is Status.CORRECT) != case["expected"]
    }


def test_own_cases_but_the_known_misses():
    """The labels were written before the code ran on them; what it still misses is named in the file.

    Sets `first` and `second` have guided fixes since; `third` has not: its first run stands (96 of 102)."""
    cases = read_cases(str(DATA / "verifier_extra.jsonl"))
    known = {case["id"] for case in cases if "known_miss" in case}
    assert len(collections.Counter(case["category"] for case in cases)) == 18
    wrong = _wrong(cases)
    assert set(wrong) == known, json.dumps(wrong, indent=1)


def test_shared_cases(shared_dir):
    cases = read_cases(str(shared_dir / "data" / "verifier_cases.jsonl"))
    wrong = _wrong(cases)
    assert len(wrong) <= 4, json.dumps(wrong, indent=1)


@pytest.mark.parametrize("gold", ["0", "7", r"\frac{1}{2}", "x+1", "(1,2)", r"\{1,2\}", "yes", "1,2,5", r"[0,\infty)"])
def test_nothing_stands_for_everything(gold):
    """No universal answer: a reward that can be had without solving is found by training."""
    with VerifierPool(num_workers=1) as pool:
        for answer in (
            "",
            " ",
            "{}",
            "x",
            "n",
            r"\text{answer}",
            r"\mathbb{R}",
            r"\infty",
            "?",
            "...",
            r"\ldots",
            "=",
            "*",
        ):
            if answer == gold:
                continue
            assert pool.submit(f"\\boxed{{{answer}}}", gold).result().score == 0.0, answer


def test_one_call():
    assert score_math(r"\boxed{\frac{2}{4}}", "0.5").score == 1.0
    assert score_math(r"\boxed{\sqrt{8}}", r"2\sqrt{2}").status is Status.CORRECT
