"""What an expression is worth: exactly as a fraction, or numerically in any precision. Costs are bounded beforehand."""

import hashlib
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from deepsearch_jax.verify.parser import Node

MAX_BITS = 8192  # of a numerator or denominator; larger numbers are compared as written
MAX_FACTORIAL = 1000


class TooLarge(ArithmeticError):
    """A number too big to be written out; it is never computed."""


class Undefined(ArithmeticError):
    """Division by zero, a root or logarithm outside the reals: no value at this point."""


class NotNumeric(TypeError):
    """A text, set, relation or the like: it has no numeric value."""


def _checked(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise TooLarge
    return value


def _integer(value: Fraction | None, limit: int) -> int | None:
    if value is None or value.denominator != 1:
        return None
    if abs(value.numerator) > limit:
        raise TooLarge
    return value.numerator


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if base in (0, 1) or exponent == 0:
        if base == 0 and exponent <= 0:
            raise Undefined  # 0^0 is left open as well
        return Fraction(1) if exponent == 0 else base
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits > 1 and bits * abs(exponent) > MAX_BITS:
        raise TooLarge
    if exponent.denominator != 1:
        return _root(base, exponent.denominator, exponent.numerator)
    return base**exponent.numerator


def _root(base: Fraction, degree: int, power: int = 1) -> Fraction | None:
    """base^(power/degree) if it is rational, else None. Only real roots of non-negative numbers."""
    if base < 0 or degree > 64:
        return None
    roots = []
    for part in (base.numerator, base.denominator):
        guess = math.isqrt(part) if degree == 2 else round(part ** (1 / degree)) if part < 2**52 else 0
        if guess**degree != part:
            return None
        roots.append(guess)
    return Fraction(*roots) ** power if roots[0] or power > 0 else None


def _real_root(base: Fraction, degree: int) -> Fraction | None:
    if base < 0 and degree % 2 == 1:
        root = _root(-base, degree)
        return None if root is None else -root
    return _root(base, degree)


def exact(node: Node) -> Fraction | None:
    """The rational value of a constant expression, or None if it is irrational, not real or has variables.

    Raises:
      TooLarge: an intermediate number has more than MAX_BITS bits; nothing of that size is ever computed.
      Undefined: there is a division by zero.
    """
    op, args = node
    if op == "num":
        return _checked(args[0])
    if op == "const" or op not in _EXACT_OPS:
        return None
    values = [exact(arg) for arg in args if isinstance(arg, Node)]
    if any(value is None for value in values):
        return None
    value = _EXACT_OPS[op](args, *values)
    return None if value is None else _checked(value)


def _divide(_: Any, top: Fraction, bottom: Fraction) -> Fraction:
    if bottom == 0:
        raise Undefined
    return top / bottom


def _modulo(_: Any, left: Fraction, right: Fraction) -> Fraction:
    if right == 0:
        raise Undefined
    return left % right


def _factorial(_: Any, value: Fraction) -> Fraction | None:
    n = _integer(value, MAX_FACTORIAL)
    return None if n is None or n < 0 else Fraction(math.factorial(n))


def _binomial(_: Any, top: Fraction, bottom: Fraction) -> Fraction | None:
    n, k = _integer(top, 10**6), _integer(bottom, 10**6)
    if n is None or k is None or n < 0 or k < 0:
        return None
    if min(k, n - k) * max(n, 1).bit_length() > MAX_BITS:
        raise TooLarge
    return Fraction(math.comb(n, k))


def _call(args: Any, *values: Fraction) -> Fraction | None:
    name = args[0]
    if name in ("floor", "ceil", "abs", "sign", "conjugate", "Re", "Im") and len(values) == 1:
        x = values[0]
        unary: dict[str, Callable[[], Any]] = {
            "floor": lambda: math.floor(x),
            "ceil": lambda: math.ceil(x),
            "abs": lambda: abs(x),
            "sign": lambda: (x > 0) - (x < 0),
            "Im": lambda: 0,
        }
        return Fraction(unary.get(name, lambda: x)())
    if name in ("max", "min") and values:
        return (max if name == "max" else min)(values)
    if name in ("gcd", "lcm") and values and all(value.denominator == 1 for value in values):
        return Fraction((math.gcd if name == "gcd" else math.lcm)(*(value.numerator for value in values)))
    return None


_EXACT_OPS: dict[str, Callable[..., Fraction | None]] = {
    "neg": lambda _, x: -x,
    "add": lambda _, x, y: x + y,
    "mul": lambda _, x, y: x * y,
    "div": _divide,
    "pow": lambda _, x, y: _power(x, y),
    "root": lambda _, x, y: _real_root(x, int(y)) if y.denominator == 1 and 1 < y <= 64 else None,
    "percent": lambda _, x: x / 100,
    "mod": _modulo,
    "factorial": _factorial,
    "binom": _binomial,
    "call": _call,
}


def symbols(node: Node) -> set[str]:
    """Names of the variables in a tree."""
    if node.op == "sym":
        return {node.args[0]}
    found: set[str] = set()
    for arg in node.args:
        if isinstance(arg, Node):
            found |= symbols(arg)
        elif isinstance(arg, tuple):
            for item in arg:
                found |= symbols(item) if isinstance(item, Node) else set()
    return found


def has_op(node: Node, *ops: str) -> bool:
    """Whether any node below (or this one) is of one of these kinds; constants and calls also match by name."""
    if node.op in ops or (node.op in ("const", "call") and node.args[0] in ops):
        return True
    for arg in node.args:
        if isinstance(arg, Node):
            if has_op(arg, *ops):
                return True
        elif isinstance(arg, tuple) and any(isinstance(item, Node) and has_op(item, *ops) for item in arg):
            return True
    return False


class Evaluator:
    """Numeric value of a tree at a point, with `context` an mpmath context (fast floats or many digits).

    In the real mode a root or logarithm of a negative number has no value (`Undefined`), so two formulas are compared
    where both are real; expressions with the imaginary unit use the complex mode. `largest` is the biggest number met
    on the way: what a rounding error is measured against.
    """

    def __init__(self, context: Any, point: Mapping[str, Fraction], *, is_complex: bool):
        self.context = context
        self.point = point
        self.is_complex = is_complex
        self.largest = 1.0

    def value(self, node: Node) -> Any:
        op, args = node
        method = getattr(self, "op_" + op, None)
        if method is None:
            raise NotNumeric(op)
        result = method(*args)
        size = abs(result)
        if not size < self.context.inf:
            raise Undefined
        self.largest = max(self.largest, size)
        return result

    def op_num(self, value: Fraction) -> Any:
        _checked(value)
        return self.context.mpf(value.numerator) / value.denominator

    def op_sym(self, name: str) -> Any:
        return self.op_num(self.point[name])

    def op_const(self, name: str) -> Any:
        if name == "pi":
            return +self.context.pi
        if name == "e":
            return +self.context.e
        if name == "i":
            return self.context.mpc(0, 1)
        raise NotNumeric(name)

    def op_neg(self, x: Node) -> Any:
        return -self.value(x)

    def op_add(self, x: Node, y: Node) -> Any:
        return self.value(x) + self.value(y)

    def op_mul(self, x: Node, y: Node) -> Any:
        return self.value(x) * self.value(y)

    def op_div(self, x: Node, y: Node) -> Any:
        bottom = self.value(y)
        if bottom == 0:
            raise Undefined
        return self.value(x) / bottom

    def op_percent(self, x: Node) -> Any:
        return self.value(x) / 100

    def op_degree(self, x: Node) -> Any:
        return self.value(x) * self.context.pi / 180

    def op_pow(self, x: Node, y: Node) -> Any:
        exponent = self.value(y)
        base = self.value(x)
        if not self.is_complex and base < 0 and exponent != int(exponent):
            # An odd root written as a fractional exponent is left open by convention: skip such points.
            raise Undefined
        if base == 0:
            if self.context.re(exponent) <= 0:
                raise Undefined
            return base
        if abs(exponent) > 1e7 or abs(exponent) * abs(self.context.log(abs(base))) > 1e5:
            raise TooLarge
        if self.context.im(exponent) == 0 and exponent == int(self.context.re(exponent)):
            return base ** int(self.context.re(exponent))
        return self.context.power(base, exponent)

    def op_root(self, x: Node, degree: Node) -> Any:
        radicand, n = self.value(x), self.value(degree)
        if n == 0:
            raise Undefined
        if self.context.im(radicand) == 0 and self.context.re(radicand) < 0:
            if n == int(n) and int(n) % 2 == 1 and not self.is_complex:
                return -self.context.power(-radicand, 1 / n)
            if not self.is_complex:
                raise Undefined
        return self.context.power(radicand, 1 / n) if radicand != 0 else radicand

    def op_mod(self, x: Node, y: Node) -> Any:
        divisor = self.value(y)
        if divisor == 0 or self.is_complex:
            raise Undefined
        return self.value(x) % divisor

    def op_factorial(self, x: Node) -> Any:
        n = self.value(x)
        if self.is_complex or n < 0 or n > 300:
            raise Undefined if n < 0 else TooLarge
        return self.context.gamma(n + 1)

    def op_binom(self, x: Node, y: Node) -> Any:
        n, k = self.value(x), self.value(y)
        if self.is_complex or abs(n) > 300 or abs(k) > 300:
            raise TooLarge
        return self.context.binomial(n, k)

    def op_call(self, name: str, *args: Node) -> Any:
        if name in ("det", "norm") or not args:
            raise NotNumeric(name)
        values = [self.value(arg) for arg in args]
        if name in ("max", "min"):
            return (max if name == "max" else min)(values)
        if len(values) != 1 or name in ("gcd", "lcm"):
            raise NotNumeric(name)
        x = values[0]
        c = self.context
        if name in ("ln", "log10"):
            if x == 0 or (not self.is_complex and x < 0):
                raise Undefined
            return c.log(x) if name == "ln" else c.log(x) / c.log(10)
        simple = {"abs": abs, "conjugate": c.conj, "Re": c.re, "Im": c.im, "floor": c.floor, "ceil": c.ceil}
        if name in simple:
            return c.mpf(1) * simple[name](x)
        if name == "arg":
            return c.arg(x)
        if name == "sign":
            return c.mpf((x > 0) - (x < 0))
        if name == "cis":
            return c.cos(x) + c.mpc(0, 1) * c.sin(x)
        inverse, base = name.startswith("arc"), name.removeprefix("arc")
        function = getattr(c, ("a" if inverse else "") + base)
        if name in ("arcsin", "arccos") and not self.is_complex and abs(x) > 1:
            raise Undefined
        if name in ("arccosh", "arctanh") and not self.is_complex and (x < 1 if name == "arccosh" else abs(x) >= 1):
            raise Undefined
        if x == 0 and name in ("cot", "csc", "coth", "csch", "arccot"):
            raise Undefined
        return function(x)


def sample_points(names: set[str], num_points: int, *, whole: bool) -> list[dict[str, Fraction]]:
    """Points that depend on nothing but the names: rationals of both signs, or positive whole numbers."""
    points = []
    for index in range(num_points):
        point = {}
        for name in sorted(names):
            raw = int.from_bytes(hashlib.blake2b(f"{index}/{name}".encode(), digest_size=6).digest(), "big")
            if whole:
                point[name] = Fraction(2 + raw % 17)
            else:
                size = Fraction(raw % 2903 + 1, 997)  # within (0, 3)
                point[name] = -size if (raw >> 32) % 3 == 0 else size
        points.append(point)
    return points
