"""From tokens to a small syntax tree: one recursive-descent grammar for numbers, expressions, lists, tuples, intervals,
sets, matrices, relations, percentages and units. It builds tuples only; nothing is evaluated here."""

# ruff: noqa: SIM905  (tables of words read better as one text)
import re
from fractions import Fraction
from typing import Any, NamedTuple

from deepsearch_jax.verify.tokens import FUNCTIONS, ParseError, Token, tokenize
from deepsearch_jax.verify.units import SCALES

MAX_DEPTH = 30  # nested groups; real answers stay below 8
MAX_TOKENS = 800
MAX_HEIGHT = 120  # of the tree: a sum of 120 terms is as high. What walks it recursively must fit any caller's stack
MAX_DIGITS = 1000  # of one number


class Unsupported(ParseError):
    """Mathematics outside this grammar (sums, integrals, limits), left to the library parser."""


class Node(NamedTuple):
    """op names the kind, args are nodes or (in leaves) plain values; equal trees are equal tuples."""

    op: str
    args: tuple[Any, ...]


ZERO, ONE = Node("num", (Fraction(0),)), Node("num", (Fraction(1),))
RELATIONS = {"=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "ne": "!=", "lt": "<", "gt": ">"} | {
    name: name for name in ("in", "notin", "equiv", "approx", "sim", "cong", "perp", "parallel", "to", "mid")
}
_SET_OPS = {"cup": "union", "cap": "intersection", "setminus": "difference", ":": "ratio"}
_DECORATIONS = frozenset(
    "overline bar vec hat dot tilde mathcal mathfrak mathscr widehat widetilde overrightarrow".split()
)
_CURRENCIES = {"dollar": "dollar", "euro": "euro", "pounds": "lb", "yen": "yen"}
_LIBRARY_ONLY = frozenset(("sum", "prod"))
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "langle": "rangle", "lfloor": "rfloor", "lceil": "rceil"}
_BARS = {"|": "|", "vert": "vert", "lVert": "rVert", "Vert": "Vert", "\\|": "\\|"}
_STARTS = frozenset(("(", "[", "{", "\\{")) | _BARS.keys()
_NO_CLOSERS: frozenset[str] = frozenset()
_BUILDER_SIGNS = frozenset(("|", "mid", "vert", ":"))
_ATOM_COMMANDS = (
    frozenset("frac sqrt binom pi infty emptyset mathbb langle lfloor lceil begin operatorname triangle angle".split())
    | FUNCTIONS
    | _DECORATIONS
)
_SCIENTIFIC = re.compile(r"(?<![A-Za-z\d.}^_])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![\d.A-Za-z^])")
_INVERSES = {name: "arc" + name for name in ("sin", "cos", "tan", "cot", "sinh", "cosh", "tanh")}
_SAME = {"arsinh": "arcsinh", "arcosh": "arccosh", "artanh": "arctanh", "lg": "log10", "log": "ln", "sgn": "sign"}


def _scientific(match: re.Match[str]) -> str:
    mantissa, exponent = match.groups()
    # 2e+3 may be Euler's number plus three; 4.5e33, 1e-9, 3e10 and 2e-15 are never meant so.
    signed = exponent[0] in "+-"
    if signed and "." not in mantissa and mantissa != "1" and len(exponent) < 3:
        return match.group()
    return f"{mantissa}\\cdot 10^{{{exponent}}}"


def parse(text: str) -> Node:
    """The syntax tree of a cleaned answer. Raises ParseError if it is not in the grammar or beyond its limits."""
    tokens = tokenize(_SCIENTIFIC.sub(_scientific, text))
    if not tokens or len(tokens) > MAX_TOKENS:
        raise ParseError(f"{len(tokens)} tokens")
    parser = _Parser(tokens)
    tree = parser.elements()
    if parser.position < len(tokens):
        raise ParseError(f"unexpected {parser.peek()!r}")
    if _is_higher(tree, MAX_HEIGHT):
        raise ParseError("nested too deeply")
    return tree


