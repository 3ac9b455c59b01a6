"""The sympy side, for worker processes: equality of sets of reals, and the library parser for what our grammar lacks.

No text ever reaches an evaluating function: our own tree is turned into sympy objects one by one; the library is used
with its LaTeX grammar only, and while it runs sympy's own reader, which calls eval even for the numerals that grammar
finds, is replaced by one that reads numerals. Costs are bounded before sympy sees a number.
"""

# ruff: noqa: SIM905  (tables of words read better as one text)
import contextlib
import random
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import sympy
import sympy.core.random

# simplify imports the units late, and they read their names as text: too late once that is refused.
import sympy.physics.units
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from latex2sympy2_extended.math_normalization import NormalizationConfig
from sympy.parsing import sympy_parser

from deepsearch_jax.verify.parser import Node, parse
from deepsearch_jax.verify.text import LIBRARY_WORDS
from deepsearch_jax.verify.values import NotNumeric, TooLarge, exact, symbols

_NUMBER_SETS = {
    "R": sympy.S.Reals,
    "Z": sympy.S.Integers,
    "N": sympy.S.Naturals,
    "Q": sympy.S.Rationals,
    "C": sympy.S.Complexes,
}
_RELATIONS = {"<": sympy.Lt, ">": sympy.Gt, "<=": sympy.Le, ">=": sympy.Ge, "!=": sympy.Ne, "=": sympy.Eq}
_CALLS = {
    "ln": sympy.log,
    "log10": lambda x: sympy.log(x, 10),
    "abs": sympy.Abs,
    "floor": sympy.floor,
    "ceil": sympy.ceiling,
    "max": sympy.Max,
    "min": sympy.Min,
    "sign": sympy.sign,
    **{name: getattr(sympy, name) for name in "sin cos tan cot sec csc sinh cosh tanh coth".split()},
    **{"arc" + name: getattr(sympy, "a" + name) for name in "sin cos tan cot sinh cosh tanh".split()},
}
_RECURSION_LIMIT = sys.getrecursionlimit()
MAX_TERMS = 2000  # of a finite sum or product
MAX_EXPONENT = 5000


def to_sympy(node: Node) -> Any:
    """A tree as a sympy expression over real variables. Raises TooLarge before an expensive number is made."""
    try:
        value = exact(node)
    except ArithmeticError as error:
        raise TooLarge from error
    if value is not None:
        return sympy.Rational(value.numerator, value.denominator)
    op, args = node
    if op == "sym":
        return sympy.Symbol(args[0], real=True)
    if op == "const":
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "infty": sympy.oo}[args[0]]
    if op == "call" and args[0] in _CALLS:
        return _CALLS[args[0]](*(to_sympy(arg) for arg in args[1:]))
    builders: dict[str, Callable[..., Any]] = {
        "neg": lambda x: -x,
        "add": lambda x, y: x + y,
        "mul": lambda x, y: x * y,
        "div": lambda x, y: x / y,
        "pow": lambda x, y: x**y,
        "root": lambda x, y: sympy.root(x, y),
        "degree": lambda x: x * sympy.pi / 180,
        "percent": lambda x: x / 100,
    }
    if op not in builders:
        raise NotNumeric(op)
    return builders[op](*(to_sympy(arg) for arg in args))


def to_set(node: Node) -> sympy.Set:
    """A set of reals in the forms of `compare._as_set`."""
    op, args = node
    if op == "interval":
        return sympy.Interval(to_sympy(args[0]), to_sympy(args[1]), args[2], args[3])
    if op == "set":
        return sympy.FiniteSet(*(to_sympy(arg) for arg in args))
    if op == "numbers":
        return _NUMBER_SETS[args[0]]
    if op == "union":
        return sympy.Union(to_set(args[0]), to_set(args[1]))
    if op == "intersection":
        return sympy.Intersection(to_set(args[0]), to_set(args[1]))
    if op == "difference":
        return sympy.Complement(to_set(args[0]), to_set(args[1]))
    if op == "solutions":
        return _solutions(args[0])
    if node == Node("const", ("emptyset",)):
        return sympy.S.EmptySet
    raise NotNumeric(op)


def _solutions(relation: Node) -> sympy.Set:
    operators, sides = relation.args[0], [to_sympy(side) for side in relation.args[1:]]
    (name,) = symbols(relation)
    found: sympy.Set = sympy.S.Reals
    for operator, left, right in zip(operators, sides, sides[1:]):
        condition = _RELATIONS[operator](left, right)
        if condition in (True, False):
            part: sympy.Set = sympy.S.Reals if condition else sympy.S.EmptySet
        else:
            part = sympy.solve_univariate_inequality(condition, sympy.Symbol(name, real=True), relational=False)
        found = sympy.Intersection(found, part)
    return found


