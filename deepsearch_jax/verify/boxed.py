"""The authors' boxed-answer scorer as recorded: string equality after Minerva's normalisation.

Only the last 300 characters are read, the last literal ``\\boxed{`` must close inside them, and an answer counts when
the two normalised strings are equal. Its oddities (``\\alpha`` loses its `a ` in front of a space, `1,2,3` is `123`)
belong to the recorded behaviour and stay; mode `math` is the scorer without them.
"""

import re
from typing import NamedTuple

WINDOW_CHARS = 300
MISSING = "[INVALID]"
_BOX = "\\boxed{"

# Applied in this order, one after the other: article removal also eats the end of words, which is recorded behaviour.
REPLACE = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)
REMOVE = (
    "square",
    "ways",
    "integers",
    "dollars",
    "mph",
    "inches",
    "hours",
    "km",
    "units",
    "\\ldots",
    "sue",
    "points",
    "feet",
    "minutes",
    "digits",
    "cents",
    "degrees",
    "cm",
    "gm",
    "pounds",
    "meters",
    "meals",
    "edges",
    "students",
    "childrentickets",
    "multiples",
    "\\text{s}",
    "\\text{.}",
    "\\text{\ns}",
    "\\text{}^2",
    "\\text{}^3",
    "\\text{\n}",
    "\\text{}",
    "\\mathrm{th}",
    "^\\circ",
    "^{\\circ}",
    "\\;",
    ",\\!",
    "{,}",
    '"',
    "\\dots",
)

_FIRST_MATH = re.compile(r"(.*?)\$(.*?)\$(.*)")  # line by line: only what the first pair of dollars encloses stays
_WRAPPERS = (
    (re.compile(r"(\\text\{)(.*?)(\})"), r"\2"),
    (re.compile(r"(\\textbf\{)(.*?)(\})"), r"\2"),
    (re.compile(r"(\\overline\{)(.*?)(\})"), r"\2"),
    (re.compile(r"(\\boxed\{)(.*)(\})"), r"\2"),
)
_SHORT_FRACTION = re.compile(r"(frac)([^{])(.)")
_SHORT_ROOT = re.compile(r"(sqrt)([^{])")


class BoxedScore(NamedTuple):
    """What the recorded scorer returns: score +1 or -1, acc, the two normalised strings that were compared."""

    score: float
    acc: bool
    pred: str
    parsed_gt: str


def last_box_content(text: str) -> str | None:
    """Content of the last literal ``\\boxed{`` of `text`, or None if there is none or it does not close.

    Every brace counts, an escaped one too, as recorded; an unclosed last box is not replaced by an earlier one.
    """
    start = text.rfind(_BOX)
    if start < 0:
        return None
    begin, depth = start + len(_BOX), 1
    for match in re.finditer(r"[{}]", text[begin:]):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return text[begin : begin + match.start()]
    return None


def normalize_minerva(answer: str) -> str:
    """Minerva's normalisation of a final answer (golden/README.md, "Answer scoring"), steps in the recorded order."""
    answer = answer.split("=")[-1]
    for old, new in REPLACE:
        answer = answer.replace(old, new)
    for expression in REMOVE:
        answer = answer.replace(expression, "")
    answer = _FIRST_MATH.sub(r"$\2$", answer)
    for pattern, inside in _WRAPPERS:
        answer = pattern.sub(inside, answer)
    answer = _SHORT_FRACTION.sub(r"frac{\2}{\3}", answer)
    answer = _SHORT_ROOT.sub(r"sqrt{\2}", answer)
    answer = answer.replace("$", "")
    digits = answer.replace(",", "")
    return (digits if digits.isdigit() else answer).strip()


def score_boxed(solution_str: str, ground_truth: str) -> BoxedScore:
    """Scores one solution the way the authors' code does: score 1.0 if the normalised strings are equal, else -1.0.

    In training the authors score prompt + response, so an empty box in the prompt can supply the answer "".
    """
    content = last_box_content(solution_str[-WINDOW_CHARS:])
    pred = normalize_minerva(MISSING if content is None else content)
    gold = normalize_minerva(ground_truth)
    acc = pred == gold
    return BoxedScore(1.0 if acc else -1.0, acc, pred, gold)
