"""Are two answers the same? Lists of solutions, tuples, intervals, sets, matrices, equations, units; then leaves.

Every function answers True, False or None; None means that the leaves could not be decided in this process. Rules
(shared data README): exact equality, a missing unit is forgiven and a different one is not, lists are unordered,
tuples ordered.
"""

from collections.abc import Callable, Sequence

from deepsearch_jax.verify import leaves
from deepsearch_jax.verify.leaves import Verdict3
from deepsearch_jax.verify.parser import ZERO, Node
from deepsearch_jax.verify.values import NotNumeric, exact, has_op, symbols

MAX_ITEMS = 64  # of a list; comparing is quadratic
INFINITY = Node("const", ("infty",))
MINUS_INFINITY = Node("neg", (INFINITY,))
REALS = Node("numbers", ("R",))
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_SET_KINDS = frozenset(("interval", "union", "intersection", "difference", "builder", "numbers"))
SetEqual = Callable[[Node, Node], bool]


def all_of(verdicts: Sequence[Verdict3]) -> Verdict3:
    if False in verdicts:
        return False
    return None if None in verdicts else True


def any_of(verdicts: Sequence[Verdict3]) -> Verdict3:
    if True in verdicts:
        return True
    return None if None in verdicts else False


class Comparison:
    """Compares parsed answers. With `set_equal` (sympy, in a worker) every question is decided; without, hard ones
    are left open as None."""

    def __init__(self, set_equal: SetEqual | None = None):
        self.set_equal = set_equal
        self.is_thorough = set_equal is not None

    def answers(self, pred: Node, gold: Node) -> Verdict3:
        """The whole question: does the predicted answer say what the reference says?"""
        if pred == gold:
            return True
        pred, gold = _spread_signs(_without_approximation(pred)), _spread_signs(_without_approximation(gold))
        pred_value, gold_value = self.asserted(pred, gold, is_pred=True), self.asserted(gold, pred)
        if pred_value is None or gold_value is None:
            return None
        return self.collections(pred_value, gold_value)

    # Equations that only name the answer -----------------------------------------------------------------------------
    def asserted(self, node: Node, other: Node, *, is_pred: bool = False) -> Node | None:
        """`node` without a name in front ("x = 5" says 5), unless `other` is an equation too. None: undecided."""
        other_is_equation = any(_is_equation(item) for item in _items(other))
        if node.op in ("list", "set"):
            return self._asserted_list(node, other, other_is_equation)
        if node.op == "relation" and node.args[0][0] == "in" and len(node.args) == 3:
            return node if other.op == "relation" and other.args[0] == ("in",) else node.args[2]
        if not _is_equation(node):
            return node
        operands = node.args[1:]
        if not symbols(node) and not has_op(node, "text"):  # "2 + 3 = 5" says 5 if it is true, "5 = 6" says nothing
            truth = all_of([self.values(left, operands[-1]) for left in operands[:-1]])
            return operands[-1] if truth else None if truth is None else Node("relation", (("false",), *operands))
        if other_is_equation and not (_is_wordy(node) or _is_wordy(other)):
            return node
        left, value = operands[0], operands[-1]
        if _is_name(value) and not symbols(left) and len(operands) == 2:  # "5 = x"
            return left
        # "m + n = 27" ends a problem that asks for the sum; a reference "x + y = 2" asks for the equation.
        is_total = is_pred and len(symbols(left)) > 1 and not symbols(other) and not symbols(value)
        if not (_is_name(left) or is_total) or (left.op == "sym" and symbols(left) & symbols(value)):
            return node
        constant = [operand for operand in operands[1:-1] if not symbols(operand)]
        truth = all_of([self.values(operand, value) for operand in constant])
        return value if truth else None if truth is None else Node("relation", (("false",), *operands))

    def _asserted_list(self, node: Node, other: Node, other_is_equation: bool) -> Node | None:
        items = _items(node)
        if not _is_equation(items[0]) or not _is_name(items[0].args[1]):
            return node
        named = [item for item in items if _is_equation(item) and len(item.args) == 3 and _is_name(item.args[1])]
        names = [item.args[1] for item in named]
        values = tuple(item.args[2] if _is_equation(item) else item for item in items)
        if len(set(names)) == 1 and (len(named) == len(items) or len(named) == 1):  # x=1, x=2 and x=1,2
            if other_is_equation and not all(item in named or not _is_equation(item) for item in items):
                return node
            same_name = {item.args[1] for item in _items(other) if _is_equation(item)} <= set(names)
            return Node("list", values) if same_name else node
        if len(named) == len(items) == len(set(names)) and not other_is_equation:  # x=1, y=2 is the point (1,2)
            ordered = sorted(range(len(items)), key=lambda index: str(names[index]))
            return Node("tuple", tuple(values[index] for index in ordered))
        return node

    # Collections -----------------------------------------------------------------------------------------------------
    def collections(self, pred: Node, gold: Node) -> Verdict3:
        if pred == gold:
            return True
        if "tuple" in (pred.op, gold.op) and "list" in (pred.op, gold.op):
            # Brackets left out around a point: the order still counts.
            if len(pred.args) == len(gold.args) and not any(_is_relation(item) for item in pred.args + gold.args):
                return all_of([self.elements(p, g) for p, g in zip(pred.args, gold.args)])
        pred_set, gold_set = _as_set(pred), _as_set(gold)
        if pred_set is not None and gold_set is not None and not (_is_plain(pred) and _is_plain(gold)):
            return self.sets(pred_set, gold_set)
        if pred.op in ("list", "set") or gold.op in ("list", "set"):
            return self.unordered(_items(pred), _items(gold))
        return self.elements(pred, gold)

    def unordered(self, pred: Sequence[Node], gold: Sequence[Node]) -> Verdict3:
        """Each element of either side occurs on the other; repeating one changes nothing."""
        if max(len(pred), len(gold)) > MAX_ITEMS:
            return sorted(map(repr, pred)) == sorted(map(repr, gold))
        table = [[self.elements(p, g) for g in gold] for p in pred]
        rows = [any_of(row) for row in table]
        columns = [any_of(column) for column in zip(*table)]
        return all_of(rows + columns)

    def sets(self, pred: Node, gold: Node) -> Verdict3:
        """Sets of real numbers: part by part if they are written alike, else by sympy."""
        if pred.op == gold.op == "interval":
            ends = [self.elements(p, g) for p, g in zip(pred.args[:2], gold.args[:2])]
            return all_of([pred.args[2:] == gold.args[2:], *ends])
        if pred.op == gold.op == "union" and self.unordered(_parts(pred), _parts(gold)):
            return True
        if pred == gold:
            return True
        return None if self.set_equal is None else self.set_equal(pred, gold)

    # Single elements -------------------------------------------------------------------------------------------------
    def elements(self, pred: Node, gold: Node) -> Verdict3:
        if pred == gold:
            return True
        pred, gold = _fold_matrix(pred), _fold_matrix(gold)
        if _is_relation(pred) or _is_relation(gold):
            return self.relations(pred, gold)
        if "matrix" in (pred.op, gold.op):
            return self.matrices(pred, gold)
        if {pred.op, gold.op} == {"tuple", "interval"}:
            pred, gold = _as_open_interval(pred), _as_open_interval(gold)
        if pred.op in ("tuple", "ratio", "set", "interval") or gold.op in ("tuple", "ratio", "set", "interval"):
            return self.parts(pred, gold)
        return self.quantities(pred, gold)

    def parts(self, pred: Node, gold: Node) -> Verdict3:
        """Same kind, same length, equal part by part (what is no node must be identical)."""
        if pred.op != gold.op or len(pred.args) != len(gold.args):
            return False
        if pred.op == "set":
            return self.unordered(pred.args, gold.args)
        verdicts = []
        for p, g in zip(pred.args, gold.args):
            verdicts.append(self.elements(p, g) if isinstance(p, Node) and isinstance(g, Node) else p == g)
        return all_of(verdicts)

    def matrices(self, pred: Node, gold: Node) -> Verdict3:
        rows = []
        for node in (pred, gold):
            if node.op == "tuple":  # a vector written in a line stands for a column
                node = Node("matrix", tuple((item,) for item in node.args))
            if node.op != "matrix":
                return False
            rows.append(node.args)
        if len(rows[0]) != len(rows[1]) or len(rows[0][0]) != len(rows[1][0]):
            return False
        return all_of([self.elements(p, g) for prow, grow in zip(*rows) for p, g in zip(prow, grow)])

    def relations(self, pred: Node, gold: Node) -> Verdict3:
        """Equations and inequalities: the same up to a factor, a swap of sides, and the order of a chain."""
        pred_set, gold_set = _as_set(pred), _as_set(gold)
        if pred_set is not None and gold_set is not None and not _is_plain(pred) and not _is_plain(gold):
            if symbols(pred) == symbols(gold) or not (_is_relation(pred) and _is_relation(gold)):
                return self.sets(pred_set, gold_set)
            return False
        if pred.op != "relation" or gold.op != "relation":
            return self.parts(pred, gold) if pred.op == gold.op else False
        (pred_ops, *pred_sides), (gold_ops, *gold_sides) = pred.args, gold.args
        if "false" in (*pred_ops, *gold_ops):
            return False
        if len(pred_ops) != 1 or len(gold_ops) != 1 or Node("missing", ()) in (*pred_sides, *gold_sides):
            return self.parts(pred, gold)
        pred_op, gold_op = pred_ops[0], gold_ops[0]
        same = all_of([pred_op == gold_op, *(self.elements(p, g) for p, g in zip(pred_sides, gold_sides))])
        if same or pred_op not in ("=", "!=", *_FLIPPED) or gold_op not in ("=", "!=", *_FLIPPED):
            return same
        if pred_op != gold_op:
            if _FLIPPED.get(pred_op) != gold_op:
                return False
            pred_sides.reverse()
        differences = [Node("add", (left, Node("neg", (right,)))) for left, right in (pred_sides, gold_sides)]
        try:
            return leaves.proportional(
                differences[0], differences[1], positive=gold_op in _FLIPPED, is_thorough=self.is_thorough
            )
        except NotNumeric:
            return False

    def quantities(self, pred: Node, gold: Node) -> Verdict3:
        """Numbers with units, percentages, angles."""
        (pred, pred_unit), (gold, gold_unit) = _split_unit(pred), _split_unit(gold)
        if pred_unit == gold_unit:
            return self.values(pred, gold)
        units = {pred_unit, gold_unit}
        if units == {"", "percent"}:
            return self.percentage(pred, gold, gold_unit == "percent")
        if units == {"", "deg"} or units == {"rad", "deg"}:
            as_radians = [Node("degree", (x,)) if unit == "deg" else x for x, unit in ((pred, pred_unit), (gold, gold_unit))]
            plain = self.values(pred, gold) if "" in units else False
            return any_of([plain, self.values(*as_radians)])
        if "" in units or any(unit.startswith("unit") for unit in units):
            return self.values(pred, gold)
        return False

    def percentage(self, pred: Node, gold: Node, gold_is_percent: bool) -> Verdict3:
        """50% is 1/2, and 50 with the sign left out; but a bare number below one is a proportion, not a percentage."""
        percent, bare = (gold, pred) if gold_is_percent else (pred, gold)
        as_share = self.values(Node("percent", (percent,)), bare)
        try:
            share = exact(bare)
        except ArithmeticError:
            share = None
        if share is not None and abs(share) < 1:
            return as_share
        return any_of([as_share, self.values(percent, bare)])

    def values(self, pred: Node, gold: Node) -> Verdict3:
        """Formulas: numerically, or part by part if they have no value (texts, infinities, unknown functions)."""
        if pred == gold:
            return True
        try:
            return leaves.thorough(pred, gold) if self.is_thorough else leaves.quick(pred, gold)
        except NotNumeric:
            if pred.op != gold.op or pred.op in ("text", "const", "sym", "num") or not pred.args:
                return False
            return self.parts(pred, gold)


