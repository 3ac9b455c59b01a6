"""A policy that stays as it is, ready to sample with."""

from typing import Any

import jax

from deepsearch_jax.runtime import RunSettings, Task, build_policy
from deepsearch_jax.runtime.interrupt import StopRequest
from deepsearch_jax.runtime.learning import sampling_params
from deepsearch_jax.runtime.rollouts import Sampler


def frozen_sampler(settings: RunSettings, task: Task) -> tuple[Sampler, Any]:
    """A sampler on one device, and the policy's parameters as it takes them."""
    model, params = build_policy(settings.model, task, settings.search, settings.seed)
    sampler = Sampler(
        task, model, settings.search, settings.rollout, run_key=jax.random.key(settings.seed), mesh=None,
        check_stop=StopRequest().check, advance=lambda done, detail: None,
    )  # fmt: skip
    return sampler, sampling_params(params, settings, model)
