"""The policy that runs are started from, made once and shared: the supervised warm start of a task on its own."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from deepsearch_jax.policy import save_pretrained
from deepsearch_jax.runtime.learning import Learner
from deepsearch_jax.runtime.meshes import build_mesh
from deepsearch_jax.runtime.run import build_policy
from deepsearch_jax.runtime.settings import RunSettings
from deepsearch_jax.runtime.tasks import build_task
from deepsearch_jax.training import gather


def save_warm_started(
    settings: RunSettings, directory: pathlib.Path, *, average_last: int = 0,
    check_stop: Callable[[], None] = lambda: None,
) -> float:  # fmt: skip
    """Warm-starts the policy of `settings` and writes it to `directory` in Hugging Face layout.

    Runs go on from it with `model.path` and without a warm start of their own.
    Args:
      average_last: the weights saved are the mean over the last so many supervised steps (Polyak-Ruppert averaging),
        which takes out most of what a change of rounding does to the last iterate; 0 saves the last ones.
      check_stop: called between supervised steps; may raise.
    Returns:
      Mean supervised loss of the last 50 steps.
    Raises:
      ValueError: the task has no warm start, or fewer steps than are to be averaged.
    """
    task = build_task(settings.task, settings.model.path, settings.seed)
    try:
        model, params = build_policy(settings.model, task, settings.search, settings.seed)
        learner = Learner(settings, model, build_mesh(settings.num_devices), directory)
        state, step, losses = learner.init(params), 0, []
        total = _num_steps(task.warm_start)
        if not total > 0 or average_last > total:
            raise ValueError(f"average_last={average_last} of a warm start of {total} steps; it must be at most that")
        mean = None
        while (item := task.warm_start(step)) is not None:
            if step % 50 == 0:
                check_stop()
            state, loss = learner.supervised(state, *item)
            losses.append(loss)
            step += 1
            if step > total - average_last:
                count = jnp.float32(step - (total - average_last))
                mean = jax.tree.map(jnp.copy, state.params) if mean is None else _add_to_mean(mean, state.params, count)
        save_pretrained(directory, model, gather(state.params if mean is None else mean))
        return float(jnp.mean(jnp.stack(losses[-50:])))
    finally:
        task.close()


def _num_steps(warm_start: Callable[[int], Any]) -> int:
    """Steps of a warm start, found by halving: it has a batch for every step below that number and for none above."""
    high = 1
    while warm_start(high - 1) is not None:
        high *= 2
    low = high // 2  # steps below it exist
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if warm_start(middle - 1) is not None else (low, middle)
    return low


@functools.partial(jax.jit, donate_argnums=(0,))
def _add_to_mean(mean: Any, params: Any, count: jax.Array) -> Any:
    """The mean of `count` parameters from the mean of those before and the last."""
    return jax.tree.map(lambda m, p: m + (p - m) / count.astype(p.dtype), mean, params)
