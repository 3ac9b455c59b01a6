"""Shapes of parsed answers and rewrites between them: lists, names, units, signs, matrices, sets of reals."""

from collections.abc import Sequence
from typing import Any

from deepsearch_jax.verify.parser import ZERO, Node
from deepsearch_jax.verify.values import has_op, symbols

INFINITY = Node("const", ("infty",))
MINUS_INFINITY = Node("neg", (INFINITY,))
REALS = Node("numbers", ("R",))
FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
SET_KINDS = frozenset(("interval", "union", "intersection", "difference", "builder", "numbers"))


def items_of(node: Node) -> tuple[Node, ...]:
    return node.args if node.op in ("list", "set") else () if node == Node("const", ("emptyset",)) else (node,)


def parts_of(node: Node) -> tuple[Node, ...]:
    return parts_of(node.args[0]) + parts_of(node.args[1]) if node.op == "union" else (node,)


def is_relation(node: Node) -> bool:
    return node.op in ("relation", "modulo")


def is_plain(node: Node) -> bool:
    """No set of a continuum: a number, a finite list or set, a tuple, an equation."""
    if node.op == "relation":
        return not set(node.args[0]) <= {"<", ">", "<=", ">=", "!=", "in"}
    if node.op in ("list", "set"):
        return all(is_plain(item) for item in node.args)
    return node.op not in SET_KINDS


def is_equation(node: Node) -> bool:
    return node.op == "relation" and set(node.args[0]) == {"="}


def is_wordy(node: Node) -> bool:
    return is_equation(node) and has_op(node.args[1], "text")


def is_name(node: Node) -> bool:
    """What may stand on the left of an answer: x, y', a_n, f(x), P(A), |AB|, dy/dx, (x, y), a word."""
    if node.op in ("sym", "text"):
        return True
    if node.op == "mul":
        left, right = node.args
        if left.op == "text" or right.op == "text":
            return True
        return left.op == "sym" and right.op in ("sym", "num", "list", "tuple", "relation")
    if node.op == "div":
        return all(arg.op == "mul" and Node("sym", ("d",)) in arg.args for arg in node.args)
    if node.op == "call":
        return node.args[0] in ("abs", "norm") and bool(symbols(node.args[1]))
    return node.op == "tuple" and all(arg.op == "sym" for arg in node.args)


def split_unit(node: Node) -> tuple[Node, str]:
    if node.op == "unit":
        inner, outer_unit = split_unit(node.args[0])
        return inner, outer_unit or node.args[1]
    if node.op in ("percent", "degree"):
        return node.args[0], "percent" if node.op == "percent" else "deg"
    if node.op == "neg" and node.args[0].op in ("unit", "percent", "degree"):
        inner, unit = split_unit(node.args[0])
        return Node("neg", (inner,)), unit
    return node, ""


def without_approximation(node: Node) -> Node:
    """Keeps the exact side of "sqrt(2) = ... ~ 1.414"; "x ~ 5" is read as x = 5."""
    if node.op == "list":
        return Node("list", tuple(without_approximation(item) for item in node.args))
    if node.op != "relation" or not {"approx", "sim"} & set(node.args[0]):
        return node
    operators, operands = node.args[0], node.args[1:]
    cut = min(operators.index(name) for name in ("approx", "sim") if name in operators)
    if cut == 0:
        return Node("relation", (("=",), *operands[:2])) if is_name(operands[0]) else operands[0]
    return Node("relation", (operators[:cut], *operands[: cut + 1]))


def spread_signs(node: Node) -> Node:
    """`\\pm` gives two solutions, all its signs taken together; `\\mp` takes the opposite ones."""
    if not has_op(node, "pm", "mp"):
        return node
    if node.op in ("list", "set"):
        spread = [spread_signs(item) for item in node.args]
        return Node(node.op, tuple(item for part in spread for item in (part.args if part.op == "list" else (part,))))
    return Node("list", (choose_sign(node, False), choose_sign(node, True)))


def choose_sign(node: Node, is_minus: bool) -> Node:
    def chosen(arg: Any) -> Any:
        if isinstance(arg, Node):
            return choose_sign(arg, is_minus)
        return tuple(chosen(item) for item in arg) if isinstance(arg, tuple) else arg

    args = tuple(chosen(arg) for arg in node.args)
    if node.op in ("pm", "mp"):
        right = args[1] if (node.op == "pm") != is_minus else Node("neg", (args[1],))
        return right if args[0] == ZERO else Node("add", (args[0], right))
    return Node(node.op, args)


