"""Gradient sums and log-probs of a batch: one forward (and backward) pass after the other over its micro-batches."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from deepsearch_jax.objective import (
    LossSettings,
    LossTerms,
    add_terms,
    shared_grpo_loss,
    supervised_loss,
    tree_grpo_loss,
)
from deepsearch_jax.training.compiling import Jit
from deepsearch_jax.training.optimizer import UpdateSettings
from deepsearch_jax.training.placement import gather
from deepsearch_jax.training.rows import Cut, cut_by_tokens, row_lengths, take_rows
from deepsearch_jax.training.shards import (
    DATA_AXIS,
    micro_batches,
    num_row_shards,
    over_shards,
    place_rows,
    whole_batch,
)
from deepsearch_jax.types import PackedBatch, TokenBatch

Params = Any
Batch = TokenBatch | PackedBatch
# (params, *`model_inputs` of the batch) -> log_probs [R, T], entropy [R, T]; where some parameters are frozen, params
# is the pair (frozen, trained). It is a static argument: make it once (say by functools.partial) and pass the same
# object every time, or every call compiles anew.
LogProbFn = Callable[..., tuple[jax.Array, jax.Array]]
LossFn = Callable[[jax.Array, jax.Array, Any], LossTerms]  # log_probs, entropy, rows of the batch


def model_inputs(batch: Batch) -> tuple[jax.Array, ...]:
    """What the policy reads of a batch, all [R, T] int32: tokens and ids, then the form of trees if they are any."""
    if isinstance(batch, PackedBatch):
        return batch.tokens, batch.tree_ids, batch.positions, batch.parents, batch.ends
    return batch.tokens, batch.segment_ids


def _policy_loss(loss_settings: LossSettings, settings: UpdateSettings) -> LossFn:
    def loss_fn(log_probs: jax.Array, entropy: jax.Array, rows: Batch) -> LossTerms:
        old_log_probs = jax.lax.stop_gradient(log_probs) if settings.on_policy else rows.old_log_probs
        others = {"sampler_log_probs": rows.sampler_log_probs, "reference_log_probs": rows.reference_log_probs}
        if isinstance(rows, PackedBatch):
            weight = jnp.sum(rows.divisors)
            return shared_grpo_loss(log_probs, old_log_probs, entropy, rows.sums, weight, loss_settings, **others)
        is_row = jnp.any(rows.segment_ids != 0, axis=1)
        return tree_grpo_loss(
            log_probs, old_log_probs, rows.advantages, rows.loss_mask, entropy, loss_settings, is_row, **others
        )

    return loss_fn


def _supervised_loss(log_probs: jax.Array, entropy: jax.Array, rows: TokenBatch) -> LossTerms:
    return supervised_loss(log_probs, rows.loss_mask, entropy)


def loss_of(loss_settings: LossSettings | None, settings: UpdateSettings) -> LossFn:
    """The loss of a batch's rows; the cross-entropy where `loss_settings` is None."""
    return _supervised_loss if loss_settings is None else _policy_loss(loss_settings, settings)


def sum_of_gradients(
    params: Params,
    frozen: Params | None,
    batch: Batch,
    log_prob_fn: LogProbFn,
    loss_fn: LossFn,
    settings: UpdateSettings,
    mesh: Mesh | None,
) -> tuple[Params, LossTerms]:
    """Gradient of the weighted sum over one shard's rows, float32 and not divided yet, and the terms of the loss."""

    def weighted_sum(params: Params, micro_batch: Batch) -> tuple[jax.Array, LossTerms]:
        everything = params if frozen is None else (frozen, params)
        log_probs, entropy = log_prob_fn(everything, *model_inputs(micro_batch))
        terms = loss_fn(log_probs, entropy, micro_batch)
        return terms.weighted_sum, terms

    def gradient(micro_batch: Batch) -> tuple[Params, LossTerms]:
        gradients, terms = jax.grad(weighted_sum, has_aux=True)(params, micro_batch)
        return jax.tree.map(lambda g: g.astype(jnp.float32), gradients), terms

    def step(carry: tuple[Params, LossTerms], micro_batch: Any) -> tuple[tuple[Params, LossTerms], None]:
        gradients, terms = gradient(micro_batch)
        return (jax.tree.map(jnp.add, carry[0], gradients), add_terms(carry[1], terms)), None

    pieces: Any = micro_batches(batch, settings, mesh)
    first = jax.tree.map(lambda x: x[0], pieces)
    if pieces.tokens.shape[0] == 1:
        return gradient(first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(gradient, first))
    if not isinstance(batch, PackedBatch):
        return jax.lax.scan(step, zeros, pieces)[0]
    return jax.lax.fori_loop(
        0, _num_in_use(pieces.tree_ids), lambda i, total: step(total, jax.tree.map(lambda x: x[i], pieces))[0], zeros
    )


