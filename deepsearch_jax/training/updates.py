"""One optimizer update: micro-batches, devices, the loss of the whole batch, and a guard against non-finite numbers."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepsearch_jax.objective import LossSettings, LossTerms, add_terms, divisor, reduce_loss, sum_over_axis
from deepsearch_jax.training.compiling import Jit
from deepsearch_jax.training.gradients import Batch, LogProbFn, LossFn, Params, loss_of, sum_of_gradients, token_cuts
from deepsearch_jax.training.optimizer import UpdateSettings, learning_rate, make_optimizer
from deepsearch_jax.training.placement import put
from deepsearch_jax.training.rows import check_rows, take_rows
from deepsearch_jax.training.shards import (
    DATA_AXIS,
    Placement,
    Tree,
    is_mapped,
    num_row_shards,
    over_shards,
    place_rows,
    placed,
    placement_of,
)
from deepsearch_jax.types import TokenBatch

Metrics = dict[str, jax.Array]
Sums = tuple[Params, LossTerms]  # of gradients, not divided yet, and of the terms of the loss


@struct.dataclass
class TrainState:
    """What an update changes.

    Attributes:
      params: pytree of the policy's parameters.
      opt_state: state of the optimizer of `make_optimizer`.
      step: [] int32 updates applied.
      num_skipped: [] int32 updates skipped so far because loss or gradient was not finite.
      num_skipped_in_a_row: [] int32 the same since the last applied update.
    """

    params: Params
    opt_state: optax.OptState
    step: jax.Array
    num_skipped: jax.Array
    num_skipped_in_a_row: jax.Array


def init_train_state(params: Params, settings: UpdateSettings, mesh: Mesh | None = None) -> TrainState:
    """A state that has done nothing yet. It takes `params` over: the first update frees them.

    Args:
      mesh: if given, parameters that are not on it yet are copied to all of its devices; the optimizer state follows
        the sharding of the parameters.
    """

    def on_mesh(tree: Tree) -> Tree:
        if mesh is None:
            return tree
        devices, everywhere = set(mesh.devices.flat), NamedSharding(mesh, PartitionSpec())

        def place(leaf: Any) -> jax.Array:
            is_there = isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices
            return leaf if is_there else put(leaf, everywhere)

        return jax.tree.map(place, tree)

    params = on_mesh(params)
    opt_state = make_optimizer(settings).init(params)  # moments are placed like their parameters, its counter is not
    return TrainState(params, on_mesh(opt_state), *(on_mesh(jnp.zeros((), jnp.int32)) for _ in range(3)))


def _gradient_step(
    state: TrainState,
    batch: Batch,
    frozen: Params | None,
    log_prob_fn: LogProbFn,
    loss_fn: LossFn,
    settings: UpdateSettings,
    mesh: Mesh | None,
    placement: Placement,
) -> tuple[TrainState, Metrics]:
    """The update of all devices; see `update`."""
    axis = DATA_AXIS if is_mapped(mesh) else None

    def shard(params: Params, frozen: Params | None, batch: Batch) -> tuple[Params, LossTerms]:
        gradients, terms = sum_of_gradients(params, frozen, batch, log_prob_fn, loss_fn, settings, mesh)
        if axis is not None:
            gradients = jax.lax.psum(gradients, axis)
        return gradients, sum_over_axis(terms, axis)

    everywhere, rows = PartitionSpec(), PartitionSpec(DATA_AXIS)
    summed = over_shards(shard, mesh, (everywhere, everywhere, rows), (everywhere, everywhere))
    sums = summed(state.params, frozen, batch)
    return _apply(state, sums, settings, placement)


def _apply(state: TrainState, sums: Sums, settings: UpdateSettings, placement: Placement) -> tuple[TrainState, Metrics]:
    """The optimizer's step on the gradients of the whole batch."""
    gradients, terms = sums
    # Each device keeps of the gradient what it keeps of the parameters (ZeRO, arXiv 1910.02054).
    gradients = placed(gradients, jax.tree.structure(state.params), placement)
    gradients = jax.tree.map(lambda g: g / divisor(terms.weight), gradients)
    loss, metrics = reduce_loss(terms)
    del metrics["pg_loss"]
    grad_norm = optax.tree.norm(gradients)

    is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(terms.max_abs_log_ratio)
    is_applied = is_finite & (terms.num_tokens > 0)  # no tokens: momentum and weight decay alone are no update
    updates, opt_state = make_optimizer(settings).update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(is_applied, new, old), (params, opt_state), (state.params, state.opt_state)
    )
    new_state = TrainState(
        params=params,
        opt_state=opt_state,
        step=state.step + is_applied,
        num_skipped=state.num_skipped + ~is_finite,
        num_skipped_in_a_row=jnp.where(is_applied, 0, state.num_skipped_in_a_row + ~is_finite),
    )
    new_state = placed(new_state, jax.tree.structure(state), placement)
    metrics |= {
        "loss": loss,
        "grad_norm": grad_norm,
        "learning_rate": jnp.asarray(learning_rate(settings)(state.step), jnp.float32),
        "is_applied": is_applied,
    }
    return new_state, metrics