def fold_matrix(node: Node) -> Node:
    """A number times a matrix is the matrix of products; a small determinant is written out."""
    if node.op in ("mul", "div", "neg"):
        folded = tuple(fold_matrix(arg) for arg in node.args)
        which = [index for index, arg in enumerate(folded) if arg.op == "matrix"]
        if which == [0] or (which == [1] and node.op == "mul"):
            rest = [arg for index, arg in enumerate(folded) if index not in which]

            def entry(item: Node) -> Node:
                return Node(node.op, (item, *rest))

            return Node("matrix", tuple(tuple(entry(item) for item in row) for row in folded[which[0]].args))
    if node.op == "call" and node.args[0] == "det" and node.args[1].op == "matrix":
        rows = node.args[1].args
        return determinant(rows) if len(rows) == len(rows[0]) <= 4 else node
    return node


def determinant(rows: Sequence[Sequence[Node]]) -> Node:
    if len(rows) == 1:
        return rows[0][0]
    total = ZERO
    for column, entry in enumerate(rows[0]):
        minor = determinant([[*row[:column], *row[column + 1 :]] for row in rows[1:]])
        term = Node("mul", (entry, minor))
        total = Node("add", (total, Node("neg", (term,)) if column % 2 else term))
    return total


def as_open_interval(node: Node) -> Node:
    return Node("interval", (*node.args, True, True)) if node.op == "tuple" and len(node.args) == 2 else node


def interval(low: Node, high: Node, left_open: bool, right_open: bool) -> Node:
    return Node("interval", (low, high, left_open or low == MINUS_INFINITY, right_open or high == INFINITY))


def as_set(node: Node) -> Node | None:
    """`node` as a set of real numbers in one form, or None if it is none: intervals, unions, inequalities in one
    variable, set-builder notation."""
    if node.op == "tuple":
        return as_set(as_open_interval(node)) if len(node.args) == 2 else None
    if node.op == "interval":
        return interval(*node.args)
    if node.op in ("union", "intersection", "difference"):
        parts = [as_set(arg) for arg in node.args]
        return None if parts[0] is None or parts[1] is None else Node(node.op, tuple(parts))
    if node.op == "builder":
        head, condition = node.args
        conditions = [item for item in (head, *items_of(condition)) if item.op == "relation"]
        parts = [as_set(item) for item in conditions if item.args != (("in",), *item.args[1:2], REALS)]
        if not parts or None in parts:
            return None
        result = parts[0]
        for part in parts[1:]:
            result = Node("intersection", (result, part))
        return result
    if node.op == "list" and node.args and all(is_relation(item) and not is_plain(item) for item in node.args):
        parts = [as_set(item) for item in node.args]
        if None in parts:
            return None
        result = parts[0]
        for part in parts[1:]:
            result = Node("union", (result, part))
        return result
    if node.op == "relation":
        return solution_set(node)
    if node.op in ("set", "numbers") or node == Node("const", ("emptyset",)):
        return node
    return None


def solution_set(node: Node) -> Node | None:
    """The reals that satisfy an inequality: written down for a bare variable, left to sympy otherwise."""
    operators, sides = node.args[0], node.args[1:]
    if operators == ("in",):
        return as_set(sides[1])
    names = symbols(node)
    if not set(operators) <= {"<", ">", "<=", ">=", "!="} or len(names) != 1 or Node("missing", ()) in sides:
        return None
    variable = [index for index, side in enumerate(sides) if side.op == "sym"]
    if len(variable) != 1 or sum(bool(symbols(side)) for side in sides) != 1:
        return Node("solutions", (node,))
    if operators == ("!=",):
        return Node("difference", (REALS, Node("set", (sides[1 - variable[0]],))))
    if len({operator[0] for operator in operators}) != 1 or "!=" in operators or len(sides) > 3:
        return Node("solutions", (node,))
    if operators[0][0] == ">":
        operators, sides = tuple(FLIPPED[operator] for operator in operators[::-1]), sides[::-1]
    at = next(index for index, side in enumerate(sides) if side.op == "sym")
    low, high, left_open, right_open = MINUS_INFINITY, INFINITY, True, True
    if at > 0:
        low, left_open = sides[at - 1], operators[at - 1] == "<"
    if at < len(sides) - 1:
        high, right_open = sides[at + 1], operators[at] == "<"
    return interval(low, high, left_open, right_open)
