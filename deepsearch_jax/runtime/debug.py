"""Checks of JAX itself around the steps that a run spends its time in; they change no number (`docs/guards.md`)."""

import contextlib
import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class DebugSettings:
    """What JAX watches while a run goes on.

    Attributes:
      nans: the first compiled call that gives a NaN ends the run with the operation that made it (jax_debug_nans).
        Every result is waited for, and memory is not reused in place: for finding faults, not for training.
      transfer_guard: an array that goes between host and device without being asked to (by jax.device_put or
        device_get) within a rollout, a filter, an evaluation or an update ends the run. On CPU, where reading an array
        copies nothing, only the way to the device is watched.
    """

    nans: bool = False
    transfer_guard: bool = False


def watch_nans(settings: DebugSettings) -> contextlib.AbstractContextManager[None]:
    """Around a whole run: NaN is an error; what the environment asks for (JAX_DEBUG_NANS) holds too."""
    return jax.debug_nans(settings.nans or jax.config.jax_debug_nans)  # type: ignore[attr-defined]


def hot_steps(settings: DebugSettings) -> contextlib.AbstractContextManager[None]:
    """Around steps that are taken often: implicit transfers are errors."""
    return jax.transfer_guard("disallow") if settings.transfer_guard else contextlib.nullcontext()
