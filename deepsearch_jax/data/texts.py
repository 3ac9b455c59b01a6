"""Tasks of plain texts: examples, the table of their characters, options by name, supervised batches."""

import ast
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from deepsearch_jax.data.problems import Problem, problem_keys
from deepsearch_jax.data.prompts import PromptSettings
from deepsearch_jax.data.tokenizers import CharTokenizer
from deepsearch_jax.data.warm_start import supervised_rows
from deepsearch_jax.types import TokenBatch

END, PADDING = "\x03", "\x00"  # characters no text holds: "end of text" ends a response
_WARM_START_STREAM = 2
TOKENIZERS = ("auto", "model", "characters")


class Example(NamedTuple):
    """One problem of a task of texts.

    Attributes:
      question: what the model is asked; questions tell problems apart.
      answer: what the score of a response is found with; never empty.
      solution: a good response, which a model from nothing is shown before RL; "" where there is none to show.
      extra: whatever else the score needs.
    """

    question: str
    answer: str
    solution: str = ""
    extra: Any = None


@dataclass(frozen=True)
class TextSettings:
    """How texts become tokens, and what a model from nothing is shown first.

    Attributes:
      tokenizer: "model" takes the tokenizer of model.path; "characters" one id a character, for small models; "auto"
        takes the model's where model.path has one, else characters.
      prompt: how a question is put to a pretrained model; characters get the bare question.
      warm_start_steps: supervised steps on solutions before RL, of a model from nothing; 0 leaves them out.
      warm_start_batch_size: rows of such a step.
      warm_start_learning_rate: of these steps.
    """

    tokenizer: str = "auto"
    prompt: PromptSettings = PromptSettings()
    warm_start_steps: int = 300
    warm_start_batch_size: int = 64
    warm_start_learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        if self.tokenizer not in TOKENIZERS:
            raise ValueError(f"tokenizer={self.tokenizer!r} is not known; choose one of {', '.join(TOKENIZERS)}")
        if self.warm_start_steps < 0 or self.warm_start_batch_size < 1:
            raise ValueError(
                f"warm_start_steps={self.warm_start_steps} must be at least 0 and "
                f"warm_start_batch_size={self.warm_start_batch_size} at least 1"
            )
        if not self.warm_start_learning_rate > 0:
            raise ValueError(f"warm_start_learning_rate={self.warm_start_learning_rate} must be above 0")


def parse_options(text: str) -> dict[str, Any]:
    """Options of a task, written as keyword arguments: `min_terms=2, operators=('+', '-')`. Only literals are read.

    Raises: ValueError for text of another form.
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("not a list of name=value")
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("every value needs a name")
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"options={text!r} cannot be read ({error}); write name=value pairs with commas between them, texts in "
            "quotation marks, for example min_terms=2, operators=('+', '-')"
        ) from error


def make_problems(examples: Iterable[Example], source: str) -> tuple[list[Problem], dict[str, Example]]:
    """Problems and the examples by problem id; a question that comes again is left out.

    Raises:
      ValueError: an example of another form, without a question or without an answer.
    """
    by_question: dict[str, Example] = {}
    for number, given in enumerate(examples):
        try:
            example = Example(*given)
        except TypeError as error:
            raise ValueError(
                f"example {number} of {source} is {given!r}; expected Example(question, answer)"
            ) from error
        for name in ("question", "answer"):
            value = getattr(example, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"example {number} of {source} has the {name} {value!r}; expected text")
        by_question.setdefault(example.question, example)
    ids = {question: hashlib.blake2b(question.encode(), digest_size=8).hexdigest() for question in by_question}
    keys = problem_keys(list(ids.values()))
    problems = [
        Problem(key, ids[question], question, example.answer, source)
        for key, (question, example) in zip(keys, by_question.items(), strict=True)
    ]
    return problems, {ids[question]: example for question, example in by_question.items()}


def check_apart(train: Sequence[Problem], heldout: Sequence[Problem]) -> None:
    """Raises: ValueError if there is nothing to train on, or a held-out question is among those to learn from."""
    if not train:
        raise ValueError("the task has no problems to learn from")
    known = {problem.question for problem in train}
    if both := [problem.question for problem in heldout if problem.question in known]:
        raise ValueError(f"{len(both)} questions are both held out and to be learned, for example {both[0]!r}")


def character_tokenizer(texts: Iterable[str]) -> CharTokenizer:
    """A table of every character of the texts, in order. Raises: ValueError where they hold END or PADDING."""
    alphabet = "".join(sorted(set().union(*map(set, texts))))
    try:
        return CharTokenizer(alphabet, eos=END, pad=PADDING)
    except ValueError as error:
        raise ValueError(
            f"the texts of the task hold one of the control characters {PADDING!r} and {END!r}, which stand for "
            "padding and the end of a response"
        ) from error


def shared_ends(texts: Sequence[str]) -> tuple[int, int]:
    """How many characters at the beginning and at the end all texts share, cut at spaces; something is left of each.

    A model from nothing would spend its time on reading what says nothing about the problem.
    """
    first, last = _num_shared(texts), _num_shared([text[::-1] for text in texts])
    sample = texts[0]
    while first and not sample[first - 1].isspace():
        first -= 1
    while last and not sample[-last].isspace():
        last -= 1
    return (first, last) if min(map(len, texts)) > first + last else (0, 0)


def _num_shared(texts: Sequence[str]) -> int:
    """Characters that all texts begin with; the first and the last in order differ soonest."""
    low, high = min(texts), max(texts)
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def supervised_batch(
    pairs: Sequence[tuple[str, str]], settings: TextSettings, tokenizer: CharTokenizer, *, seed: int, step: int
) -> TokenBatch:
    """Rows [R, T] of (prompt, response) pairs drawn from (seed, step) alone, as wide as the longest pair."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, _WARM_START_STREAM, step)))
    chosen = rng.integers(len(pairs), size=settings.warm_start_batch_size)
    width = max(len(prompt) + len(response) for prompt, response in pairs) + 1
    prompts = [pairs[i][0] for i in chosen]
    return supervised_rows(prompts, [pairs[i][1] + tokenizer.eos for i in chosen], width, tokenizer)
