"""What a run is at a step boundary: arrays and counters. Saved together, restored together, nothing else matters."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from flax import struct

from deepsearch_jax.cache import SolutionCache
from deepsearch_jax.runtime.settings import RunSettings
from deepsearch_jax.training import TrainState


@struct.dataclass
class RunArrays:
    """The arrays of a run.

    Attributes:
      train: parameters, optimizer state and their counters.
      cache: solutions found by searches.
      num_correct: [N] int32 correct ones among the last direct samples of each training problem, of a filter or, where
        rounds.search_when is not "always", of a step; -1 where it never had any.
      num_samples: [N] int32 how many samples those were; 0 where there were none.
      subset: [N] bool the problems of the current round.
      reference: parameters of the reference policy in compute dtype: those after the warm start, which the loss holds
        the policy near to; None where loss.kl_coefficient is 0.
    """

    train: TrainState
    cache: SolutionCache
    num_correct: jax.Array
    num_samples: jax.Array
    subset: jax.Array
    reference: Any = None


@dataclasses.dataclass
class Position:
    """Counters of a run; all that is not arrays.

    Attributes:
      saves: checkpoints written so far, their numbers.
      warm_start_step: supervised steps done.
      round_index: the current round.
      is_filtered: whether the current round has chosen its problems.
      filtered: right ones among the samples of the candidates of a filter that is not finished, as far as it has come.
      filter_evidence: what these samples say of confidence, fields of a confidence.Evidence.
      step_in_round: training steps done in the current round.
      step: training steps done in all.
      evaluated_step: step of the last evaluation; -1 before the first.
      held_out: pass@1 on held-out problems in the last evaluation; None before the first.
      has_reached: whether an evaluation was at evaluation.stop_at.
      generated_tokens: tokens sampled so far, whatever for.
      trained_tokens: tokens that went through updates so far.
      num_rows: metric rows written so far.
      alarm_counts: steps in a row beyond the limits of `alarms`, by their names.
      iterator: state of the problem iterator of the current round; empty before its first batch.
      fingerprint: of the training problems.
      held_out_fingerprint: of the held-out problems; "" in checkpoints of versions that did not look at them.
      prompts: of the prompts of both as tokens; "" in checkpoints of versions that did not look at them.
      base: of the frozen weights where adapters are trained; "" otherwise.
      evidence: fields of a confidence.Evidence, what searches know of confidence; empty before the first step.
    """

    saves: int = 0
    warm_start_step: int = 0
    round_index: int = 0
    is_filtered: bool = False
    filtered: list[int] = dataclasses.field(default_factory=list)
    filter_evidence: dict[str, float] = dataclasses.field(default_factory=dict)
    step_in_round: int = 0
    step: int = 0
    evaluated_step: int = -1
    held_out: float | None = None
    has_reached: bool = False
    generated_tokens: int = 0
    trained_tokens: int = 0
    num_rows: int = 0
    alarm_counts: dict[str, int] = dataclasses.field(default_factory=dict)
    iterator: dict[str, Any] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""
    held_out_fingerprint: str = ""
    prompts: str = ""
    base: str = ""
    evidence: dict[str, float] = dataclasses.field(default_factory=dict)


def refuse_other_data(saved: Position, now: Position, settings: RunSettings, workdir: pathlib.Path) -> None:
    """Compares what a saved run was made with to what there is now.

    Raises:
      ValueError: other problems, prompts or frozen weights; the message says which.
    """
    if saved.fingerprint != now.fingerprint:
        raise ValueError(
            f"the training problems are not those that the run in {workdir} was started with; "
            "restore the problem files or start in a new workdir"
        )
    if saved.held_out_fingerprint not in ("", now.held_out_fingerprint):
        raise ValueError(
            f"the held-out problems are not those that the run in {workdir} was started with, so its "
            "evaluations could not be compared; restore the problem files or start in a new workdir"
        )
    if saved.prompts not in ("", now.prompts):
        raise ValueError(
            f"the problems are those that the run in {workdir} was started with, but their prompts are other tokens; "
            f"restore the tokenizer and the chat template of {settings.model.path!r} or start in a new workdir"
        )
    if saved.base != now.base:
        raise ValueError(
            f"the model at {settings.model.path!r} is not the one that the adapters of the run in {workdir} "
            "belong to; restore its weights or start in a new workdir"
        )


def as_saved(arrays: RunArrays) -> RunArrays:
    """What all processes of a run hold alike is saved from the host, once; one process saves its arrays as they are."""
    if jax.process_count() == 1:
        return arrays
    own = {
        name: jax.tree.map(np.asarray, getattr(arrays, name))
        for name in ("cache", "num_correct", "num_samples", "subset")
    }
    return dataclasses.replace(arrays, **own)


def placed(restored: Any, sharding: Any) -> jax.Array:
    """A restored array where the run wants it; those saved from the host come back as numpy arrays."""
    return restored if isinstance(restored, jax.Array) else jax.device_put(restored, sharding)
