"""Limits that must hold by themselves, not only because a later guard catches what passes."""

from fractions import Fraction

import pytest

from deepsearch_jax.verify.leaves import quick, thorough
from deepsearch_jax.verify.parser import ParseError, parse
from deepsearch_jax.verify.values import MAX_BITS, TooLarge, Undefined, exact


@pytest.mark.parametrize(
    "text", [f"2^{{{MAX_BITS + 1}}}", "1001!", r"\binom{100000}{50000}", "2^{4000}*2^{4000}*2^{4000}"]
)
def test_a_number_beyond_the_limit_is_refused(text):
    with pytest.raises(TooLarge):
        exact(parse(text))


def test_exact_values_by_hand():
    assert exact(parse(r"\frac{3}{4}+0.25")) == 1
    assert exact(parse(r"3\frac12")) == Fraction(7, 2)
    assert exact(parse(r"\sqrt{\frac{9}{4}}")) == Fraction(3, 2)
    assert exact(parse(r"0.1\overline{6}")) == Fraction(1, 6)
    assert exact(parse(r"\sqrt2")) is None
    with pytest.raises(Undefined):
        exact(parse(r"\frac{1}{0}"))


def test_nesting_is_limited_by_the_grammar():
    assert exact(parse("(" * 20 + "5" + ")" * 20)) == 5
    with pytest.raises(ParseError, match="deeply"):
        parse("(" * 40 + "5" + ")" * 40)


def test_doubles_leave_open_what_digits_decide():
    near = parse("3.14159265358979"), parse(r"\pi")
    assert quick(*near) is None
    assert thorough(*near) is False
    same = parse(r"\sqrt{5+2\sqrt6}"), parse(r"\sqrt2+\sqrt3")
    assert quick(*same) is None
    assert thorough(*same) is True
    assert thorough(parse(r"\sqrt{10^{40}+1}"), parse("10^{20}")) is False
    # Ramanujan's constant turned round: pi to 30 digits from constants of few digits, and still not pi.
    assert thorough(parse(r"\frac{\ln(640320^3+744)}{\sqrt{163}}"), parse(r"\pi")) is False
