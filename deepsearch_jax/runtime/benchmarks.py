"""Accuracy of a policy on whole evaluation sets, from direct samples or from searches; stopped and resumed at will.

Every problem's samples follow from (seed, problem), so that a run that was stopped goes on to the same results.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from deepsearch_jax.data.benchmarks import benchmark_paths, label
from deepsearch_jax.data.problems import Problem, ProblemSettings, load_problem_set
from deepsearch_jax.data.prompts import PromptSettings
from deepsearch_jax.policy import ModelConfig, weights_fingerprint
from deepsearch_jax.runtime.benchmark_report import print_results, summarise, write_results
from deepsearch_jax.runtime.compile_cache import enable_compile_cache
from deepsearch_jax.runtime.interrupt import Interrupted, StopRequest
from deepsearch_jax.runtime.learning import decoding_params
from deepsearch_jax.runtime.memory import settle_pool
from deepsearch_jax.runtime.meshes import build_mesh
from deepsearch_jax.runtime.progress import RemainingTime, Reporter
from deepsearch_jax.runtime.rollout_settings import RolloutSettings, check_siblings
from deepsearch_jax.runtime.rollouts import Purpose, Sampler, chunks
from deepsearch_jax.runtime.run import build_policy
from deepsearch_jax.runtime.sample_files import origin, read_samples
from deepsearch_jax.runtime.settings import ModelSettings, check_seed
from deepsearch_jax.runtime.tasks import CORRECT_FROM, MathSettings, MathTask, Task, Verdict
from deepsearch_jax.runtime.workdir import Workdir
from deepsearch_jax.training import UpdateSettings
from deepsearch_jax.tree import SearchSettings
from deepsearch_jax.types import Outcome
from deepsearch_jax.verify import VerifySettings, final_answer

METHODS = ("direct", "search")
# Fillings of the slots between two writes: a kill loses no more. Trees flow through the slots until the last has ended.
_FILLINGS = {"direct": 1, "search": 4}
# Another list of sets is welcome in the same workdir: those that are there are not sampled again. Rows of samples say
# which problem and weights they belong to, so that files may move.
_FREE_KEYS = (
    "benchmarks",
    "data",
    "num_devices",
    "compile_cache",
    "verify.num_workers",
    "rollout.num_slots",
    "rollout.rows_at_once",
)


@dataclasses.dataclass(frozen=True)
class BenchmarkSettings:
    """One evaluation.

    Attributes:
      seed: of the samples.
      model: the policy; its path is a Hugging Face directory, such as the `policy` of a run's workdir.
      benchmarks: names, files or datasets of the hub; see `benchmark_paths`.
      data: folder with the files of the named sets.
      num_problems: the first ones of each set; 0 takes all.
      method: "direct" samples, or one "search" a problem (settings `search`, budget in search.token_budget).
      num_samples: direct responses a problem; the k of avg@k and maj@k.
      max_length: tokens of a direct response.
      search_labels: whether the search sees verdicts of the answers it finds (as in training: what it solves with its
        budget). False hides them: every answer counts as a wrong one, so that the search goes on to others, and the
        majority of the credited trajectories is the answer.
      prompt, verify: as in training.
      rollout: sampling; see RolloutSettings.
      num_texts: responses a problem whose text is kept in the samples' file.
      num_devices: devices used; 0 takes all.
      compile_cache: as in RunSettings.
    """

    seed: int = 0
    model: ModelSettings = ModelSettings()
    benchmarks: tuple[str, ...] = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench")
    data: str = "../shared/data"
    num_problems: int = 0
    method: str = "direct"
    num_samples: int = 32
    max_length: int = 16384
    search: SearchSettings = SearchSettings()
    search_labels: bool = False
    prompt: PromptSettings = PromptSettings()
    verify: VerifySettings = VerifySettings()
    rollout: RolloutSettings = RolloutSettings(temperature=0.6, top_p=0.95)
    num_texts: int = 1
    num_devices: int = 0
    compile_cache: str = "auto"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} is not known; choose one of {', '.join(METHODS)}")
        if self.method == "search":
            check_siblings(self.search, self.rollout)
        if not self.benchmarks:
            raise ValueError("benchmarks=() names nothing to evaluate on")
        labels = [label(name) for name in self.benchmarks]
        if len(set(labels)) < len(labels):
            raise ValueError(f"benchmarks={self.benchmarks!r} would write two sets into one file; rename one of them")
        for name in ("num_samples", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        check_seed(self.seed)
        for name in ("num_problems", "num_texts", "num_devices"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")


class _Policy(NamedTuple):
    """What is evaluated: its parameters as the decode engine likes them, and the name of the weights they come from."""

    model: ModelConfig
    params: Any
    weights: str


class _Unlabelled:
    """A task whose verdicts only say whether there is an answer."""

    def __init__(self, task: Task):
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def score(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return [Verdict(0.0, final_answer(text) is not None) for _, text in items]


def evaluate_benchmarks(
    settings: BenchmarkSettings,
    config: dict[str, Any],
    workdir: str | os.PathLike[str],
    reporter: Reporter | None = None,
) -> dict[str, Any] | None:
    """Evaluates, or goes on evaluating, in `workdir`.

    Writes samples/SET.jsonl (a row a problem), results.json and results.md, and prints a table.

    Returns: what results.json holds; None if a stop was asked for (everything so far is kept).
    Raises:
      ValueError: a setting, file or workdir that cannot be used; samples of other problems or weights are there.
    """
    if not settings.model.path:
        raise ValueError(
            "model.path is empty; give the directory of a Hugging Face checkpoint with --config.model.path=DIR"
        )
    reporter = reporter or Reporter()
    stop, place = StopRequest(), Workdir(workdir)
    stop.install()
    try:
        place.check_config(config, _FREE_KEYS)
        enable_compile_cache(settings.compile_cache)
        files = {
            name: ProblemSettings(benchmark_paths(name, settings.data), limit=settings.num_problems)
            for name in settings.benchmarks
        }
        (place.path / "samples").mkdir(exist_ok=True)
        sets: dict[str, list[dict[str, Any]]] = {}
        policy: _Policy | None = None
        for name, problems in files.items():
            task = MathTask(
                MathSettings(train=problems, num_heldout=0, prompt=settings.prompt, verify=settings.verify),
                settings.model.path, settings.seed,
            )  # fmt: skip
            try:
                if policy is None:
                    policy = _load(settings, task)
                    for other, of_other in files.items():  # all of them, before hours go into the first
                        read_samples(_file_of(place.path, other), load_problem_set(of_other), policy.weights)
                    place.record_config(config)
                sets[label(name)] = _evaluate(settings, name, task, policy, place.path, reporter, stop)
            finally:
                task.close()
        results = {name: summarise(rows) for name, rows in sets.items()}
        write_results(place.path, results, settings.method)
        reporter.close()
        print_results(reporter.console, results)
        reporter.line(f"results: {place.path / 'results.md'}")
        return results
    except Interrupted:
        reporter.line("stopped; the same command goes on from here")
        return None
    finally:
        reporter.close()
        stop.restore()
        place.close()


def _file_of(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Where the samples of a set are kept."""
    return workdir / "samples" / f"{label(name)}.jsonl"