# Shapes --------------------------------------------------------------------------------------------------------------
def _items(node: Node) -> tuple[Node, ...]:
    return node.args if node.op in ("list", "set") else () if node == Node("const", ("emptyset",)) else (node,)


def _parts(node: Node) -> tuple[Node, ...]:
    return _parts(node.args[0]) + _parts(node.args[1]) if node.op == "union" else (node,)


def _is_relation(node: Node) -> bool:
    return node.op in ("relation", "modulo")


def _is_plain(node: Node) -> bool:
    """No set of a continuum: a number, a finite list or set, a tuple, an equation."""
    if node.op == "relation":
        return not set(node.args[0]) <= {"<", ">", "<=", ">=", "!=", "in"}
    if node.op in ("list", "set"):
        return all(_is_plain(item) for item in node.args)
    return node.op not in _SET_KINDS


def _is_equation(node: Node) -> bool:
    return node.op == "relation" and set(node.args[0]) == {"="}


def _is_wordy(node: Node) -> bool:
    return _is_equation(node) and has_op(node.args[1], "text")


def _is_name(node: Node) -> bool:
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


def _split_unit(node: Node) -> tuple[Node, str]:
    if node.op == "unit":
        inner, outer_unit = _split_unit(node.args[0])
        return inner, outer_unit or node.args[1]
    if node.op in ("percent", "degree"):
        return node.args[0], "percent" if node.op == "percent" else "deg"
    if node.op == "neg" and node.args[0].op in ("unit", "percent", "degree"):
        inner, unit = _split_unit(node.args[0])
        return Node("neg", (inner,)), unit
    return node, ""