def _forget() -> None:
    """Puts sympy and mpmath into the state of a fresh process: what one answer left behind (cached expressions, random
    numbers, precision) must not reach the verdict on the next."""
    sympy.core.cache.clear_cache()
    sympy.core.random.seed(0)
    random.seed(0)
    mpmath.mp.dps = 15
    sys.setrecursionlimit(_RECURSION_LIMIT)


def set_equal(pred: Node, gold: Node) -> bool:
    """Whether two sets of reals are the same; what sympy cannot settle is not."""
    _forget()
    try:
        a, b = to_set(pred), to_set(gold)
        return bool(a == b) or sympy.SymmetricDifference(a, b).is_empty is True
    except (ArithmeticError, NotNumeric, NotImplementedError, ValueError, TypeError, KeyError, AttributeError):
        return False


# What our grammar lacks ----------------------------------------------------------------------------------------------
def _is_affordable(expression: Any) -> bool:
    """No huge powers, factorials, or long sums anywhere in an unevaluated tree."""
    for part in sympy.preorder_traversal(expression):
        if isinstance(part, sympy.Pow) and part.exp.is_number:
            exponent = part.exp
            if not (exponent.is_Atom or exponent.is_Mul) or abs(complex(exponent.evalf(5))) > MAX_EXPONENT:
                return False
        elif isinstance(part, sympy.factorial | sympy.binomial):
            if any(arg.is_number and not abs(complex(arg.evalf(5))) < 200 for arg in part.args):
                return False
        elif isinstance(part, sympy.Sum | sympy.Product):
            for limit in part.limits:
                if len(limit) != 3:
                    return False
                span = limit[2] - limit[1]
                if span.is_number and span.is_finite and not abs(complex(span.evalf(5))) < MAX_TERMS:
                    return False
        elif isinstance(part, sympy.Integer) and abs(int(part)).bit_length() > 4096:
            return False
    return True


_NUMERAL = re.compile(r"\d+(?:\.\d*)?|\.\d+")


def _read_numeral(text: object, *_: object, **__: object) -> Any:
    """Stands in for sympy's expression reader, which evaluates its text: numerals become exact fractions, the rest is
    refused. The library hands every numeral it meets to that reader."""
    if not (isinstance(text, str) and _NUMERAL.fullmatch(text.strip())):
        raise PermissionError("text is not evaluated here")
    return sympy.Rational(text.strip().rstrip("."))


@contextlib.contextmanager
def no_text_evaluation() -> Iterator[None]:
    """While active, nothing in sympy can turn text into code (`sympify` and `Number` of a string go through here)."""
    original = sympy_parser.parse_expr
    sympy_parser.parse_expr = _read_numeral
    try:
        yield
    finally:
        sympy_parser.parse_expr = original


def _read_library(text: str) -> Any:
    """An expression by the library's LaTeX grammar, its free variables real and its e and i the constants."""
    expression = latex2sympy(
        text,
        normalization_config=NormalizationConfig(malformed_operators=True, nits=True, boxed="none"),
        conversion_config=ConversionConfig(lowercase_symbols=False),
    )
    if not isinstance(expression, sympy.Expr) or expression.has(sympy.Float):
        raise NotNumeric("no expression")
    constants = {"e": sympy.E, "i": sympy.I}
    return expression.xreplace(
        {symbol: constants.get(symbol.name, sympy.Symbol(symbol.name, real=True)) for symbol in expression.free_symbols}
    )


def _read_side(text: str) -> Any:
    return _read_library(text) if LIBRARY_WORDS.search(text) else to_sympy(parse(text))


def library_equal(pred: str, gold: str) -> bool:
    """Equality of two answers with sums, products, integrals or limits, read by the library's LaTeX grammar."""
    _forget()
    with no_text_evaluation():
        try:
            sides = [_read_side(text) for text in (pred, gold)]
        except Exception:  # the generated parser raises bare Exception on a syntax error
            return False
        if not all(_is_affordable(side) for side in sides):
            return False
        if sides[0] == sides[1]:
            return True
        difference = sides[0].doit() - sides[1].doit()
        if difference == 0:
            return True
        if not difference.free_symbols:
            size = abs(difference.evalf(60, maxn=400))
            return bool(size.is_number and size < sympy.Float("1e-50", 60))
        return bool(sympy.simplify(difference) == 0)
