"""A worker process that scores answers with reasoning-gym; run as `python -m deepsearch_jax.verify.gym_worker`.

Several of the library's scorers hand the answer to `eval` or to sympy's parser, which does the same. Here such text is
compiled only if it is plain: numbers, text, lists of them, arithmetic, and the number classes of sympy. All else that
touches the world is refused as in every worker (`worker.py`), and time and memory are limited.
"""

import ast
import json
import sys
from collections.abc import Callable
from typing import Any

from deepsearch_jax.verify.gym_problems import open_dataset, unpacked
from deepsearch_jax.verify.worker import Guard, serve

_MAX_SOURCE = 4000  # characters of text that may be compiled
# What may be called: what sympy's parser writes around literals, and functions of numbers and variables.
_FUNCTIONS = frozenset((
    "Integer", "Float", "Rational", "Symbol", "sqrt", "exp", "log", "Abs", "sin", "cos", "tan", "cot", "sec", "csc",
    "asin", "acos", "atan", "acot", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh",
))  # fmt: skip
_MAX_NAME = 1  # letters of a variable, or of a constant as E and I
_OF_THE_LIBRARY = frozenset(("from sympy import *",))  # what sympy's parser runs before it reads a text
_PLAIN = (
    ast.Expression, ast.Constant, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.Load, ast.BinOp,
    ast.UnaryOp, ast.operator, ast.unaryop,
)  # fmt: skip


def is_plain(source: str) -> bool:
    """Whether the text holds literals, lists of them, variables of one letter, arithmetic and the functions above, and
    nothing else that could be called or looked up."""
    if len(source) > _MAX_SOURCE:
        return False
    if source in _OF_THE_LIBRARY:
        return True
    try:
        tree = ast.parse(source.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return not _are_statements(source)  # otherwise the compilation that is asked for fails by itself
    except (RecursionError, MemoryError):
        return False  # too deep to look at, which does not say that it is too deep to run
    called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call) and not n.keywords}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            is_called = id(node) in called
            if node.id not in _FUNCTIONS if is_called else len(node.id) > _MAX_NAME:
                return False
        elif not isinstance(node, (*_PLAIN, ast.Call)):
            return False
    return True


def _are_statements(source: str) -> bool:
    """Whether a text that is no expression could be run all the same."""
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    except (RecursionError, MemoryError):
        pass
    return True


class _GymGuard(Guard):
    """The audit hook of every worker; it also lets plain texts be evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self._is_reading = False  # a text, to see whether it is plain: compiling it for that is let through

    def is_code(self, event: str, args: tuple[Any, ...]) -> bool:
        if event == "exec" and args[0].co_filename == "<string>":
            return True  # it was compiled from a text that passed here
        if event == "compile":
            if self._is_reading:
                return True
            if isinstance(args[0], str | bytes) and str(args[1]).startswith("<") and self._is_plain(args[0]):
                return True
        return super().is_code(event, args)

    def _is_plain(self, source: str | bytes) -> bool:
        self._is_reading = True
        try:
            return is_plain(source if isinstance(source, str) else source.decode("utf-8", "replace"))
        finally:
            self._is_reading = False


def _prepare() -> Callable[[str, str], dict[str, Any]]:
    setup = json.loads(sys.argv[3])
    dataset = open_dataset(setup["dataset"], setup["options"], seed=0, size=1000)

    def score(answer: str, entry: str) -> dict[str, Any]:
        record = unpacked(json.loads(entry))
        try:
            value = float(dataset.score_answer(answer, record))
        except MemoryError:
            raise  # may leave a library in a bad state: the worker is replaced
        except Exception:  # a hundred scorers: an answer that one of them cannot read is a wrong one
            value = 0.0
        value = min(max(value, 0.0), 1.0) if value == value else 0.0
        return {"equal": value >= 1.0, "score": value}

    # Once before files are closed to it: what scorers import and read lazily is there afterwards.
    score(setup["answer"], setup["entry"])
    return score


if __name__ == "__main__":
    serve(_prepare, _GymGuard())