def _without_approximation(node: Node) -> Node:
    """Keeps the exact side of "sqrt(2) = ... ~ 1.414"; "x ~ 5" is read as x = 5."""
    if node.op == "list":
        return Node("list", tuple(_without_approximation(item) for item in node.args))
    if node.op != "relation" or not {"approx", "sim"} & set(node.args[0]):
        return node
    operators, operands = node.args[0], node.args[1:]
    cut = min(operators.index(name) for name in ("approx", "sim") if name in operators)
    if cut == 0:
        return Node("relation", (("=",), *operands[:2])) if _is_name(operands[0]) else operands[0]
    return Node("relation", (operators[:cut], *operands[: cut + 1]))


def _spread_signs(node: Node) -> Node:
    """`\\pm` gives two solutions, all its signs taken together; `\\mp` takes the opposite ones."""
    if not has_op(node, "pm", "mp"):
        return node
    if node.op in ("list", "set"):
        spread = [_spread_signs(item) for item in node.args]
        return Node(node.op, tuple(item for part in spread for item in (part.args if part.op == "list" else (part,))))
    return Node("list", (_choose_sign(node, False), _choose_sign(node, True)))


def _choose_sign(node: Node, is_minus: bool) -> Node:
    args = tuple(
        _choose_sign(arg, is_minus)
        if isinstance(arg, Node)
        else tuple(_choose_sign(item, is_minus) if isinstance(item, Node) else item for item in arg)
        if isinstance(arg, tuple)
        else arg
        for arg in node.args
    )
    if node.op in ("pm", "mp"):
        right = args[1] if (node.op == "pm") != is_minus else Node("neg", (args[1],))
        return right if args[0] == ZERO else Node("add", (args[0], right))
    return Node(node.op, args)


