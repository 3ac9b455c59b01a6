"""The quick start task: chains of additions and subtractions with every step written out, `27+8-3:` -> `+8=35-3=32$`.

The domain: the start and every value of a chain lie in [min_value, max_value], operands in [min_operand, max_operand],
all non-negative and written without sign or leading zero. With the defaults (two-digit values, one-digit operands) each
step is five characters, `+8=35`, one search segment. A policy may write anything; only the exact chain is right.
"""

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from deepsearch_jax.data.borrowing import borrows, fits_forgotten
from deepsearch_jax.data.problems import Problem
from deepsearch_jax.data.prompts import PromptSettings, prompt_text
from deepsearch_jax.data.tokenizers import CharTokenizer

EOS = "$"
ALPHABET = "0123456789+-=:"
# Streams of random numbers: one for each use, so that no use shifts another.
TRAIN_STREAM, HELDOUT_STREAM, WARM_START_STREAM = 0, 1, 2
_PROMPT = re.compile(r"(\d+)((?:[+-]\d+)+):", re.ASCII)
_WRITTEN_STEP = re.compile(r"[+-]\d+=\d+", re.ASCII)


@dataclass(frozen=True)
class WarmStartStage:
    """One stretch of the supervised warm start."""

    num_steps: int  # optimizer steps
    learning_rate: float
    lengths: tuple[int, ...]  # chain lengths, in steps
    weights: tuple[float, ...] = ()  # how often each length is drawn, any scale; () draws all equally often
    plus_noise: float = 0.0  # share of additions whose written result is wrong
    minus_noise: float = 0.0  # share of subtractions whose written result is wrong
    forget_borrow: float = 0.0  # share of borrowings left out, 32-5=37; a systematic error, not beside the noises

    def __post_init__(self) -> None:
        if self.num_steps < 1 or not self.learning_rate > 0:
            raise ValueError(f"num_steps={self.num_steps} must be >= 1 and learning_rate={self.learning_rate} above 0")
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths={self.lengths} must hold at least one length, each at least 1")
        if self.weights and (len(self.weights) != len(self.lengths) or min(self.weights) < 0 or not sum(self.weights)):
            raise ValueError(
                f"weights={self.weights} must be one non-negative number for each of lengths={self.lengths}"
            )
        for name in ("plus_noise", "minus_noise", "forget_borrow"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1]")
        if self.forget_borrow and (self.plus_noise or self.minus_noise):
            raise ValueError(
                f"forget_borrow={self.forget_borrow} cannot be beside plus_noise={self.plus_noise} and "
                f"minus_noise={self.minus_noise}; give each a stage of its own"
            )


# Chains of one and two steps teach the step itself at a third of the cost of long ones. (One step alone would not: a
# policy then reads the value off the prompt, which later steps cannot.) Longer chains follow, and noise at the end
# makes the policy calibrated but rarely right.
_SHORT, _ALL = (1, 2), (1, 2, 3, 4, 5)
DEFAULT_STAGES = (
    WarmStartStage(num_steps=450, learning_rate=2e-3, lengths=_SHORT),
    WarmStartStage(num_steps=150, learning_rate=2e-3, lengths=_ALL),
    WarmStartStage(num_steps=100, learning_rate=1e-3, lengths=_ALL, plus_noise=0.2, minus_noise=0.35),
)