def _is_higher(tree: Node, limit: int) -> bool:
    level: list[Any] = [tree]
    for _ in range(limit):
        level = [arg for part in level for arg in (part.args if isinstance(part, Node) else part)]
        level = [arg for arg in level if isinstance(arg, tuple)]  # nodes, rows of a matrix
        if not level:
            return False
    return True


def number(text: str) -> Node:
    """A decimal numeral as an exact fraction."""
    if len(text) > MAX_DIGITS:
        raise ParseError("a number with too many digits")
    return Node("num", (Fraction(text + "0" if text.endswith(".") else text),))


def _repeating(head: str, block: str) -> Node:
    """0.1 with block 6 repeated: head + block / (10^places * (10^period - 1))."""
    if len(head) + len(block) > 100:
        raise ParseError("a repeating decimal with too many digits")
    places = len(head.partition(".")[2])
    tail = Fraction(int(block), 10**places * (10 ** len(block) - 1))
    return Node("num", (number(head).args[0] + tail,))


class _Parser:
    def __init__(self, tokens: list[Token]):
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.closers: frozenset[str] = _NO_CLOSERS  # signs that end the enclosing bars or the head of a set builder

    def peek(self, ahead: int = 0) -> str:
        index = self.position + ahead
        return self.tokens[index].text if index < len(self.tokens) else ""

    def kind(self, ahead: int = 0) -> str:
        index = self.position + ahead
        return self.tokens[index].kind if index < len(self.tokens) else ""

    def is_sign(self, *texts: str) -> bool:
        return self.kind() in ("op", "command", "sep") and self.peek() in texts

    def next(self) -> Token:
        if self.position >= len(self.tokens):
            raise ParseError("unexpected end")
        self.position += 1
        return self.tokens[self.position - 1]

    def expect(self, text: str) -> None:
        if self.next().text != text:
            raise ParseError(f"expected {text!r}")

    # Lists, relations, sets ------------------------------------------------------------------------------------------
    def elements(self) -> Node:
        """Comma- or "and"-separated elements; a single one stands for itself."""
        found = [self.element()]
        while self.is_sign(",", ";"):
            while self.is_sign(",", ";"):  # "1, 2, and 3" has two in a row
                self.next()
            found.append(self.element())
        return found[0] if len(found) == 1 else Node("list", tuple(found))

    def element(self) -> Node:
        operators: list[str] = []
        if self.is_sign("=", "approx", "sim"):
            self.next()
        elif self.is_sign("<", ">", "le", "ge", "ne", "lt", "gt"):
            operators.append(RELATIONS[self.next().text])
        operands = [Node("missing", ())] * len(operators)
        operands.append(self.set_expression())
        while self.kind() in ("op", "command") and self.peek() in RELATIONS and not self.closes_here():
            operators.append(RELATIONS[self.next().text])
            operands.append(self.set_expression())
        node = Node("relation", (tuple(operators), *operands)) if operators else operands[0]
        if self.is_sign("pmod"):
            self.next()
            node = Node("modulo", (node, self.argument()))
        return node

    def closes_here(self) -> bool:
        return self.peek() in self.closers

    def set_expression(self) -> Node:
        node = self.with_unit()
        while self.is_sign(*_SET_OPS) and not self.closes_here():
            operation = _SET_OPS[self.next().text]
            node = Node(operation, (node, self.with_unit()))
        return node

    def with_unit(self) -> Node:
        node = self.sum()
        if self.kind() != "unit" and not self.is_sign(*_CURRENCIES):
            return node
        parts = []
        while self.kind() == "unit" or self.is_sign(*_CURRENCIES):
            parts.append(_CURRENCIES.get(self.peek(), self.peek()))
            self.next()
            if self.is_sign("^"):
                self.next()
                parts[-1] += f"^{self.argument().args[0]}"
            if self.is_sign("/", "cdot") and self.kind(1) == "unit":
                parts.append("per" if self.next().text == "/" else "")
        while parts and parts[0] in SCALES:
            node = Node("mul", (node, Node("num", (SCALES[parts.pop(0)],))))
        name = " ".join(part for part in parts if part)
        if not name:
            return node
        return Node("percent", (node,)) if name == "percent" else Node("unit", (node, name))

    # Arithmetic ------------------------------------------------------------------------------------------------------
    def sum(self) -> Node:
        node = None if self.is_sign("+", "-", "pm", "mp") else self.product()
        while self.is_sign("+", "-", "pm", "mp"):
            sign = self.next().text
            right = self.product()
            if sign in ("pm", "mp"):
                node = Node(sign, (node or ZERO, right))
            else:
                right = Node("neg", (right,)) if sign == "-" else right
                node = right if node is None else Node("add", (node, right))
        assert node is not None
        return node

    def product(self) -> Node:
        node = self.factor()
        while True:
            if self.is_sign("*", "cdot", "times"):
                self.next()
                node = Node("mul", (node, self.factor()))
            elif self.is_sign("/"):
                self.next()
                node = Node("div", (node, self.factor()))
            elif self.is_sign("bmod", "mod"):
                self.next()
                node = Node("mod", (node, self.factor()))
            elif self.is_sign("choose"):
                self.next()
                node = Node("binom", (node, self.factor()))
            elif self.starts_atom():
                is_digit = self.kind() == "num"
                right = self.postfix()
                node = self.juxtaposed(node, right, is_digit)
            else:
                return node

    def juxtaposed(self, left: Node, right: Node, is_digit: bool) -> Node:
        """`3 1/2` and `3\\frac12` are mixed numbers, other neighbours a product; two plain numbers are neither."""
        whole = left.op == "num" and left.args[0].denominator == 1
        if is_digit and right.op == "num":
            if not (whole and self.is_sign("/") and self.kind(1) == "num"):
                raise ParseError("two numbers side by side")
            self.next()
            right = Node("div", (right, number(self.next().text)))
        if whole and right.op == "div" and all(arg.op == "num" and arg.args[0] > 0 for arg in right.args):
            top, bottom = (arg.args[0] for arg in right.args)
            if top < bottom and top.denominator == bottom.denominator == 1:
                return Node("num", (left.args[0] + top / bottom,))
        if left.op == right.op == "text":
            return Node("text", (f"{left.args[0]} {right.args[0]}",))
        return Node("mul", (left, right))

    def factor(self) -> Node:
        if self.is_sign("-", "+"):
            self.enter()
            sign = self.next().text
            node = self.factor()
            self.depth -= 1
            return Node("neg", (node,)) if sign == "-" else node
        return self.postfix()

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ParseError("nested too deeply")

    def starts_atom(self) -> bool:
        kind, text = self.kind(), self.peek()
        if kind in ("num", "letter", "text"):
            return True
        if kind == "command":
            return text in _ATOM_COMMANDS or (text in _BARS and not self.closers) or text in _LIBRARY_ONLY
        return kind == "op" and text in _STARTS and (text not in _BARS or not self.closers)

    def postfix(self) -> Node:
        node = self.atom()
        while True:
            if self.is_sign("^"):
                self.next()
                if self.is_sign("circ") or (self.peek() == "{" and self.peek(1) == "circ" and self.peek(2) == "}"):
                    self.position += 1 if self.peek() == "circ" else 3
                    node = Node("degree", (node,))
                elif self.is_sign("prime", "top", "star", "dagger", "*"):
                    node = Node("sym", (f"{self.raw(node)}^{self.next().text}",))
                elif node.op == "numbers":
                    node = Node("numbers", (f"{node.args[0]}^{self.raw_argument()}",))
                else:
                    node = Node("pow", (node, self.argument(whole_number=True)))
            elif self.is_sign("!"):
                self.next()
                node = Node("factorial", (node,))
            elif self.is_sign("'") and node.op == "sym":
                self.next()
                node = Node("sym", (node.args[0] + "'",))
            elif self.is_sign("%"):
                self.next()
                node = Node("percent", (node,))
            elif self.is_sign("_") and node.op in ("sym", "numbers"):
                self.next()
                node = Node(node.op, (f"{node.args[0]}_{self.raw_argument()}",))
            else:
                return node

    @staticmethod
    def raw(node: Node) -> str:
        if node.op != "sym":
            raise ParseError("a mark on something that is no variable")
        return str(node.args[0])

    def raw_argument(self) -> str:
        """The text of an argument (a subscript, the inside of a mark), without markup."""
        token = self.next()
        if token.text != "{":
            return token.text
        out, depth = [], 1
        while depth:
            token = self.next()
            depth += {"{": 1, "}": -1}.get(token.text, 0)
            out.append(token.text)
        return "".join(out[:-1])

    def argument(self, *, whole_number: bool = False) -> Node:
        """What a command applies to: a group, or one character (`\\frac12`); an exponent may be a whole number."""
        if self.is_sign("{"):
            return self.group()
        if self.kind() == "num" and not whole_number and len(self.peek()) > 1:
            digits = self.peek()
            if not digits[0].isdigit():
                raise ParseError("a command applied to a point")
            self.tokens[self.position] = Token("num", digits[1:])
            return number(digits[0])
        if self.is_sign("-", "+"):
            return self.factor()
        if self.kind() in ("num", "letter", "text") or self.starts_atom():
            return self.atom()
        raise ParseError("a command without its argument")

    # Atoms -----------------------------------------------------------------------------------------------------------
    def atom(self) -> Node:
        self.enter()
        node = self.open_atom()
        self.depth -= 1
        return node

    def open_atom(self) -> Node:
        kind, text = self.kind(), self.peek()
        if kind == "num":
            return self.numeral()
        if kind == "letter":
            self.next()
            return Node("const", (text,)) if text in ("e", "i") and not self.is_sign("_", "'") else Node("sym", (text,))
        if kind == "text":
            return Node("text", (self.next().text.casefold().strip(" .,;:"),))
        if text in _CURRENCIES and kind == "command":
            self.next()
            return Node("unit", (self.postfix(), _CURRENCIES[text]))
        if text in _LIBRARY_ONLY:
            raise Unsupported(text)
        if text in FUNCTIONS and kind == "command":
            return self.function(self.next().text)
        if text in _BARS:
            return self.bars()
        if text in _CLOSING:
            return self.group()
        if kind != "command":
            raise ParseError(f"unexpected {text!r}")
        return self.command(self.next().text)

    def numeral(self) -> Node:
        text = self.next().text
        if "." in text:
            if self.is_sign("overline", "dot", "bar"):
                self.next()
                block = self.raw_argument()
            elif text.endswith(".") and self.peek() == "(" and self.kind(1) == "num" and self.peek(2) == ")":
                block, self.position = self.peek(1), self.position + 3
            elif self.is_sign("ldots"):
                self.next()
                block, text = text[-1], text
                if len(set(text.partition(".")[2][-3:])) != 1 or len(text.partition(".")[2]) < 3:
                    raise ParseError("a decimal that goes on without a pattern")
            else:
                return number(text)
            if not block.isdigit():
                raise ParseError("a repeating decimal without digits")
            return _repeating(text, block)
        return number(text)

    def command(self, name: str) -> Node:
        if name == "frac":
            return Node("div", (self.argument(), self.argument()))
        if name == "binom":
            return Node("binom", (self.argument(), self.argument()))
        if name == "sqrt":
            index = None
            if self.is_sign("["):
                index = self.group()
            radicand = self.group() if self.is_sign("(") else self.argument()
            return Node("root", (radicand, index or Node("num", (Fraction(2),))))
        if name in ("pi", "infty", "emptyset"):
            return Node("const", (name,))
        if name == "mathbb":
            return Node("numbers", (self.raw_argument(),))
        if name in _DECORATIONS:
            return Node("sym", (f"{name} {self.raw_argument()}",)) if name != "overline" else self.overline()
        if name in ("triangle", "angle"):
            return Node("sym", (f"{name} {self.raw(self.atom())}",))
        if name == "begin":
            return self.matrix(self.raw_argument())
        raise ParseError(f"unexpected \\{name}")

    def overline(self) -> Node:
        begin = self.position
        node = self.argument()
        if node.op == "sym" or (node.op == "mul" and all(arg.op == "sym" for arg in node.args)):
            return Node("sym", ("overline " + "".join(token.text for token in self.tokens[begin : self.position]),))
        return Node("call", ("conjugate", node))

    def group(self) -> Node:
        """Brackets of any kind: grouping, tuple, interval, set, vector, floor, ceiling."""
        opening = self.next().text
        closing = _CLOSING[opening]
        if opening == "\\{" and self.is_sign("\\}"):
            self.next()
            return Node("const", ("emptyset",))
        self.closers, outer = (_BUILDER_SIGNS if opening == "\\{" else _NO_CLOSERS), self.closers
        inside = self.elements()
        if opening == "\\{" and self.is_sign(*_BUILDER_SIGNS):
            self.next()
            self.closers = _NO_CLOSERS
            inside = Node("builder", (inside, self.elements()))
        self.closers = outer
        end = self.next().text
        items = inside.args if inside.op == "list" else (inside,)
        if end != closing:
            if {opening, end} <= {"(", "[", ")", "]"} and end in (")", "]") and len(items) == 2:
                return Node("interval", (*items, opening == "(", end == ")"))
            raise ParseError(f"expected {closing!r}")
        if opening == "\\{":
            return inside if inside.op == "builder" else Node("set", items)
        if opening == "langle":
            return Node("tuple", items)
        if opening in ("lfloor", "lceil"):
            return Node("call", ("floor" if opening == "lfloor" else "ceil", inside))
        if opening == "{" or len(items) == 1:
            return inside
        if opening == "[" and len(items) == 2:
            return Node("interval", (*items, False, False))
        return Node("tuple", items)

    def bars(self) -> Node:
        closing = _BARS[self.next().text]
        self.closers, outer = frozenset((closing,)), self.closers
        inside = self.sum()
        self.closers = outer
        self.expect(closing)
        return Node("call", ("abs" if closing in ("|", "vert") else "norm", inside))

    def matrix(self, name: str) -> Node:
        if name == "array" and self.is_sign("{"):
            self.raw_argument()
        elif name not in ("matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "smallmatrix"):
            raise ParseError(f"environment {name}")
        rows: list[list[Node]] = [[]]
        while not self.is_sign("end"):
            rows[-1].append(self.element())
            if self.is_sign("&"):
                self.next()
            elif self.is_sign("cr"):
                self.next()
                rows.append([])
        self.next()
        self.raw_argument()
        rows = [row for row in rows if row]
        if not rows or len({len(row) for row in rows}) != 1:
            raise ParseError("a matrix with rows of different length")
        matrix = Node("matrix", tuple(tuple(row) for row in rows))
        return Node("call", ("det", matrix)) if name == "vmatrix" else matrix

    def function(self, name: str) -> Node:
        """A named function with its optional power and base; without brackets it takes the product that follows."""
        power, base = None, None
        while self.is_sign("^", "_"):
            if self.next().text == "^":
                power = self.argument(whole_number=True)
            else:
                base = self.argument()
        name = _SAME.get(name, name)
        if self.is_sign("(", "[", "{", "\\{"):
            inside = self.group()
        else:
            inside = self.factor() if self.is_sign("-") else self.postfix()
            while self.starts_atom() and self.peek() not in FUNCTIONS:
                inside = self.juxtaposed(inside, self.postfix(), False)
        if name == "exp":
            node = Node("pow", (Node("const", ("e",)), inside))
        elif base is not None and name == "ln":
            node = Node("div", (Node("call", ("ln", inside)), Node("call", ("ln", base))))
        elif base is not None:
            raise ParseError(f"a subscript on {name}")
        elif power is not None and power == Node("neg", (ONE,)) and name in _INVERSES:
            return Node("call", (_INVERSES[name], inside))
        else:
            arguments = inside.args if inside.op in ("list", "tuple", "set") else (inside,)
            if inside.op == "interval":
                arguments = inside.args[:2]
            node = Node("call", (name, *arguments))
        return node if power is None else Node("pow", (node, power))
