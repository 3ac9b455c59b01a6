"""Are two answers the same? Lists of solutions, tuples, intervals, sets, matrices, equations, units; then leaves.

Every function answers True, False or None; None means that the leaves could not be decided in this process. Rules
(shared data README): exact equality, a missing unit is forgiven and a different one is not, lists are unordered,
tuples ordered.
"""

from collections.abc import Callable, Sequence

from deepsearch_jax.verify import leaves
from deepsearch_jax.verify.leaves import Verdict3
from deepsearch_jax.verify.parser import Node
from deepsearch_jax.verify.shapes import (
    FLIPPED,
    as_open_interval,
    as_set,
    fold_matrix,
    is_equation,
    is_name,
    is_plain,
    is_relation,
    is_wordy,
    items_of,
    parts_of,
    split_unit,
    spread_signs,
    without_approximation,
)
from deepsearch_jax.verify.values import NotNumeric, exact, has_op, symbols

MAX_ITEMS = 64  # of a list; comparing is quadratic
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
        pred, gold = spread_signs(without_approximation(pred)), spread_signs(without_approximation(gold))
        pred_value, gold_value = self.asserted(pred, gold, is_pred=True), self.asserted(gold, pred)
        if pred_value is None or gold_value is None:
            return None
        return self.collections(pred_value, gold_value)

    # Equations that only name the answer -----------------------------------------------------------------------------
    def asserted(self, node: Node, other: Node, *, is_pred: bool = False) -> Node | None:
        """`node` without a name in front ("x = 5" says 5), unless `other` is an equation too. None: undecided."""
        other_is_equation = any(is_equation(item) for item in items_of(other))
        if node.op in ("list", "set"):
            return self._asserted_list(node, other, other_is_equation)
        if node.op == "relation" and node.args[0][0] == "in" and len(node.args) == 3:
            return node if other.op == "relation" and other.args[0] == ("in",) else node.args[2]
        if not is_equation(node):
            return node
        operands = node.args[1:]
        if not symbols(node) and not has_op(node, "text"):  # "2 + 3 = 5" says 5 if it is true, "5 = 6" says nothing
            truth = all_of([self.values(left, operands[-1]) for left in operands[:-1]])
            return operands[-1] if truth else None if truth is None else Node("relation", (("false",), *operands))
        if other_is_equation and not (is_wordy(node) or is_wordy(other)):
            return node
        left, value = operands[0], operands[-1]
        if is_name(value) and not symbols(left) and len(operands) == 2:  # "5 = x"
            return left
        # "m + n = 27" ends a problem that asks for the sum; a reference "x + y = 2" asks for the equation.
        is_total = is_pred and len(symbols(left)) > 1 and not symbols(other) and not symbols(value)
        is_total = is_total and not has_op(left, "num")
        if not (is_name(left) or is_total) or (left.op == "sym" and symbols(left) & symbols(value)):
            return node
        constant = [operand for operand in operands[1:-1] if not symbols(operand)]
        truth = all_of([self.values(operand, value) for operand in constant])
        return value if truth else None if truth is None else Node("relation", (("false",), *operands))

    def _asserted_list(self, node: Node, other: Node, other_is_equation: bool) -> Node | None:
        items = items_of(node)
        if not is_equation(items[0]) or not is_name(items[0].args[1]):
            return node
        named = [item for item in items if is_equation(item) and len(item.args) == 3 and is_name(item.args[1])]
        names = [item.args[1] for item in named]
        values = tuple(item.args[2] if is_equation(item) else item for item in items)
        if len(set(names)) == 1 and (len(named) == len(items) or len(named) == 1):  # x=1, x=2 and x=1,2
            if other_is_equation and not all(item in named or not is_equation(item) for item in items):
                return node
            same_name = {item.args[1] for item in items_of(other) if is_equation(item)} <= set(names)
            return Node("list", values) if same_name else node
        if len(named) == len(items) == len(set(names)) and not other_is_equation:  # x=1, y=2 is the point (1,2)
            ordered = sorted(range(len(items)), key=lambda index: str(names[index]))
            return Node("tuple", tuple(values[index] for index in ordered))
        return node

    # Collections -----------------------------------------------------------------------------------------------------
    def collections(self, pred: Node, gold: Node) -> Verdict3:
        if pred == gold:
            return True
        is_bare_point = {"tuple", "list"} == {pred.op, gold.op} and len(pred.args) == len(gold.args)
        if is_bare_point and not any(is_relation(item) for item in pred.args + gold.args):
            # Brackets left out around a point: the order still counts.
            return all_of([self.elements(p, g) for p, g in zip(pred.args, gold.args)])
        pred_set, gold_set = as_set(pred), as_set(gold)
        if pred_set is not None and gold_set is not None and not (is_plain(pred) and is_plain(gold)):
            return self.sets(pred_set, gold_set)
        if pred.op in ("list", "set") or gold.op in ("list", "set"):
            return self.unordered(items_of(pred), items_of(gold))
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
        if pred.op == gold.op == "union" and self.unordered(parts_of(pred), parts_of(gold)):
            return True
        if pred == gold:
            return True
        return None if self.set_equal is None else self.set_equal(pred, gold)

    # Single elements -------------------------------------------------------------------------------------------------
    def elements(self, pred: Node, gold: Node) -> Verdict3:
        if pred == gold:
            return True
        pred, gold = fold_matrix(pred), fold_matrix(gold)
        if is_relation(pred) or is_relation(gold):
            return self.relations(pred, gold)
        if "matrix" in (pred.op, gold.op):
            return self.matrices(pred, gold)
        if {pred.op, gold.op} == {"tuple", "interval"}:
            pred, gold = as_open_interval(pred), as_open_interval(gold)
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
        pred_set, gold_set = as_set(pred), as_set(gold)
        if pred_set is not None and gold_set is not None and not is_plain(pred) and not is_plain(gold):
            if symbols(pred) == symbols(gold) or not (is_relation(pred) and is_relation(gold)):
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
        if same or pred_op not in ("=", "!=", *FLIPPED) or gold_op not in ("=", "!=", *FLIPPED):
            return same
        if pred_op != gold_op:
            if FLIPPED.get(pred_op) != gold_op:
                return False
            pred_sides.reverse()
        differences = [Node("add", (left, Node("neg", (right,)))) for left, right in (pred_sides, gold_sides)]
        try:
            return leaves.proportional(
                differences[0], differences[1], positive=gold_op in FLIPPED, is_thorough=self.is_thorough
            )
        except NotNumeric:
            return False

    def quantities(self, pred: Node, gold: Node) -> Verdict3:
        """Numbers with units, percentages, angles."""
        (pred, pred_unit), (gold, gold_unit) = split_unit(pred), split_unit(gold)
        if pred_unit == gold_unit:
            return self.values(pred, gold)
        units = {pred_unit, gold_unit}
        if units == {"", "percent"}:
            return self.percentage(pred, gold, gold_unit == "percent")
        if units == {"", "deg"} or units == {"rad", "deg"}:
            as_radians = [
                Node("degree", (x,)) if unit == "deg" else x for x, unit in ((pred, pred_unit), (gold, gold_unit))
            ]
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
