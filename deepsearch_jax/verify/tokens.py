"""Cutting a cleaned answer into tokens. Unknown commands and foreign characters are refused, never guessed."""

# ruff: noqa: SIM905  (tables of words read better as one text)
import re
from typing import NamedTuple

from deepsearch_jax.verify.units import BARE_UNITS, canonical_unit


class ParseError(ValueError):
    """The answer is not in the grammar; it can then only be equal as text."""


class Token(NamedTuple):
    """kind is one of num, letter, command, text, unit, sep, op; text is what was read (a unit: its canonical name)."""

    kind: str
    text: str


GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar aleph".split()
)
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth sech csch arsinh arcosh artanh arcsinh "
    "arccosh arctanh ln log lg exp cis max min gcd lcm Re Im arg sgn sign floor ceil abs det".split()
)
_PLAIN_WORDS = (  # words that people write without a backslash
    "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|sqrt|ln|log|exp|infinity|pi"
)
COMMANDS = frozenset(
    "frac sqrt binom choose pi infty pm mp cdot times bmod pmod mod equiv le ge lt gt ne approx sim in notin cup cap "
    "setminus emptyset mathbb langle rangle lfloor rfloor lceil rceil mid vert lVert rVert Vert begin end prime circ "
    "overline bar vec hat dot tilde operatorname mathrm mathbf mathit mathsf mathcal boldsymbol bm pmb rm bf it text "
    "dollar euro pounds yen cr ldots sum prod to cong perp parallel angle triangle top dagger "
    "mathfrak mathscr widehat widetilde overrightarrow star".split()
)
_TOKEN = re.compile(
    r"(?P<num>\d+(?:\.\d*)?|\.\d+)"
    rf"|(?<![A-Za-z])(?P<bare>(?:{'|'.join(BARE_UNITS)})(?![A-Za-z]))"
    rf"|(?<![A-Za-z])(?P<word>(?:{_PLAIN_WORDS})(?![A-Za-z]))"
    r"|(?P<joint>,?\s*(?<![A-Za-z])(?:and|or)(?![A-Za-z]),?)"
    r"|(?P<letter>[A-Za-z])"
    r"|(?P<command>\\(?:[A-Za-z]+|[{}|%]))"
    r"|(?P<op>\^|_|[-+*/=<>!'|()\[\]{},;:&%])"
)
_WRAP = re.compile(
    r"\\(text|mathrm|operatorname\*?|mathbf|mathit|mathsf|boldsymbol|bm|pmb)(?![A-Za-z])\s*(\{|(?=[A-Za-z0-9]))"
)
_CONNECTIVES = {"and": ",", "or": ",", ", and": ",", ", or": ",", ",": ",", ";": ";", ",and": ",", ",or": ","}
# A lead-in that says nothing: "so x = ...". Anything else in front of an answer keeps its meaning.
_FILLERS = frozenset("so thus hence therefore the final answer is are then we get have solution solutions of".split())
_MEASURED = re.compile(r"(-?[\d.,]*\d)\s+([A-Za-z][A-Za-z./^ \d]*)")  # "12 cm" in one piece of text
_HEDGES = frozenset("approximately approx about roughly".split())


def _group_end(text: str, begin: int) -> int:
    """Index of the brace that closes the group whose content starts at `begin`."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text[begin:]):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return begin + match.start()
    raise ParseError("unclosed group")


def _text_tokens(content: str, command: str, after_value: bool) -> list[Token]:
    """Tokens of the content of a text or font command: a connective, a unit, words, or plain mathematics."""
    words = " ".join(content.split())
    bare = words.strip(" .,;:")
    low = bare.lower()
    if words.lower() in _CONNECTIVES:
        return [Token("sep", _CONNECTIVES[words.lower()])]
    if not bare:
        return [Token("sep", words)] if words in (",", ";") else []
    if low in FUNCTIONS or bare in FUNCTIONS:
        return [Token("command", bare if bare in FUNCTIONS else low)]
    if low in ("mod", "choose"):
        return [Token("command", "bmod" if low == "mod" else low)]
    if after_value and (unit := canonical_unit(bare)) is not None:
        return [Token("unit", unit)]
    measured = _MEASURED.fullmatch(bare)
    if measured and (unit := canonical_unit(measured.group(2))) is not None:
        return [*tokenize(measured.group(1)), Token("unit", unit)]
    if all(word in _FILLERS for word in low.replace(":", "").replace(",", "").split()):
        return []
    if low in _HEDGES:
        return [Token("command", "approx")]
    if low in ("infinity", "positive infinity"):
        return [Token("command", "infty")]
    letters = re.sub(r"\\[A-Za-z]+", "", content)
    if not re.search(r"[A-Za-z]{2}", letters) or (command not in ("text", "operatorname") and "\\" in content):
        return tokenize(content)
    return [Token("text", words)]


def _is_value_end(tokens: list[Token]) -> bool:
    return bool(tokens) and (tokens[-1].kind in ("num", "letter") or tokens[-1].text in (")", "]", "}", "!", "pi"))


def tokenize(text: str) -> list[Token]:
    """Tokens of a cleaned answer. Raises ParseError at the first thing that is not mathematics."""
    tokens: list[Token] = []
    position = 0
    while position < len(text):
        if text[position] == " ":
            position += 1
            continue
        wrap = _WRAP.match(text, position)
        if wrap:
            if wrap.group(2):
                end = _group_end(text, wrap.end())
                content, position = text[wrap.end() : end], end + 1
            else:
                content, position = text[wrap.end()], wrap.end() + 1
            tokens += _text_tokens(content, wrap.group(1), _is_value_end(tokens))
            continue
        match = _TOKEN.match(text, position)
        if match is None:
            raise ParseError(f"unexpected {text[position]!r}")
        kind, value = str(match.lastgroup), match.group()
        if kind == "bare":
            unit = canonical_unit(value) if _is_value_end(tokens) and tokens[-1].kind != "letter" else None
            if unit is None:  # not after a value: the letters are variables, read one by one
                kind, value = "letter", value[0]
            else:
                tokens.append(Token("unit", unit))
                position = match.end()
                continue
        position += len(value)
        if kind == "word":
            tokens.append(Token("command", "infty" if value == "infinity" else value))
        elif kind == "joint":
            tokens.append(Token("sep", ","))
        elif kind == "command":
            tokens.append(_command(value[1:]))
        else:
            tokens.append(Token(kind, value))
    return tokens


def _command(name: str) -> Token:
    if name in ("{", "}", "|"):
        return Token("op", "\\" + name)
    if name == "%":
        return Token("op", "%")
    if name in ("e", "i"):
        return Token("letter", name)
    if name in GREEK:
        return Token("letter", "\\" + name)
    if name in FUNCTIONS or name in COMMANDS:
        return Token("command", name)
    raise ParseError(f"unknown command \\{name}")