def _num_in_use(ids: jax.Array) -> jax.Array:
    """[] int32 how many of the micro-batches [M, rows, T] to go through: those behind the last tree are only filling.

    A batch of trees has room for as many as may come, so that one program serves all.
    """
    return jnp.max(jnp.where(jnp.any(ids != 0, axis=(1, 2)), jnp.arange(1, len(ids) + 1), 0))


@functools.partial(Jit, static_argnames=("log_prob_fn", "settings", "mesh"))
def _compute_log_probs(
    params: Params,
    rows: tuple[jax.Array, ...],
    *,
    log_prob_fn: LogProbFn,
    settings: UpdateSettings,
    mesh: Mesh | None,
) -> jax.Array:
    def shard(params: Params, rows: tuple[jax.Array, ...]) -> jax.Array:
        pieces = micro_batches(rows, settings, mesh)
        is_trees, ids = len(rows) > 2, pieces[1]
        if not is_trees:
            return whole_batch(jax.lax.map(lambda piece: log_prob_fn(params, *piece)[0], pieces), mesh)

        def step(i: jax.Array, found: jax.Array) -> jax.Array:
            return found.at[i].set(log_prob_fn(params, *(x[i] for x in pieces))[0])

        found = jax.lax.fori_loop(0, _num_in_use(ids), step, jnp.zeros(ids.shape, jnp.float32))
        return whole_batch(found, mesh)

    by_row = PartitionSpec(DATA_AXIS)
    return over_shards(shard, mesh, (PartitionSpec(), by_row), by_row)(params, rows)


def compute_log_probs(
    params: Params, batch: Batch, log_prob_fn: LogProbFn, settings: UpdateSettings, mesh: Mesh | None = None
) -> jax.Array:
    """Old log-probs [R, T] float32 of a batch by the forward pass of the update, in the same micro-batches.

    Raises:
      ValueError: the rows do not divide.
    """
    if settings.micro_batch_tokens:
        whole = dataclasses.replace(settings, micro_batch_tokens=0)
        found = np.zeros(batch.tokens.shape, np.float32)
        for cut in token_cuts(batch, settings, mesh):
            is_row = cut.rows >= 0
            log_probs = compute_log_probs(params, take_rows(batch, cut), log_prob_fn, whole, mesh)
            found[cut.rows[is_row], : cut.length] = jax.device_get(log_probs)[is_row]
        return jax.device_put(found)
    rows = place_rows(model_inputs(batch), batch.tokens.shape[0], settings, mesh)
    return gather(_compute_log_probs(params, rows, log_prob_fn=log_prob_fn, settings=settings, mesh=mesh))


def token_cuts(batch: Batch, settings: UpdateSettings, mesh: Mesh | None) -> list[Cut]:
    """The micro-batches of a host batch under `settings.micro_batch_tokens`."""
    return cut_by_tokens(row_lengths(batch), batch.tokens.shape[1], settings.micro_batch_tokens, num_row_shards(mesh))


def num_computed_tokens(batch: Batch, settings: UpdateSettings, mesh: Mesh | None = None) -> int:
    """Tokens that an update or `compute_log_probs` goes through, padding included."""
    rows, length = batch.tokens.shape
    if not settings.micro_batch_tokens:
        if isinstance(batch, PackedBatch) and settings.micro_batch_rows:
            pieces = np.any(np.asarray(batch.tree_ids), axis=1).reshape(
                num_row_shards(mesh), -1, settings.micro_batch_rows
            )
            in_use = np.flatnonzero(pieces.any(axis=(0, 2)))
            rows = rows // pieces.shape[1] * int(in_use.max(initial=-1) + 1)  # what is behind is skipped
        return int(rows * length)
    return sum(len(cut.rows) * cut.length for cut in token_cuts(batch, settings, mesh))