def _load(settings: BenchmarkSettings, task: Task) -> _Policy:
    model, params = build_policy(settings.model, task, settings.search, settings.seed)
    weights = weights_fingerprint(params)
    devices = settings.num_devices or jax.device_count()
    per_slot = settings.num_samples
    if settings.method == "search":
        per_slot = settings.search.picks_per_step * settings.search.children_per_expansion
    rows = max(settings.rollout.num_slots * per_slot // devices, 1)
    return _Policy(model, decoding_params(params, settings.rollout, model, rows), weights)


def _evaluate(
    settings: BenchmarkSettings, name: str, task: MathTask, policy: _Policy, workdir: pathlib.Path,
    reporter: Reporter, stop: StopRequest,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of one set, those of an earlier start included; each batch is on disk when the next begins."""
    path = _file_of(workdir, name)
    rows = read_samples(path, task.train_problems, policy.weights)
    done = {row["id"] for row in rows if row["kind"] == "problem"}
    left = [problem for problem in task.train_problems if problem.id not in done]
    reporter.line(f"{name}: {len(task.train_problems)} problems, {len(done)} of them done")
    if not left:
        return rows
    hidden = settings.method == "search" and not settings.search_labels
    sampler = Sampler(
        _Unlabelled(task) if hidden else task, policy.model, settings.search,
        settle_pool(settings.rollout, policy.model, UpdateSettings(), None, is_frozen=True),
        run_key=jax.random.key(settings.seed), mesh=build_mesh(settings.num_devices), check_stop=stop.check,
        advance=reporter.advance,
    )  # fmt: skip
    if settings.method == "direct":
        sampler.check_fits(settings.max_length)
    remaining, before = RemainingTime(len(left), 0), _counts(task)
    _truncate_to_lines(path)
    at_once = settings.rollout.num_slots * _FILLINGS[settings.method]
    with open(path, "a", encoding="utf-8") as file:
        for number, some in enumerate(chunks(left, at_once), start=1):
            stop.check()
            tokens = sampler.generated_tokens
            with reporter.phase(name, len(some)):
                if settings.method == "direct":
                    groups = sampler.direct(
                        policy.params, some, settings.num_samples, Purpose.EVALUATION, (0, 0),
                        max_length=settings.max_length,
                    )  # fmt: skip
                else:
                    groups = sampler.search(policy.params, some, (0, 0))[0]
            new = [_row(group, task, settings, hidden) | origin(group.problem, policy.weights) for group in groups]
            after = _counts(task)
            used = {key: after[key] - before[key] for key in after}
            new.append({"kind": "batch", "generated_tokens": sampler.generated_tokens - tokens, **used})
            before = after
            file.write("".join(json.dumps(row) + "\n" for row in new))
            file.flush()
            os.fsync(file.fileno())
            rows += new
            seconds = sum(reporter.take_times().values())
            finished = min(number * at_once, len(left))
            reporter.line(
                f"{name}: {len(done) + finished}/{len(task.train_problems)}, so far avg {_average(rows):.3f}, "
                f"{new[-1]['generated_tokens'] / max(seconds, 1e-9):.0f} tokens/s, {remaining.text(finished)} left"
            )
    return rows


def _row(group: Any, task: MathTask, settings: BenchmarkSettings, hidden: bool) -> dict[str, Any]:
    """What is kept of a problem's responses."""
    texts = [response.text for response in group.responses]
    if hidden:
        correct = [v.score >= CORRECT_FROM for v in task.score([(group.problem, text) for text in texts])]
    else:
        correct = [response.outcome == Outcome.CORRECT for response in group.responses]
    longest = settings.max_length if settings.method == "direct" else settings.search.max_response_length
    ends = task.tokenizer.eos_ids
    return {
        "kind": "problem",
        "id": group.problem.id,
        "source": group.problem.source,
        "correct": [int(value) for value in correct],
        "answers": [final_answer(text) for text in texts],
        "lengths": [len(response.tokens) for response in group.responses],
        "truncated": [
            int(len(r.tokens) >= longest and int(r.tokens[-1]) not in ends) for r in group.responses
        ],
        "texts": texts[: settings.num_texts],
    }  # fmt: skip


def _counts(task: MathTask) -> dict[str, int]:
    statistics = task.statistics()
    return {name: int(statistics[name]) for name in ("timeouts", "errors")}


def _average(rows: list[dict[str, Any]]) -> float:
    return float(np.mean([np.mean(row["correct"] or [0]) for row in rows if row["kind"] == "problem"]))


def _truncate_to_lines(path: pathlib.Path) -> None:
    """Drops an unfinished last line: the process was killed while it wrote."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
