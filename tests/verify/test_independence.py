"""A verdict depends on the two texts alone: not on what was asked before, nor on a library's state."""

import random
import sys

import mpmath
import pytest
import sympy
import sympy.core.random

from deepsearch_jax.verify import VerifierPool, symbolic
from deepsearch_jax.verify.judge import forget_answers, judge

QUESTIONS = (
    (r"(0,2)\cup(1,3)", "(0,3)"),
    ("x^2<4", "(-2,2)"),
    ("x^2<4", "(-2,2]"),
    (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}"),
    (r"\sum_{k=1}^{n} k", r"\frac{n(n+2)}{2}"),
    (r"\int_0^1 x dx", r"\frac12"),
    (r"\int_0^1 e^{x} dx", r"e-1"),
    (r"\lim_{x\to 0}\frac{\sin x}{x}", "1"),
    (r"\sqrt{8}", r"2\sqrt2"),
    (r"\sqrt{10^{40}+1}", "10^{20}"),
    (r"\cos 2x", r"1-2\sin^2 x"),
)


def _spoil(number):
    random.seed(number)
    sympy.core.random.seed(number)
    mpmath.mp.dps = (3, 15, 60)[number % 3]
    x, k = sympy.Symbol("x"), sympy.Symbol("k", integer=True, positive=True)
    sympy.simplify((x + number) ** 2 - x**2)
    sympy.Sum(k, (k, 1, 3 + number)).doit()


@pytest.fixture(autouse=True)
def _restore():
    dps, limit = mpmath.mp.dps, sys.getrecursionlimit()
    yield
    mpmath.mp.dps = dps
    sys.setrecursionlimit(limit)


def test_libraries_left_in_any_state_change_nothing():
    answers = []
    for number in range(3):
        verdicts = []
        for pred, gold in random.Random(number).sample(QUESTIONS, len(QUESTIONS)):
            _spoil(number)
            forget_answers()
            verdicts.append((pred, gold, judge(pred, gold, symbolic.set_equal)))
        answers.append(sorted(verdicts))
    assert answers[0] == answers[1] == answers[2]
    assert {verdict for *_, verdict in answers[0]} == {True, False}


@pytest.mark.parametrize("question", [("x^2<4", "(-2,2)"), (r"\int_0^1 x dx", r"\frac12")])
def test_each_symbolic_question_begins_in_a_fresh_state(question, monkeypatch):
    seen = []
    for number in (1, 2):
        _spoil(number)
        sys.setrecursionlimit(700 + 10 * number)

        def look(*_, **__):
            seen.append((random.random(), sympy.core.random.random(), mpmath.mp.dps, sys.getrecursionlimit()))
            raise NotImplementedError

        with monkeypatch.context() as patch:
            patch.setattr(symbolic, "to_set", look)
            patch.setattr(symbolic, "_read_side", look)
            forget_answers()
            assert judge(*question, symbolic.set_equal) is False
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_the_order_of_questions_changes_no_verdict_of_a_pool():
    asked = [(f"\\boxed{{{pred}}}", gold) for pred, gold in QUESTIONS]
    with VerifierPool(num_workers=1) as pool:
        forward = pool.score(asked)
        backward = pool.score(asked[::-1])[::-1]
    assert [verdict.status for verdict in forward] == [verdict.status for verdict in backward]


def test_the_depth_of_the_callers_stack_changes_no_verdict():
    """Trees are limited in height, so that walking them never meets the recursion limit."""
    answers = ["+".join(["x"] * 110), "+".join(["x"] * 400), "x" * 700, "-" * 29 + "5", "(" * 29 + "5" + ")" * 29]

    def deep(levels, question):
        return judge(*question) if levels == 0 else deep(levels - 1, question)

    for answer in answers:
        for gold in ("5", "(1,2)", r"\{1,2\}", "x=3", "110x"):
            verdicts = []
            for levels in (0, 300):
                forget_answers()
                verdicts.append(deep(levels, (answer, gold)))
            assert verdicts[0] == verdicts[1], (answer[:20], gold)
