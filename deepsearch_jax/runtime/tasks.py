"""What a run trains on: one small interface that any verifiable task can fill.

A task knows its problems, turns one into prompt tokens, and scores response texts. `build_task` makes the tasks that
ship with the project, those of reasoning-gym, and what users write (`text_tasks.py`, `docs/tasks.md`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from deepsearch_jax.data.arithmetic import ArithmeticSettings, ArithmeticTask
from deepsearch_jax.data.countdown import CountdownSettings, CountdownTask, countdown_batch
from deepsearch_jax.data.problems import Problem, ProblemSettings, load_problem_set, split_problems
from deepsearch_jax.data.prompts import PromptSettings, encode_prompts
from deepsearch_jax.data.texts import TextSettings, parse_options
from deepsearch_jax.data.tokenizers import HFTokenizer, Tokenizer
from deepsearch_jax.data.warm_start import num_warm_start_steps, stage_at, warm_start_batch
from deepsearch_jax.runtime.text_tasks import GYM, GymSettings, GymTask, build_user_task
from deepsearch_jax.runtime.verdicts import CORRECT_FROM, Verdict
from deepsearch_jax.types import TokenBatch
from deepsearch_jax.verify import VerifySettings, make_scorer

TASKS = ("arithmetic", "countdown", "math")


class Task(Protocol):
    """Problems, prompts and verdicts."""

    @property
    def train_problems(self) -> Sequence[Problem]:
        """Problems to learn from."""

    @property
    def eval_problems(self) -> Sequence[Problem]:
        """Held-out problems."""

    @property
    def mixture(self) -> Sequence[float]:
        """Shares of the components of a mixture among the problems of a step (Problem.component); () mixes nothing."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What turns response tokens into text."""

    def prompt(self, problem: Problem) -> list[int]:
        """Token ids of everything that precedes the response."""

    def score(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Verdicts of (problem, response text) pairs, in order; never raises for what a text says."""

    def statistics(self) -> dict[str, Any]:
        """Counters of the task so far (skipped prompts, time-outs of the verifier); logged with the metrics."""

    def warm_start(self, step: int) -> tuple[TokenBatch, float] | None:
        """Batch and learning rate of a supervised step before the rounds, None where the warm start has ended."""

    def close(self) -> None:
        """Ends worker processes, if there are any."""


@dataclasses.dataclass(frozen=True)
class MathSettings:
    """A task of problem files with checkable answers.

    Attributes:
      train: problem files to learn from.
      evaluation: held-out problem files; without paths, `num_heldout` problems are split off the training ones.
      num_heldout: see `evaluation`.
      prompt: how a question is put to the model.
      verify: how answers are compared.
    """

    train: ProblemSettings = ProblemSettings()
    evaluation: ProblemSettings = ProblemSettings()
    num_heldout: int = 128
    prompt: PromptSettings = PromptSettings()
    verify: VerifySettings = VerifySettings()


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """Which task, and the settings of each; only the named one is read.

    Attributes:
      name: "arithmetic" or "countdown" (embedded, made by a generator), "math" (problem files),
        "reasoning_gym:DATASET", or a task of your own, "MODULE:NAME" or "FILE.py:NAME"; importing it runs its code.
      options: what the dataset or your own task is made with, as keyword arguments: "min_terms=2, max_terms=3".
      correct_from: score in (0, 1] from which a response counts as correct, where scores lie between 0 and 1
        (reasoning-gym, tasks of your own); below, it is wrong: searches and updates know no halves (Eq. 4).
      text: tokens and warm start of these tasks.
      reasoning_gym: sizes and scoring of a reasoning-gym dataset.
    """

    name: str = "arithmetic"
    options: str = ""
    correct_from: float = CORRECT_FROM
    arithmetic: ArithmeticSettings = ArithmeticSettings()
    countdown: CountdownSettings = CountdownSettings()
    math: MathSettings = MathSettings()
    text: TextSettings = TextSettings()
    reasoning_gym: GymSettings = GymSettings()

    def __post_init__(self) -> None:
        place, _, found = self.name.rpartition(":")
        if self.name not in TASKS and not (place and found):
            raise ValueError(
                f"name={self.name!r} is not known; choose one of {', '.join(TASKS)}, {GYM}:DATASET for a dataset of "
                f"reasoning-gym ({GYM}:chain_sum, for example), or MODULE:NAME for a task of your own"
            )
        if not 0 < self.correct_from <= 1:
            raise ValueError(f"correct_from={self.correct_from} must lie in (0, 1]")
        if self.options and not self.is_text:
            raise ValueError(
                f"options={self.options!r} has no use for name={self.name!r}; its own group has its settings"
            )
        parse_options(self.options)

    @property
    def is_text(self) -> bool:
        """Whether it is a task of texts: a reasoning-gym dataset or one of the user's own."""
        return self.name not in TASKS

    @property
    def has_warm_start(self) -> bool:
        """Whether the task trains supervised before the rounds."""
        if self.name == "arithmetic":
            return bool(self.arithmetic.warm_start_stages)
        if self.is_text:  # of models from nothing alone
            return self.text.warm_start_steps > 0
        return self.name == "countdown" and self.countdown.warm_start_steps > 0


class _GeneratedTask:
    """Problems made by a generator, every step of a response checked, with a supervised warm start from nothing."""

    mixture: tuple[float, ...] = ()

    def __init__(self, task: ArithmeticTask | CountdownTask):
        self._task = task
        self.train_problems = task.train_problems
        self.eval_problems = task.heldout_problems
        self.tokenizer = task.tokenizer

    def score(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return [
            Verdict(self._task.score(problem, text), self._task.is_answered(problem, text)) for problem, text in items
        ]

    def statistics(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


class Arithmetic(_GeneratedTask):
    """Chains of additions and subtractions."""

    def __init__(self, settings: ArithmeticSettings):
        self._settings, self._chains = settings, ArithmeticTask(settings)
        super().__init__(self._chains)

    def prompt(self, problem: Problem) -> list[int]:
        return self.tokenizer.encode(self._chains.render(problem))

    def warm_start(self, step: int) -> tuple[TokenBatch, float] | None:
        if step >= num_warm_start_steps(self._settings):
            return None
        return warm_start_batch(self._settings, step), stage_at(self._settings, step).learning_rate


class Countdown(_GeneratedTask):
    """Numbers to be combined until they give another."""

    def __init__(self, settings: CountdownSettings):
        self._settings = settings
        super().__init__(CountdownTask(settings))

    def prompt(self, problem: Problem) -> list[int]:
        return self.tokenizer.encode(problem.question)

    def warm_start(self, step: int) -> tuple[TokenBatch, float] | None:
        if step >= self._settings.warm_start_steps:
            return None
        return countdown_batch(self._settings, step), self._settings.warm_start_learning_rate


class MathTask:
    """Problems from files, a chat prompt, boxed answers compared by the verifier."""

    def __init__(self, settings: MathSettings, model_path: str, seed: int):
        """Raises: ValueError for a bad model directory or problem file, or if no prompt fits the limit."""
        self.tokenizer: Tokenizer = HFTokenizer(model_path)
        self.mixture = settings.train.weights
        train = load_problem_set(settings.train)
        if settings.evaluation.paths:
            heldout = load_problem_set(settings.evaluation)
        else:
            train, heldout = split_problems(train, settings.num_heldout, seed)
        self._prompts: dict[Problem, list[int]] = {}  # by problem: ids may occur in both sets
        self._num_skipped = 0
        self.train_problems = self._encode(train, settings.prompt)
        self.eval_problems = self._encode(heldout, settings.prompt)
        self._scorer = make_scorer(settings.verify)

    def _encode(self, problems: list[Problem], settings: PromptSettings) -> list[Problem]:
        if not problems:
            return []
        encoded = encode_prompts(problems, self.tokenizer, settings)
        self._num_skipped += encoded.num_skipped
        kept = [problems[index] for index in encoded.kept]
        for problem, tokens, length in zip(kept, encoded.tokens, encoded.lengths, strict=True):
            self._prompts[problem] = tokens[:length].tolist()
        return kept

    def prompt(self, problem: Problem) -> list[int]:
        return self._prompts[problem]

    def score(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        verdicts = self._scorer.score([(text, problem.answer) for problem, text in items])
        return [Verdict(verdict.score, verdict.answer is not None) for verdict in verdicts]

    def statistics(self) -> dict[str, Any]:
        return {"skipped_prompts": self._num_skipped, **dataclasses.asdict(self._scorer.stats)}

    def warm_start(self, step: int) -> None:
        del step  # a pretrained model needs none

    def close(self) -> None:
        self._scorer.close()


def build_task(settings: TaskSettings, model_path: str, seed: int) -> Task:
    """The task of a run. Raises: ValueError for what the task itself complains of, a bad problem file for example."""
    if settings.name == "arithmetic":
        return Arithmetic(settings.arithmetic)
    if settings.name == "countdown":
        return Countdown(settings.countdown)
    if settings.name == "math":
        return MathTask(settings.math, model_path, seed)
    options, kind = parse_options(settings.options), settings.name.partition(":")[0]
    if kind == GYM:
        dataset = settings.name.partition(":")[2]
        return GymTask(
            dataset, options, settings.reasoning_gym, settings.text, model_path=model_path, seed=seed,
            correct_from=settings.correct_from,
        )  # fmt: skip
    return build_user_task(
        settings.name, options, settings.text, model_path=model_path, seed=seed, correct_from=settings.correct_from
    )
