"""One answer against one reference: text first, then structure and formulas."""

# ruff: noqa: SIM905  (tables of words read better as one text)
import functools
import re

from deepsearch_jax.verify.compare import Comparison, SetEqual
from deepsearch_jax.verify.leaves import Verdict3
from deepsearch_jax.verify.parser import Node, ParseError, parse
from deepsearch_jax.verify.text import LIBRARY_WORDS, MAX_CHARS, clean_latex, readings

_MARKUP = re.compile(
    r"\\(?:text|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|operatorname)(?![A-Za-z])|[{}]|(?<!\d)\s+|\s+(?!\d)"
)
_OPTION = re.compile(r"\\text\{\s*\(([A-Z])\)\s*:?\s*\}\s*(.+)|\\text\{\s*\(([A-Z])\)\s+([^{}]+)\}", re.DOTALL)
_CASELESS = frozenset("yes no true false none both neither dne".split())
_SAME_PHRASE = {
    "dne": "doesnotexist",
    "no solution": "nosolution",
    "nosolutions": "nosolution",
    "norealsolution": "nosolution",
    "norealsolutions": "nosolution",
    "emptyset": "nosolution",
    "theemptyset": "nosolution",
    "noneoftheabove": "noneoftheabove",
}
EMPTY_SETS = frozenset((r"\emptyset", r"\{\}", r"\{ \}"))


def plain_text(cleaned: str) -> str:
    """An answer without markup and spaces; one letter in brackets is the letter. Words lose their case if they were
    marked as text or can only be words."""
    text = _MARKUP.sub("", cleaned).strip(".,;:*")
    if re.fullmatch(r"\([A-Za-z]\)", text):
        return text[1]
    letters = text.replace("-", "").replace("'", "").replace(",", "")
    is_words = letters.isalpha() and (
        (r"\text" in cleaned and len(letters) > 1) or letters.casefold() in _CASELESS or len(letters) > 3
    )
    text = text.casefold() if is_words else text
    return _SAME_PHRASE.get(text, text)


@functools.lru_cache(maxsize=4096)
def _tree(cleaned: str) -> Node | None:
    try:
        return parse(cleaned)
    except (ParseError, RecursionError):
        return None


@functools.lru_cache(maxsize=4096)
def _cleaned(answer: str) -> str:
    return clean_latex(answer)


def forget_answers() -> None:
    """Empties the caches of parsed texts. They hold what depends on the text alone: no verdict changes by this."""
    _tree.cache_clear()
    _cleaned.cache_clear()


def judge(answer: str, ground_truth: str, set_equal: SetEqual | None = None) -> Verdict3:
    """Whether `answer` (the content of a box) says what `ground_truth` says.

    Args:
      answer: untrusted text; it is parsed by our grammar and never evaluated.
      ground_truth: the reference; an empty one rewards nothing.
      set_equal: sympy's equality of sets, given in a worker. Without it the answer may be None: "not decided by
        fractions and doubles, ask a worker".
    """
    if max(len(answer), len(ground_truth)) > MAX_CHARS:
        return bool(ground_truth.strip()) and "".join(answer.split()) == "".join(ground_truth.split())
    pred, gold = _cleaned(answer), _cleaned(ground_truth)
    if not pred or not gold:
        return False
    if pred == gold:
        return True
    pred_text, gold_text = plain_text(pred), plain_text(gold)
    if pred_text == gold_text and pred_text:
        return True
    if {pred_text, gold_text} & {"nosolution"}:
        return (pred_text == "nosolution" or pred in EMPTY_SETS) and (gold_text == "nosolution" or gold in EMPTY_SETS)
    option = _OPTION.fullmatch(pred)
    if option:  # "(B) 12" names the choice and repeats its content
        letter, content = (group for group in option.groups() if group)
        return True if gold_text == letter else judge(content, ground_truth, set_equal)
    if LIBRARY_WORDS.search(pred) or LIBRARY_WORDS.search(gold):
        if set_equal is None:
            return None
        from deepsearch_jax.verify.symbolic import library_equal  # only workers carry sympy

        return library_equal(pred, gold)
    comparison = Comparison(set_equal)
    verdicts = []
    for gold_reading in readings(gold, is_gold=True):
        gold_tree = _tree(gold_reading)
        if gold_tree is None:
            return False
        for pred_reading in readings(pred, is_gold=False):
            pred_tree = _tree(pred_reading)
            verdicts.append(False if pred_tree is None else comparison.answers(pred_tree, gold_tree))
    return True if True in verdicts else None if None in verdicts else False
