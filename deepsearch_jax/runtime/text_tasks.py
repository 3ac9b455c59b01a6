"""Tasks made of texts: what users write in a file of their own (`TextTask`), and reasoning-gym's datasets by name."""

import abc
import dataclasses
import importlib
import importlib.util
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from deepsearch_jax.data.problems import Problem
from deepsearch_jax.data.prompts import encode_prompts
from deepsearch_jax.data.texts import (
    Example,
    TextSettings,
    character_tokenizer,
    check_apart,
    make_problems,
    shared_ends,
    supervised_batch,
)
from deepsearch_jax.data.tokenizers import HFTokenizer, Tokenizer, has_tokenizer
from deepsearch_jax.runtime.verdicts import Verdict
from deepsearch_jax.types import TokenBatch
from deepsearch_jax.verify import GymItem, GymPool, draw_items

GYM = "reasoning_gym"
_ANSWERS = ("auto", "tag", "box", "all")
_MEMBERS = (
    "train_problems",
    "eval_problems",
    "mixture",
    "tokenizer",
    "prompt",
    "score",
    "statistics",
    "warm_start",
    "close",
)


class TextTask(abc.ABC):
    """What a task of your own says: its problems, and what a response is worth. `docs/tasks.md` has an example.

    Made as `YourTask(seed=SEED, **options)`, the seed of the run and the values of `task.options`.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    @abc.abstractmethod
    def train(self) -> Iterable[Example]:
        """Problems to learn from, the same ones at every call; those with a solution serve the warm start too."""

    @abc.abstractmethod
    def heldout(self) -> Iterable[Example]:
        """Problems that accuracy is measured on; none may be among the training ones."""

    @abc.abstractmethod
    def score(self, example: Example, response: str) -> float:
        """What the response is worth, in [0, 1], for any text; equal texts always get equal scores."""

    def is_answered(self, example: Example, response: str) -> bool:
        """Whether a response that was cut off holds an answer all the same."""
        del example, response
        return False


@dataclasses.dataclass(frozen=True)
class GymSettings:
    """A task of the package reasoning-gym.

    Attributes:
      num_train_problems, num_heldout_problems: how many; there are fewer where the dataset has no more distinct ones.
      num_warm_start_problems: more of them, whose answers a model from nothing is shown; none is held out.
      answer: where in a response the answer stands: "tag" between <answer> and </answer>, "box" in \\boxed{}, "all" is
        the whole response; "auto" is "all" for characters, "tag" where task.text.prompt mentions <answer>, else "box".
      num_workers: processes that score.
      deadline_s: seconds an answer may take to score; then its worker is killed and the answer is wrong.
      memory_mb: address space of a worker.
    """

    num_train_problems: int = 256
    num_heldout_problems: int = 64
    num_warm_start_problems: int = 512
    answer: str = "auto"
    num_workers: int = 2
    deadline_s: float = 3.0
    memory_mb: int = 1024

    def __post_init__(self) -> None:
        if self.answer not in _ANSWERS:
            raise ValueError(f"answer={self.answer!r} is not known; choose one of {', '.join(_ANSWERS)}")
        for name in ("num_train_problems", "num_heldout_problems", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.num_warm_start_problems < 0:
            raise ValueError(f"num_warm_start_problems={self.num_warm_start_problems} must be at least 0")
        if not 0 < self.deadline_s < 3600:
            raise ValueError(f"deadline_s={self.deadline_s} must be a number of seconds between 0 and 3600")
        if self.memory_mb < 512:
            raise ValueError(f"memory_mb={self.memory_mb} cannot hold the library; use 1024 or more")


class QuestionTask:
    """A task of examples with either tokenizer: prompts, scores counted as right or wrong, the warm start."""

    mixture: tuple[float, ...] = ()

    def __init__(
        self, train: Iterable[Example], heldout: Iterable[Example], settings: TextSettings, *, name: str,
        model_path: str, seed: int, correct_from: float, shown: Iterable[Example] = (),
    ):  # fmt: skip
        """`shown`: examples for the warm start; those of `train` where there are none.

        Raises: ValueError for bad examples, and as HFTokenizer and encode_prompts.
        """
        self._settings, self._seed, self._correct_from = settings, seed, correct_from
        train_problems, self._examples = make_problems(train, name)
        heldout_problems, more = make_problems(heldout, name)
        check_apart(train_problems, heldout_problems)
        self._examples |= more
        pairs = [(e.question, e.solution) for e in (shown or self._examples.values()) if e.solution]
        heldout_questions = {problem.question for problem in heldout_problems}
        pairs = [pair for pair in pairs if pair[0] not in heldout_questions]
        self._num_skipped, self._score_sum, self._num_scored = 0, 0.0, 0
        self._prompts: dict[str, list[int]] = {}  # by question
        self._pairs: list[tuple[str, str]] = []  # of the warm start
        self.is_of_characters = _is_of_characters(settings, model_path)
        if self.is_of_characters:
            self.train_problems, self.eval_problems = train_problems, heldout_problems
            self._use_characters([*train_problems, *heldout_problems], [] if model_path else pairs)
        else:
            self.tokenizer: Tokenizer = HFTokenizer(model_path)
            self.train_problems, self.eval_problems = self._encode(train_problems), self._encode(heldout_problems)

    def _use_characters(self, problems: list[Problem], pairs: list[tuple[str, str]]) -> None:
        """Table and prompts follow from the problems alone: a policy that was saved is read with the same ones."""
        texts = [e.question + e.solution for e in self._examples.values()]
        self.tokenizer = self._characters = character_tokenizer([*texts, "\n"])
        first, last = self._ends = shared_ends([problem.question for problem in problems])
        sample, alphabet = problems[0].question, set(self._characters.alphabet)
        begin, end = sample[:first], sample[len(sample) - last :]
        self._prompts = {p.question: self._characters.encode(self._trimmed(p.question)) for p in problems}
        self._pairs = [
            (self._trimmed(question), text)
            for question, text in pairs
            if question.startswith(begin) and question.endswith(end) and set(question + text) <= alphabet
        ]

    def _trimmed(self, question: str) -> str:
        """The question without what all share, and the end of its line."""
        return question[self._ends[0] : len(question) - self._ends[1]] + "\n"

    def _encode(self, problems: list[Problem]) -> list[Problem]:
        if not problems:
            return []
        encoded = encode_prompts(problems, self.tokenizer, self._settings.prompt)
        self._num_skipped += encoded.num_skipped
        kept = [problems[index] for index in encoded.kept]
        for problem, tokens, length in zip(kept, encoded.tokens, encoded.lengths, strict=True):
            self._prompts[problem.question] = tokens[:length].tolist()
        return kept

    def prompt(self, problem: Problem) -> list[int]:
        return self._prompts[problem.question]

    def score(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        scored = self._scores([(self._examples[problem.id], text) for problem, text in items])
        self._score_sum += sum(score for score, _ in scored)
        self._num_scored += len(scored)
        return [Verdict(1.0 if score >= self._correct_from else score, answered) for score, answered in scored]

    def _scores(self, items: Sequence[tuple[Example, str]]) -> list[tuple[float, bool]]:
        """(score, whether there is an answer) of each."""
        raise NotImplementedError

    def statistics(self) -> dict[str, Any]:
        mean = self._score_sum / self._num_scored if self._num_scored else 0.0
        return {"skipped_prompts": self._num_skipped, "mean_score": mean}

    def warm_start(self, step: int) -> tuple[TokenBatch, float] | None:
        if step >= self._settings.warm_start_steps or not self._pairs:
            return None
        batch = supervised_batch(self._pairs, self._settings, self._characters, seed=self._seed, step=step)
        return batch, self._settings.warm_start_learning_rate

    def close(self) -> None:
        pass


def _is_of_characters(settings: TextSettings, model_path: str) -> bool:
    if settings.tokenizer == "auto":
        return not (model_path and has_tokenizer(model_path))
    if settings.tokenizer == "model" and not model_path:
        raise ValueError(
            "task.text.tokenizer='model', but model.path is empty; give the directory of a Hugging Face checkpoint "
            "with --config.model.path=DIR, or set task.text.tokenizer='characters'"
        )
    return settings.tokenizer == "characters"


class UserTask(QuestionTask):
    """A TextTask as the trainer wants it."""

    def __init__(self, task: TextTask, settings: TextSettings, *, model_path: str, seed: int, correct_from: float):
        self._task = task
        super().__init__(
            task.train(), task.heldout(), settings, name=type(task).__name__, model_path=model_path, seed=seed,
            correct_from=correct_from,
        )  # fmt: skip

    def _scores(self, items: Sequence[tuple[Example, str]]) -> list[tuple[float, bool]]:
        return [(self._checked(example, text), self._task.is_answered(example, text)) for example, text in items]

    def _checked(self, example: Example, text: str) -> float:
        score = float(self._task.score(example, text))
        if not 0 <= score <= 1:
            raise ValueError(
                f"{type(self._task).__name__}.score gave {score} for the response {text[:80]!r}; a score lies in [0, 1]"
            )
        return score


class GymTask(QuestionTask):
    """A dataset of reasoning-gym: its own generator, its own scores."""

    def __init__(
        self, dataset: str, options: dict[str, Any], gym: GymSettings, settings: TextSettings, *, model_path: str,
        seed: int, correct_from: float,
    ):  # fmt: skip
        """Raises: ValueError as draw_items, or where the dataset has too few distinct problems."""
        # Far apart: the library makes problem i from seed + i.
        seeds = np.random.SeedSequence((seed, 1)).generate_state(3) // 4
        counts = gym.num_heldout_problems, gym.num_train_problems, gym.num_warm_start_problems
        if not _is_of_characters(settings, model_path) or model_path or not settings.warm_start_steps:
            counts = *counts[:2], 0
        items = draw_items(dataset, options, list(zip(map(int, seeds), counts, strict=True)))
        if not items[0] or not items[1]:
            raise ValueError(
                f"dataset {dataset!r} with options {options} has {len(items[0])} distinct problems to hold out and "
                f"{len(items[1])} others; give it more room, or hold out fewer than "
                f"task.reasoning_gym.num_heldout_problems={gym.num_heldout_problems}"
            )
        heldout, train, shown = ([_example(item) for item in part] for part in items)
        super().__init__(
            train, heldout, settings, name=f"{GYM}:{dataset}", model_path=model_path, seed=seed,
            correct_from=correct_from, shown=shown,
        )  # fmt: skip
        self._pool = GymPool(
            dataset, options, items[0][0], _place_of_answer(gym, settings, self.is_of_characters),
            num_workers=gym.num_workers, deadline_s=gym.deadline_s, memory_mb=gym.memory_mb,
        )  # fmt: skip

    def _scores(self, items: Sequence[tuple[Example, str]]) -> list[tuple[float, bool]]:
        verdicts = self._pool.score([(text, example.extra) for example, text in items])
        return [(verdict.score, verdict.answer is not None and not self._is_all) for verdict in verdicts]

    @property
    def _is_all(self) -> bool:
        """Whether a response is its answer: one that was cut off is then none."""
        return self.is_of_characters

    def statistics(self) -> dict[str, Any]:
        return {**super().statistics(), **dataclasses.asdict(self._pool.stats)}

    def close(self) -> None:
        self._pool.close()


def _example(item: GymItem) -> Example:
    return Example(item.question, item.answer or "-", item.answer or "", item.entry)


def _place_of_answer(gym: GymSettings, settings: TextSettings, is_of_characters: bool) -> str:
    if gym.answer != "auto":
        return gym.answer
    if is_of_characters:
        return "all"
    return "tag" if "<answer>" in settings.prompt.template + settings.prompt.system_prompt else "box"


def find_task(name: str) -> Callable[..., Any]:
    """What `module:NAME` or `path/to/file.py:NAME` names.

    Raises:
      ValueError: there is no such module, file or name in it, or it cannot be called.
    """
    place, _, attribute = name.rpartition(":")
    try:
        if place.endswith(".py"):
            path = pathlib.Path(place).expanduser()
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if spec is None or spec.loader is None or not path.is_file():
                raise ValueError(f"task.name={name!r}: there is no file {path}")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"task.name={name!r}: {error}; start from the folder that holds the module, or name its file: "
            "path/to/file.py:NAME"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ValueError(f"task.name={name!r}: {place} has no class or function {attribute!r}")
    return found


def build_user_task(
    name: str, options: dict[str, Any], settings: TextSettings, *, model_path: str, seed: int, correct_from: float
) -> Any:
    """The task that `module:NAME` names: a TextTask class, or a function that returns any object of the Task protocol.

    Raises: ValueError as find_task, for options it does not take, or where the result is no task.
    """
    made = find_task(name)
    is_text = isinstance(made, type) and issubclass(made, TextTask)
    given = {"seed": seed, **options} if is_text else {"model_path": model_path, "seed": seed, **options}
    try:
        task = made(**given)
    except TypeError as error:
        raise ValueError(
            f"task.name={name!r} could not be made from {', '.join(f'{k}={v!r}' for k, v in given.items())} ({error}); "
            "task.options gives values to the parameters it has"
        ) from error
    if isinstance(task, TextTask):
        return UserTask(task, settings, model_path=model_path, seed=seed, correct_from=correct_from)
    if missing := [member for member in _MEMBERS if not hasattr(task, member)]:
        raise ValueError(f"task.name={name!r} gave a {type(task).__name__}, which has no {', '.join(missing)}")
    return task
