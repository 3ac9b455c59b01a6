"""The gradient of one row on its own: where a batch whose update is not finite goes wrong."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deepsearch_jax.objective import LossSettings
from deepsearch_jax.training.gradients import Batch, LogProbFn, Params, loss_of, model_inputs, sum_of_gradients
from deepsearch_jax.training.optimizer import UpdateSettings


class RowReport(NamedTuple):
    """What one row alone gives.

    Attributes:
      log_probs, entropy: [T] float32 by the forward pass.
      weighted_sum: [] float32 what the row adds to the loss, not divided yet.
      num_non_finite: of each parameter's gradient, entries that are NaN or infinite; [] int32, or [L] by layer where
        the layers are stacked.
      largest: [] or [L] float32 the largest magnitude among the other entries.
    """

    log_probs: jax.Array
    entropy: jax.Array
    weighted_sum: jax.Array
    num_non_finite: Any
    largest: Any


def by_layer(path: Any, leaf: jax.Array) -> jax.Array:
    """A parameter (or its gradient) as [..., n]: a row a layer where layers are stacked, else all of it."""
    is_stacked = any(getattr(key, "key", None) == "layers" for key in path) and leaf.ndim > 0
    return leaf.reshape(leaf.shape[0], -1) if is_stacked else leaf.reshape(-1)


@functools.partial(jax.jit, static_argnames=("log_prob_fn", "loss_settings", "settings"))
def inspect_row(
    params: Params, frozen: Params | None, row: Batch, *, log_prob_fn: LogProbFn, loss_settings: LossSettings | None,
    settings: UpdateSettings,
) -> RowReport:  # fmt: skip
    """Forward and backward pass of a batch of one row.

    Args:
      frozen: parameters without a gradient, as for `update`.
      loss_settings: None: on the cross-entropy.
      settings: without micro-batches.
    """
    everything = params if frozen is None else (frozen, params)
    log_probs, entropy = log_prob_fn(everything, *model_inputs(row))
    loss_fn = loss_of(loss_settings, settings)
    gradients, terms = sum_of_gradients(params, frozen, row, log_prob_fn, loss_fn, settings, None)

    def count(path: Any, gradient: jax.Array) -> jax.Array:
        return jnp.sum(~jnp.isfinite(by_layer(path, gradient)), axis=-1, dtype=jnp.int32)

    def largest(path: Any, gradient: jax.Array) -> jax.Array:
        flat = by_layer(path, gradient)
        return jnp.max(jnp.where(jnp.isfinite(flat), jnp.abs(flat), 0), axis=-1, initial=0)

    return RowReport(
        log_probs[0], entropy[0], terms.weighted_sum, jax.tree.map_with_path(count, gradients),
        jax.tree.map_with_path(largest, gradients),
    )  # fmt: skip