@dataclass(frozen=True)
class ArithmeticSettings:
    """Everything that shapes the arithmetic task."""

    seed: int = 0  # of the problems and of the warm-start batches
    min_value: int = 10  # smallest value of a chain, its start included
    max_value: int = 99  # largest one
    min_operand: int = 1
    max_operand: int = 9
    problem_lengths: tuple[int, ...] = (3, 4, 5)  # steps of the problems to be learned, equally many of each
    min_borrows: int = (
        0  # borrowing subtractions in a problem at the least; above 0 all may be forgotten (borrowing.py)
    )
    num_train_problems: int = 1024
    num_heldout_problems: int = 192
    heldout_share: float = 0.1  # of all chains there are; never seen in training, warm start included
    warm_start_batch_size: int = 64  # rows
    warm_start_stages: tuple[WarmStartStage, ...] = DEFAULT_STAGES  # () trains without a warm start

    def __post_init__(self) -> None:
        if self.min_value < 0 or self.min_operand < 1 or self.max_operand < self.min_operand:
            raise ValueError(
                f"values must be >= 0 and operands >= 1: min_value={self.min_value}, "
                f"operands {self.min_operand}..{self.max_operand}"
            )
        if self.max_value - self.min_value < 2 * self.min_operand - 1:
            raise ValueError(
                f"values {self.min_value}..{self.max_value} leave some chain without a next step; "
                f"max_value must be at least {self.min_value + 2 * self.min_operand - 1}"
            )
        if not self.problem_lengths or min(self.problem_lengths) < 1:
            raise ValueError(f"problem_lengths={self.problem_lengths} must hold at least one length, each at least 1")
        if not 0 < self.heldout_share < 1:
            raise ValueError(f"heldout_share={self.heldout_share} must lie between 0 and 1")
        for name in ("num_train_problems", "num_heldout_problems", "warm_start_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("seed", "min_borrows"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if self.min_borrows > min(self.problem_lengths):
            raise ValueError(
                f"min_borrows={self.min_borrows} do not fit into chains of {min(self.problem_lengths)} steps; "
                "raise problem_lengths"
            )


class Chains(NamedTuple):
    """n chains of up to L steps.

    Attributes:
      start: [n] int64 the number a chain begins with.
      operands: [n, L] int64 signed, +8 or -3; 0 beyond the chain's length.
      lengths: [n] int64 steps of each chain, 1..L.
    """

    start: np.ndarray
    operands: np.ndarray
    lengths: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """[n, L] exact value after each step."""
        return self.start[:, None] + np.cumsum(self.operands, axis=1)


def sample_chains(rng: np.random.Generator, lengths: np.ndarray, settings: ArithmeticSettings) -> Chains:
    """Chains of the given lengths; each step is drawn evenly among the operations that stay within the domain."""
    num_chains, depth = lengths.size, int(lengths.max())
    start = rng.integers(settings.min_value, settings.max_value + 1, num_chains)
    operands = np.zeros((num_chains, depth), np.int64)
    value = start.copy()
    for step in range(depth):
        num_plus = np.maximum(
            np.minimum(settings.max_operand, settings.max_value - value) - settings.min_operand + 1, 0
        )
        num_minus = np.maximum(
            np.minimum(settings.max_operand, value - settings.min_value) - settings.min_operand + 1, 0
        )
        choice = rng.integers(0, num_plus + num_minus)
        plus = settings.min_operand + choice
        minus = -(settings.min_operand + choice - num_plus)
        operands[:, step] = np.where(step < lengths, np.where(choice < num_plus, plus, minus), 0)
        value += operands[:, step]
    return Chains(start, operands, lengths.astype(np.int64))


def write_prompts(chains: Chains) -> list[str]:
    """`27+8-3:` for each chain."""
    return [
        f"{start}{''.join(f'{operand:+d}' for operand in row[:length])}:"
        for start, row, length in zip(chains.start, chains.operands, chains.lengths)
    ]


def write_solutions(chains: Chains, values: np.ndarray) -> list[str]:
    """`+8=35-3=32$` for each chain, with `values` [n, L] written behind the equality signs."""
    return [
        "".join(f"{operand:+d}={value}" for operand, value in zip(row[:length], written)) + EOS
        for row, written, length in zip(chains.operands, values, chains.lengths)
    ]


def opened(prompt: str) -> str:
    """What the policy continues: `27+8-3:` becomes `27+8-3:27`, so that the first step looks like all later ones.

    A value, an operation, its result: with the start repeated, a small model learns one kind of step instead of two.
    """
    start = re.match(r"\d+", prompt)
    return prompt + (start[0] if start else "")


def gold_solution(prompt: str) -> str:
    """The one right response to a prompt. Raises: ValueError if the prompt is no chain."""
    match = _PROMPT.fullmatch(prompt)
    if match is None:
        raise ValueError(f"{prompt!r} is no arithmetic prompt; expected the form '27+8-3:'")
    value = int(match[1])
    steps = []
    for operand in re.findall(r"[+-]\d+", match[2]):
        value += int(operand)
        steps.append(f"{operand}={value}")
    return "".join(steps) + EOS


def check_solution(prompt: str, response: str) -> bool:
    """Whether every step repeats its operation and gets its value right, in order, and nothing else is written.

    A right final number after a wrong step counts as wrong: with small numbers, luck would be a frequent teacher. The
    EOS character may be missing, since decoding a row drops it.
    """
    return response.removesuffix(EOS) == gold_solution(prompt).removesuffix(EOS)


def is_heldout(prompt: str, share: float) -> bool:
    """Whether a chain belongs to the held-out side: decided by a hash of its text, whatever the seed."""
    number = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big")
    return number < share * 2**64


def generate_problems(settings: ArithmeticSettings, *, heldout: bool) -> list[Problem]:
    """Distinct problems of one side, equally many of each length, in random order.

    Keys are rows: training problems come first, held-out ones go on behind them.
    Raises:
      ValueError: there are not enough distinct chains on that side.
    """
    num = settings.num_heldout_problems if heldout else settings.num_train_problems
    stream, first_key = (HELDOUT_STREAM, settings.num_train_problems) if heldout else (TRAIN_STREAM, 0)
    rng = np.random.default_rng(np.random.SeedSequence((settings.seed, stream)))
    prompts: list[tuple[str, int]] = []
    num_lengths = len(settings.problem_lengths)
    for index, length in enumerate(settings.problem_lengths):
        wanted = num // num_lengths + (index < num % num_lengths)
        prompts += [(p, length) for p in _distinct_prompts(rng, length, wanted, heldout, settings)]
    problems = []
    for row, position in enumerate(rng.permutation(num)):
        prompt, length = prompts[position]
        answer = gold_solution(prompt).removesuffix(EOS).rpartition("=")[2]
        source, metadata = f"{length} steps", {"num_steps": length}  # reports by source are reports by difficulty
        problems.append(Problem(first_key + row, prompt.removesuffix(":"), prompt, answer, source, metadata))
    return problems


def _distinct_prompts(
    rng: np.random.Generator, length: int, num: int, heldout: bool, settings: ArithmeticSettings
) -> list[str]:
    found: dict[str, None] = {}  # keeps the order in which prompts were found
    num_idle = 0
    while len(found) < num:
        before = len(found)
        chains = sample_chains(rng, np.full(256, length), settings)
        for prompt, is_wanted in zip(write_prompts(chains), _is_problem(chains, settings)):
            if len(found) < num and is_wanted and is_heldout(prompt, settings.heldout_share) == heldout:
                found.setdefault(prompt)
        num_idle = num_idle + 1 if len(found) == before else 0
        if num_idle == 50:
            raise ValueError(
                f"only {len(found)} of {num} distinct {'held-out' if heldout else 'training'} chains of {length} steps "
                "found; ask for fewer problems, longer chains, a wider range of values or a lower min_borrows"
            )
    return list(found)


def _is_problem(chains: Chains, settings: ArithmeticSettings) -> np.ndarray:
    """[n] bool: chains with as many borrowings as asked for."""
    if not settings.min_borrows:
        return np.ones(chains.start.size, bool)
    return (borrows(chains).sum(axis=1) >= settings.min_borrows) & fits_forgotten(chains, settings.max_value)


class ArithmeticTask:
    """Problems, tokenizer, prompt and scoring of the quick start task."""

    def __init__(self, settings: ArithmeticSettings):
        self.settings = settings
        self.tokenizer = CharTokenizer(ALPHABET, eos=EOS)
        self.prompt_settings = PromptSettings(
            template="{question}", chat=False, max_prompt_length=max_prompt_length(settings.problem_lengths, settings)
        )

    @functools.cached_property
    def train_problems(self) -> list[Problem]:
        return generate_problems(self.settings, heldout=False)

    @functools.cached_property
    def heldout_problems(self) -> list[Problem]:
        return generate_problems(self.settings, heldout=True)

    @property
    def max_response_length(self) -> int:
        """Tokens of the longest right response, EOS included."""
        return max_response_length(self.settings.problem_lengths, self.settings)

    def render(self, problem: Problem) -> str:
        return opened(prompt_text(problem.question, self.prompt_settings))

    def score(self, problem: Problem, response: str) -> float:
        """1.0 if every step is right, else 0.0."""
        return float(check_solution(problem.question, response))

    def is_answered(self, problem: Problem, response: str) -> bool:
        """Whether the response is a complete attempt, even if cut off: it has ended or written all its steps."""
        num_steps = len(re.findall(r"[+-]", problem.question))
        return response.endswith(EOS) or len(_WRITTEN_STEP.findall(response)) >= num_steps


def max_prompt_length(lengths: Sequence[int], settings: ArithmeticSettings) -> int:
    """Characters of the longest opened prompt with chains of these lengths."""
    return 2 * len(str(settings.max_value)) + max(lengths) * (1 + len(str(settings.max_operand))) + 1


def max_response_length(lengths: Sequence[int], settings: ArithmeticSettings) -> int:
    """Characters of the longest right response to chains of these lengths, EOS included."""
    return max(lengths) * (2 + len(str(settings.max_operand)) + len(str(settings.max_value))) + 1
