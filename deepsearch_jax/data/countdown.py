"""Countdown: reach a number from three others by plus, minus and times, `03,07,25>82:` -> `25*03=75,75+07=82$`.

Every number is used once, every step is written out, and all values lie in [0, 99] and are written with two digits, so
that `25*`, `03=`, `75,` are segments of three characters. Any chain of right steps that ends at the target is a
solution; there are often several.
"""

import functools
import itertools
import re
from dataclasses import dataclass

import numpy as np

from deepsearch_jax.data.arithmetic import EOS, HELDOUT_STREAM, TRAIN_STREAM, WARM_START_STREAM, is_heldout
from deepsearch_jax.data.problems import Problem
from deepsearch_jax.data.tokenizers import CharTokenizer
from deepsearch_jax.data.warm_start import supervised_rows
from deepsearch_jax.types import TokenBatch

ALPHABET = "0123456789+-*=,>:"
LIMIT = 99  # largest value, that of two digits
_STEP = re.compile(r"(\d\d)([-+*])(\d\d)=(\d\d)", re.ASCII)


@dataclass(frozen=True)
class CountdownSettings:
    """Everything that shapes the Countdown task."""

    seed: int = 0  # of the problems and of the warm-start batches
    num_numbers: int = 3  # numbers of a problem; its solutions have one step less
    max_number: int = 30  # largest of them; the smallest is 1
    num_train_problems: int = 1024
    num_heldout_problems: int = 192
    heldout_share: float = 0.1  # of all problems there are; never seen in training, warm start included
    warm_start_batch_size: int = 64  # rows
    warm_start_steps: int = 600  # 0 trains without a warm start
    warm_start_learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        if not 2 <= self.num_numbers <= 6:
            raise ValueError(f"num_numbers={self.num_numbers} must lie in [2, 6]")
        if not 2 <= self.max_number <= LIMIT:
            raise ValueError(f"max_number={self.max_number} must lie in [2, {LIMIT}]")
        if not 0 < self.heldout_share < 1:
            raise ValueError(f"heldout_share={self.heldout_share} must lie between 0 and 1")
        for name in ("num_train_problems", "num_heldout_problems", "warm_start_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.seed < 0 or self.warm_start_steps < 0:
            raise ValueError(f"seed={self.seed} and warm_start_steps={self.warm_start_steps} must be at least 0")
        if not self.warm_start_learning_rate > 0:
            raise ValueError(f"warm_start_learning_rate={self.warm_start_learning_rate} must be above 0")

    @property
    def prompt_length(self) -> int:
        return 3 * self.num_numbers + 3

    @property
    def response_length(self) -> int:
        """Characters of a solution, EOS included."""
        return 9 * (self.num_numbers - 1)


def apply(left: int, sign: str, right: int) -> int:
    """left + right, left - right or left * right."""
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def check_solution(prompt: str, response: str) -> bool:
    """Whether every step takes numbers that are there and is right, all are used, and the last result is the target.

    The EOS character may be missing, since decoding a row drops it.
    """
    numbers, target = _read(prompt)
    steps = response.removesuffix(EOS).split(",")
    if len(steps) != len(numbers) - 1:
        return False
    for step in steps:
        match = _STEP.fullmatch(step)
        if match is None:
            return False
        left, sign, right, result = int(match[1]), match[2], int(match[3]), int(match[4])
        for used in (left, right):
            if used not in numbers:
                return False
            numbers.remove(used)
        if apply(left, sign, right) != result:
            return False
        numbers.append(result)
    return numbers == [target]


def _read(prompt: str) -> tuple[list[int], int]:
    match = re.fullmatch(r"(\d\d(?:,\d\d)+)>(\d\d):", prompt, re.ASCII)
    if match is None:
        raise ValueError(f"{prompt!r} is no Countdown prompt; expected the form '03,07,25>82:'")
    return [int(number) for number in match[1].split(",")], int(match[2])


def can_reach(numbers: tuple[int, ...], target: int, signs: str) -> bool:
    """Whether the target can be reached from all the numbers by these operations, every value in [0, 99]."""
    if len(numbers) == 1:
        return numbers[0] == target
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
        for sign in signs:
            result = apply(numbers[i], sign, numbers[j])
            if 0 <= result <= LIMIT and can_reach((*rest, result), target, signs):
                return True
    return False


def sample_solved(rng: np.random.Generator, settings: CountdownSettings) -> tuple[str, str]:
    """A prompt and one solution: random numbers joined by random steps; where they lead is the target."""
    numbers = sorted(rng.integers(1, settings.max_number + 1, settings.num_numbers).tolist())
    left, steps = list(numbers), []
    while len(left) > 1:
        i, j = rng.permutation(len(left))[:2]
        a, b = left[i], left[j]
        possible = [sign for sign in "+-*" if 0 <= apply(a, sign, b) <= LIMIT]
        if not possible:  # the smaller number minus the larger one, both too large to be added
            continue
        sign = possible[rng.integers(len(possible))]
        result = apply(a, sign, b)
        steps.append(f"{a:02d}{sign}{b:02d}={result:02d}")
        left = [n for k, n in enumerate(left) if k not in (i, j)] + [result]
    return ",".join(f"{n:02d}" for n in numbers) + f">{left[0]:02d}:", ",".join(steps) + EOS


def generate_problems(settings: CountdownSettings, *, heldout: bool) -> list[Problem]:
    """Distinct problems of one side in random order; held-out keys go on behind the training ones.

    Raises:
      ValueError: there are not enough distinct problems on that side.
    """
    num = settings.num_heldout_problems if heldout else settings.num_train_problems
    stream, first_key = (HELDOUT_STREAM, settings.num_train_problems) if heldout else (TRAIN_STREAM, 0)
    rng = np.random.default_rng(np.random.SeedSequence((settings.seed, stream)))
    found: dict[str, None] = {}
    for _ in range(200 * num + 10_000):
        prompt, _ = sample_solved(rng, settings)
        if is_heldout(prompt, settings.heldout_share) == heldout:
            found.setdefault(prompt)
        if len(found) == num:
            break
    else:
        raise ValueError(
            f"only {len(found)} of {num} distinct {'held-out' if heldout else 'training'} Countdown problems found; "
            "ask for fewer, or raise max_number or num_numbers"
        )
    problems = []
    for row, prompt in enumerate(found):
        numbers, target = _read(prompt)
        source = "plus and minus" if can_reach(tuple(numbers), target, "+-") else "needs times"
        problems.append(Problem(first_key + row, prompt.removesuffix(":"), prompt, f"{target:02d}", source))
    return problems


def countdown_batch(settings: CountdownSettings, step: int) -> TokenBatch:
    """Supervised rows [R, T] of one step, made from (seed, step) alone; no held-out problem occurs."""
    rng = np.random.default_rng(np.random.SeedSequence((settings.seed, WARM_START_STREAM, step)))
    pairs: list[tuple[str, str]] = []
    while len(pairs) < settings.warm_start_batch_size:
        pair = sample_solved(rng, settings)
        if not is_heldout(pair[0], settings.heldout_share):
            pairs.append(pair)
    prompts, responses = ([pair[i] for pair in pairs] for i in (0, 1))
    width = settings.prompt_length + settings.response_length
    return supervised_rows(prompts, responses, width, CharTokenizer(ALPHABET, eos=EOS))


class CountdownTask:
    """Problems, tokenizer and scoring."""

    def __init__(self, settings: CountdownSettings):
        self.settings = settings
        self.tokenizer = CharTokenizer(ALPHABET, eos=EOS)

    @functools.cached_property
    def train_problems(self) -> list[Problem]:
        return generate_problems(self.settings, heldout=False)

    @functools.cached_property
    def heldout_problems(self) -> list[Problem]:
        return generate_problems(self.settings, heldout=True)

    def score(self, problem: Problem, response: str) -> float:
        """1.0 for a solution, else 0.0."""
        return float(check_solution(problem.question, response))

    def is_answered(self, problem: Problem, response: str) -> bool:
        """Whether the response is a complete attempt, even if cut off."""
        del problem
        return response.endswith(EOS) or response.count("=") >= self.settings.num_numbers - 1