_STATIC = ("log_prob_fn", "loss_settings", "settings", "mesh", "placement")


@functools.partial(Jit, static_argnames=_STATIC, donate_argnames="state")
def _update(
    state: TrainState,
    batch: Batch,
    frozen: Params | None = None,
    *,
    log_prob_fn: LogProbFn,
    loss_settings: LossSettings | None,
    settings: UpdateSettings,
    mesh: Mesh | None,
    placement: Placement,
) -> tuple[TrainState, Metrics]:
    """`loss_settings` None: on the cross-entropy."""
    loss_fn = loss_of(loss_settings, settings)
    return _gradient_step(state, batch, frozen, log_prob_fn, loss_fn, settings, mesh, placement)


# The same in pieces of different shapes. Devices that are mapped by hand keep sums of their own, stacked along a first
# axis, so that they exchange gradients once an update.


@functools.partial(Jit, static_argnames=("mesh", "placement"))
def _zero_sums(params: Params, *, mesh: Mesh | None, placement: Placement) -> Sums:
    parts = (1,) if is_mapped(mesh) else ()

    def zeros(params: Params) -> Params:
        return jax.tree.map(lambda p: jnp.zeros((*parts, *p.shape), jnp.float32), params)

    gradients = over_shards(zeros, mesh, (PartitionSpec(),), PartitionSpec(DATA_AXIS))(params)
    terms = LossTerms(**{field.name: jnp.zeros((), jnp.float32) for field in dataclasses.fields(LossTerms)})
    return placed(gradients, jax.tree.structure(params), placement), terms


@functools.partial(Jit, static_argnames=_STATIC, donate_argnames="sums")
def _add_micro_batch(
    sums: Sums,
    params: Params,
    batch: Batch,
    frozen: Params | None = None,
    *,
    log_prob_fn: LogProbFn,
    loss_settings: LossSettings | None,
    settings: UpdateSettings,
    mesh: Mesh | None,
    placement: Placement,
) -> Sums:
    axis, loss_fn = DATA_AXIS if is_mapped(mesh) else None, loss_of(loss_settings, settings)

    def shard(total: Params, params: Params, frozen: Params | None, batch: Batch) -> Sums:
        gradients, terms = sum_of_gradients(params, frozen, batch, log_prob_fn, loss_fn, settings, mesh)
        total = jax.tree.map(lambda a, b: a + (b if axis is None else b[None]), total, gradients)
        return total, sum_over_axis(terms, axis)

    everywhere, rows = PartitionSpec(), PartitionSpec(DATA_AXIS)
    summed = over_shards(shard, mesh, (rows, everywhere, everywhere, rows), (rows, everywhere))
    gradients, terms = summed(sums[0], params, frozen, batch)
    return placed(gradients, jax.tree.structure(params), placement), add_terms(sums[1], terms)


@functools.partial(Jit, static_argnames=("settings", "mesh", "placement"), donate_argnames="state")
def _apply_sums(
    state: TrainState, sums: Sums, *, settings: UpdateSettings, mesh: Mesh | None, placement: Placement
) -> tuple[TrainState, Metrics]:
    gradients, terms = sums
    if is_mapped(mesh):

        def total(gradients: Params) -> Params:
            return jax.lax.psum(jax.tree.map(lambda g: g[0], gradients), DATA_AXIS)

        gradients = over_shards(total, mesh, (PartitionSpec(DATA_AXIS),), PartitionSpec())(gradients)
    return _apply(state, (gradients, terms), settings, placement)


