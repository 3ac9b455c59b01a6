"""What several benchmarks need: frozen policies to search with, samplers, medians, the JSON line."""

import contextlib
import dataclasses
import importlib
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from deepsearch_jax.config import from_config
from deepsearch_jax.policy import load_pretrained, save_pretrained
from deepsearch_jax.runtime import RunSettings, build_mesh, build_policy
from deepsearch_jax.runtime.learning import Learner, sampling_params
from deepsearch_jax.runtime.rollouts import Sampler
from deepsearch_jax.runtime.tasks import Task, build_task


@dataclasses.dataclass
class Policy:
    """A task and a policy that stays as it is.

    Attributes:
      params: as the decode engine likes them.
    """

    settings: RunSettings
    task: Task
    model: Any
    params: Any

    def sampler(self, advance: Callable[[float, str], None] = lambda done, detail: None, **changes: Any) -> Sampler:
        """A sampler on one device; `search` and `rollout` replace the settings of these names."""
        settings = dataclasses.replace(self.settings, **changes)
        return Sampler(
            self.task, self.model, settings.search, settings.rollout, run_key=jax.random.key(settings.seed), mesh=None,
            check_stop=lambda: None, advance=advance,
        )  # fmt: skip


def told_now_and_then(name: str, seconds: float = 30.0) -> Callable[[float, str], None]:
    """An `advance` of samplers that writes a line to stderr, at most one in so many seconds."""
    last = start = time.monotonic()

    def advance(done: float, detail: str) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= seconds:
            last = now
            print(f"{name}: {done:g} problems done, {detail}, {now - start:.0f} s", file=sys.stderr, flush=True)

    return advance


def settings_of(config: str, variant: str, **changes: Any) -> RunSettings:
    """Settings of experiments/configs/NAME.py with a variant; keyword arguments set dotted names ("search__x")."""
    built = importlib.import_module(f"experiments.configs.{config}").get_config(variant)
    for name, value in changes.items():
        *groups, last = name.split("__")
        target = built
        for group in groups:
            target = target[group]
        target[last] = value
    return from_config(RunSettings, built.to_dict())


def tiny_policy(
    directory: pathlib.Path | None = None, *, variant: str = "deepsearch", seed: int = 0,
    problem_lengths: tuple[int, ...] | None = None,
) -> Policy:  # fmt: skip
    """The quick start's policy after its supervised warm start (about a minute); kept in `directory` if given.

    Args:
      problem_lengths: steps of the problems to be searched; the warm start is the same.
    """
    settings = dataclasses.replace(settings_of("quickstart", variant), seed=seed, num_devices=1)
    task = build_task(settings.task, "", settings.seed)
    model, params = build_policy(settings.model, task, settings.search, settings.seed)
    kept = directory / f"quickstart-{seed}" if directory else None
    if kept and kept.exists():
        params = load_pretrained(kept)[1]
    else:
        learner = Learner(settings, model, build_mesh(1), pathlib.Path("."))
        state, step = learner.init(params), 0
        while (item := task.warm_start(step)) is not None:
            state, _ = learner.supervised(state, *item)
            step += 1
        params = state.params
        if kept:
            save_pretrained(kept, model, params)
    if problem_lengths:
        search = dataclasses.replace(settings.search, max_depth=max(problem_lengths) + 1)
        arithmetic = dataclasses.replace(settings.task.arithmetic, problem_lengths=problem_lengths)
        changed = dataclasses.replace(settings.task, arithmetic=arithmetic)
        settings = dataclasses.replace(settings, task=changed, search=search)
        task = build_task(changed, "", settings.seed)
    return Policy(settings, task, model, sampling_params(params, settings, model))


def real_policy(model: str, *, variant: str = "cpu", config: str = "qwen05b_gsm8k") -> Policy:
    """A pretrained policy on its problem files; `model` is a Hugging Face directory."""
    settings = dataclasses.replace(settings_of(config, variant, model__path=model), num_devices=1)
    task = build_task(settings.task, model, settings.seed)
    architecture, params = build_policy(settings.model, task, settings.search, settings.seed)
    decoding = sampling_params(params, settings, architecture)
    del params
    return Policy(settings, task, architecture, decoding)


@contextlib.contextmanager
def closing(policy: Policy) -> Iterator[Policy]:
    """Ends the task's worker processes."""
    try:
        yield policy
    finally:
        policy.task.close()


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, wall seconds, CPU seconds of this process)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def finish(name: str, value: float, unit: str, ratio: float | None, **more: Any) -> None:
    """Prints the last line: one JSON object."""
    print(json.dumps({"name": name, "value": plain(value), "unit": unit, "ratio": plain(ratio), **plain(more)}))


def plain(value: Any) -> Any:
    """Numbers rounded to four significant digits, containers likewise."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.4g}")
    return int(value) if isinstance(value, np.integer) else value