def _fold_matrix(node: Node) -> Node:
    """A number times a matrix is the matrix of products; a small determinant is written out."""
    if node.op in ("mul", "div", "neg"):
        folded = tuple(_fold_matrix(arg) for arg in node.args)
        which = [index for index, arg in enumerate(folded) if arg.op == "matrix"]
        if which == [0] or (which == [1] and node.op == "mul"):
            rest = [arg for index, arg in enumerate(folded) if index not in which]

            def entry(item: Node) -> Node:
                return Node(node.op, (item, *rest))

            return Node("matrix", tuple(tuple(entry(item) for item in row) for row in folded[which[0]].args))
    if node.op == "call" and node.args[0] == "det" and node.args[1].op == "matrix":
        rows = node.args[1].args
        return _determinant(rows) if len(rows) == len(rows[0]) <= 4 else node
    return node


def _determinant(rows: Sequence[Sequence[Node]]) -> Node:
    if len(rows) == 1:
        return rows[0][0]
    total = ZERO
    for column, entry in enumerate(rows[0]):
        minor = _determinant([[*row[:column], *row[column + 1 :]] for row in rows[1:]])
        term = Node("mul", (entry, minor))
        total = Node("add", (total, Node("neg", (term,)) if column % 2 else term))
    return total


def _as_open_interval(node: Node) -> Node:
    return Node("interval", (*node.args, True, True)) if node.op == "tuple" and len(node.args) == 2 else node


