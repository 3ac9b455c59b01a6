"""Are two formulas the same? Exact fractions first, then numbers at sample points.

`quick` is cheap enough for the caller's process: it decides what fractions and doubles can decide and answers None for
what is equal to double precision. `thorough` settles the rest with many digits and belongs in a worker.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import mpmath

from deepsearch_jax.verify.parser import Node
from deepsearch_jax.verify.values import (
    Evaluator,
    NotNumeric,
    TooLarge,
    Undefined,
    exact,
    has_op,
    sample_points,
    symbols,
)

Verdict3 = bool | None  # None: not decided here
FLOAT_TOLERANCE = 1e-7  # relative to the largest intermediate number; a larger difference is no rounding error
MIN_DIGITS = 60
MAX_DIGITS = 4000
NUM_POINTS = 8
_NO_VALUE = (Undefined, TooLarge, OverflowError, ZeroDivisionError, ValueError, TypeError, AttributeError, KeyError)


def _exact_pair(a: Node, b: Node) -> Verdict3:
    """Equality by fractions; None unless both are rational. A number too large to write down equals only itself."""
    values = []
    for node in (a, b):
        try:
            values.append(exact(node))
        except (TooLarge, Undefined):
            return a == b
    if values[0] is None or values[1] is None:
        return None
    return values[0] == values[1]


def _values_at(
    a: Node, b: Node, context: Any, point: dict[str, Fraction], is_complex: bool
) -> tuple[Any, Any, float] | None:
    """Both values at one point and the scale of their rounding error; None where either has no value."""
    evaluator = Evaluator(context, point, is_complex=is_complex)
    try:
        return evaluator.value(a), evaluator.value(b), evaluator.largest
    except NotNumeric:
        raise
    except _NO_VALUE:
        return None


def _samples(a: Node, b: Node, context: Any) -> Iterator[tuple[Any, Any, float]]:
    """Pairs of values at common points: real points first, whole numbers next, the complex branch last."""
    names = symbols(a) | symbols(b)
    modes = [(False, False), (True, False), (False, True)]
    if has_op(a, "i", "cis", "arg") or has_op(b, "i", "cis", "arg"):
        modes = [(False, True)]
    for whole, is_complex in modes:
        found = 0
        for point in sample_points(names, NUM_POINTS if names else 1, whole=whole):
            values = _values_at(a, b, context, point, is_complex)
            if values is not None:
                found += 1
                yield values
        if found >= (2 if names else 1):
            return


def quick(a: Node, b: Node) -> Verdict3:
    """True or False where fractions or doubles decide; None where the two agree to double precision or have no value
    there. Raises NotNumeric for texts, sets and the like."""
    if a == b:
        return True
    verdict = _exact_pair(a, b)
    if verdict is not None:
        return verdict
    for x, y, largest in _samples(a, b, mpmath.fp):
        if abs(x - y) > FLOAT_TOLERANCE * largest:
            return False
    return None


def _digits_needed(node: Node) -> int:
    """Digits of the constants in a tree: what an evaluation must carry so that nothing small is lost beside them."""
    if node.op == "num":
        return len(str(node.args[0].numerator)) + len(str(node.args[0].denominator))
    digits = sum(_digits_needed(arg) for arg in node.args if isinstance(arg, Node))
    if node.op == "pow":
        try:
            value = exact(node)
        except ArithmeticError:
            return digits
        digits += 0 if value is None else int(0.31 * max(value.numerator, value.denominator).bit_length())
        exponent = exact(node.args[1])
        if value is None and exponent is not None:
            digits += min(int(abs(exponent)), MAX_DIGITS)
    return digits


def _context(a: Node, b: Node) -> tuple[Any, Any]:
    context = mpmath.MPContext()
    context.dps = min(MIN_DIGITS + 2 * (_digits_needed(a) + _digits_needed(b)), MAX_DIGITS)
    return context, context.mpf(10) ** (-context.dps * 3 // 4)


def thorough(a: Node, b: Node) -> bool:
    """Equality to at least MIN_DIGITS digits at every common sample point; False if there is no such point.

    The digits grow with those of the constants, so that a number near another is told from it: no rounding is
    forgiven. Two formulas that agree to this precision at random rational points and still differ would have to be
    built for it.
    """
    if a == b:
        return True
    verdict = _exact_pair(a, b)
    if verdict is not None:
        return verdict
    context, tolerance = _context(a, b)
    agreed = 0
    for x, y, largest in _samples(a, b, context):
        if abs(x - y) > tolerance * largest:
            return False
        agreed += 1
    return agreed >= (2 if symbols(a) | symbols(b) else 1)


def proportional(a: Node, b: Node, *, positive: bool, is_thorough: bool) -> Verdict3:
    """Is a = c b for one constant c != 0 (c > 0 if `positive`)? That makes `a = 0` and `b = 0` the same equation."""
    if symbols(a) != symbols(b) or not symbols(a):
        return False
    context, tolerance = _context(a, b) if is_thorough else (mpmath.fp, FLOAT_TOLERANCE)
    ratio, agreed = None, 0
    for x, y, largest in _samples(a, b, context):
        if abs(x) <= tolerance * largest or abs(y) <= tolerance * largest:
            if (abs(x) <= tolerance * largest) != (abs(y) <= tolerance * largest):
                return False
            continue
        if ratio is None:
            ratio = x / y
            if positive and not context.re(ratio) > 0:
                return False
        elif abs(x - ratio * y) > 100 * tolerance * largest * max(1, abs(ratio)):
            return False
        agreed += 1
    if not is_thorough:
        return None
    return agreed >= 2


Decide = Callable[[Node, Node], Verdict3]