def _step(
    state: TrainState,
    batch: Batch,
    log_prob_fn: LogProbFn,
    loss_settings: LossSettings | None,
    settings: UpdateSettings,
    mesh: Mesh | None,
    frozen: Params | None,
) -> tuple[TrainState, Metrics]:
    """The update on whole rows or on pieces of few tokens."""
    static: dict[str, Any] = {"mesh": mesh, "placement": placement_of(state, mesh)}
    if not settings.micro_batch_tokens:
        batch = place_rows(batch, batch.tokens.shape[0], settings, mesh)
        static |= {"log_prob_fn": log_prob_fn, "loss_settings": loss_settings, "settings": settings}
        return _update(state, batch, frozen, **static)
    width, whole = batch.tokens.shape[1], dataclasses.replace(settings, micro_batch_tokens=0)
    if loss_settings is not None and not loss_settings.norm_length:
        # Where a loss is divided by the width of its row, that is the one before the cut.
        is_by_width = loss_settings.aggregation == "seq_mean_token_sum_norm"
        loss_settings = dataclasses.replace(loss_settings, norm_length=width if is_by_width else 0)
    sums = _zero_sums(state.params, **static)
    for cut in token_cuts(batch, settings, mesh):
        rows = place_rows(take_rows(batch, cut), len(cut.rows), whole, mesh)
        sums = _add_micro_batch(
            sums, state.params, rows, frozen,
            log_prob_fn=log_prob_fn, loss_settings=loss_settings, settings=whole, **static,
        )  # fmt: skip
    return _apply_sums(state, sums, settings=whole, **static)


def update(
    state: TrainState,
    batch: Batch,
    log_prob_fn: LogProbFn,
    loss_settings: LossSettings,
    settings: UpdateSettings,
    mesh: Mesh | None = None,
    *,
    frozen: Params | None = None,
) -> tuple[TrainState, Metrics]:
    """One update on the Tree-GRPO loss of the whole batch, whatever the micro-batches and devices.

    A loss or gradient that is not finite leaves parameters and optimizer as they were and is counted; a batch without
    any token to train on leaves them too. `state` is donated: use the one returned.

    Args:
      batch: rows that divide among the devices and their micro-batches; rows without any token are only filling. Under
        `settings.micro_batch_tokens` any number of rows, on the host; those of filling cost nothing.
        Packed trees carry the weights of `loss_settings.aggregation` in their sums: pack them with the same settings.
      log_prob_fn: see `LogProbFn`.
      mesh: rows are shared along its axes "data" and "fsdp"; None = one device. Parameters stay laid out as they are.
      frozen: parameters that `log_prob_fn` gets beside those of the state; they have no gradient and are not donated.
    Returns: the new state, and a dict of [] float32: loss, grad_norm (before clipping), learning_rate, is_applied
      (bool), and those of `reduce_loss` but pg_loss.
    Raises:
      ValueError: the rows do not divide.
    """
    return _step(state, batch, log_prob_fn, loss_settings, settings, mesh, frozen)


def lower_update(
    state: TrainState,
    batch: Batch,
    log_prob_fn: LogProbFn,
    loss_settings: LossSettings,
    settings: UpdateSettings,
    mesh: Mesh | None = None,
) -> jax.stages.Lowered:
    """The program of `update`, ready to be compiled, for shapes and shardings alone (jax.ShapeDtypeStruct)."""
    check_rows(batch.tokens.shape[0], num_row_shards(mesh), settings.micro_batch_rows)
    return _update.lower(
        state, batch, log_prob_fn=log_prob_fn, loss_settings=loss_settings, settings=settings, mesh=mesh,
        placement=placement_of(state, mesh),
    )  # fmt: skip


def supervised_update(
    state: TrainState,
    batch: TokenBatch,
    log_prob_fn: LogProbFn,
    settings: UpdateSettings,
    mesh: Mesh | None = None,
    *,
    frozen: Params | None = None,
) -> tuple[TrainState, Metrics]:
    """One update on the cross-entropy of the tokens under the loss mask; otherwise as `update`.

    Advantages and old log-probs of the batch are not read.
    """
    return _step(state, batch, log_prob_fn, None, settings, mesh, frozen)