def _interval(low: Node, high: Node, left_open: bool, right_open: bool) -> Node:
    return Node("interval", (low, high, left_open or low == MINUS_INFINITY, right_open or high == INFINITY))


def _as_set(node: Node) -> Node | None:
    """`node` as a set of real numbers in one form, or None if it is none: intervals, unions, inequalities in one
    variable, set-builder notation."""
    if node.op == "tuple":
        return _as_set(_as_open_interval(node)) if len(node.args) == 2 else None
    if node.op == "interval":
        return _interval(*node.args)
    if node.op in ("union", "intersection", "difference"):
        parts = [_as_set(arg) for arg in node.args]
        return None if parts[0] is None or parts[1] is None else Node(node.op, tuple(parts))
    if node.op == "builder":
        head, condition = node.args
        conditions = [item for item in (head, *_items(condition)) if item.op == "relation"]
        parts = [_as_set(item) for item in conditions if item.args != (("in",), *item.args[1:2], REALS)]
        if not parts or None in parts:
            return None
        result = parts[0]
        for part in parts[1:]:
            result = Node("intersection", (result, part))
        return result
    if node.op == "list" and node.args and all(_is_relation(item) and not _is_plain(item) for item in node.args):
        parts = [_as_set(item) for item in node.args]
        if None in parts:
            return None
        result = parts[0]
        for part in parts[1:]:
            result = Node("union", (result, part))
        return result
    if node.op == "relation":
        return _solution_set(node)
    if node.op in ("set", "numbers") or node == Node("const", ("emptyset",)):
        return node
    return None


def _solution_set(node: Node) -> Node | None:
    """The reals that satisfy an inequality: written down for a bare variable, left to sympy otherwise."""
    operators, sides = node.args[0], node.args[1:]
    if operators == ("in",):
        return _as_set(sides[1])
    names = symbols(node)
    if not set(operators) <= {"<", ">", "<=", ">=", "!="} or len(names) != 1 or Node("missing", ()) in sides:
        return None
    variable = [index for index, side in enumerate(sides) if side.op == "sym"]
    if len(variable) != 1 or sum(bool(symbols(side)) for side in sides) != 1:
        return Node("solutions", (node,))
    if operators == ("!=",):
        return Node("difference", (REALS, Node("set", (sides[1 - variable[0]],))))
    if len(set(operator[0] for operator in operators)) != 1 or "!=" in operators or len(sides) > 3:
        return Node("solutions", (node,))
    if operators[0][0] == ">":
        operators, sides = tuple(_FLIPPED[operator] for operator in operators[::-1]), sides[::-1]
    at = [index for index, side in enumerate(sides) if side.op == "sym"][0]
    low, high, left_open, right_open = MINUS_INFINITY, INFINITY, True, True
    if at > 0:
        low, left_open = sides[at - 1], operators[at - 1] == "<"
    if at < len(sides) - 1:
        high, right_open = sides[at + 1], operators[at] == "<"
    return _interval(low, high, left_open, right_open)

