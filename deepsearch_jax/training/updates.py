"""One optimizer update: micro-batches, devices, the loss of the whole batch, and a guard against non-finite numbers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepsearch_jax.objective import (
    LossSettings,
    LossTerms,
    add_terms,
    divisor,
    reduce_loss,
    shared_grpo_loss,
    sum_over_axis,
    supervised_loss,
    tree_grpo_loss,
)
from deepsearch_jax.training.optimizer import UpdateSettings, learning_rate, make_optimizer
from deepsearch_jax.training.placement import gather, put
from deepsearch_jax.training.rows import Cut, check_rows, cut_by_tokens, row_lengths, take_rows
from deepsearch_jax.types import PackedBatch, TokenBatch

DATA_AXIS, FSDP_AXIS = "data", "fsdp"

Params = Any
Batch = TokenBatch | PackedBatch
# (params, *`model_inputs` of the batch) -> log_probs [R, T], entropy [R, T]; where some parameters are frozen, params
# is the pair (frozen, trained). It is a static argument: make it once (say by functools.partial) and pass the same
# object every time, or every call compiles anew.
LogProbFn = Callable[..., tuple[jax.Array, jax.Array]]
LossFn = Callable[[jax.Array, jax.Array, Any], LossTerms]  # log_probs, entropy, rows of the batch
Metrics = dict[str, jax.Array]
Sums = tuple[Params, LossTerms]  # of gradients, not divided yet, and of the terms of the loss
Tree = TypeVar("Tree")
# Where the leaves of the state lie, in the order of jax.tree.leaves (parameters first); None where that needs no care.
Placement = tuple[Any, ...] | None


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


def model_inputs(batch: Batch) -> tuple[jax.Array, ...]:
    """What the policy reads of a batch, all [R, T] int32: tokens and ids, then the form of trees if they are any."""
    if isinstance(batch, PackedBatch):
        return batch.tokens, batch.tree_ids, batch.positions, batch.parents, batch.ends
    return batch.tokens, batch.segment_ids


def num_row_shards(mesh: Mesh | None) -> int:
    """Parts that the rows of a batch are cut into: devices along the axes "data" and "fsdp" together.

    Raises:
      ValueError: the mesh has no axis "data".
    """
    return num_data_shards(mesh) * (1 if mesh is None else mesh.shape.get(FSDP_AXIS, 1))


def num_data_shards(mesh: Mesh | None) -> int:
    """Devices along the mesh axis "data"; 1 without a mesh.

    Raises:
      ValueError: the mesh has no such axis.
    """
    if mesh is None:
        return 1
    if DATA_AXIS not in mesh.shape:
        raise ValueError(f"the mesh has axes {tuple(mesh.shape)}; rows are shared along an axis named {DATA_AXIS!r}")
    return mesh.shape[DATA_AXIS]


def _is_mapped(mesh: Mesh | None) -> bool:
    """Whether the axis "data" is all of the mesh and shards are mapped by hand."""
    return num_data_shards(mesh) > 1 and mesh is not None and mesh.size == mesh.shape[DATA_AXIS]


def _over_shards(function: Callable, mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable:
    """`function` of one shard's rows, mapped over the mesh axis "data".

    Where parameters are spread over other axes too, the compiler cuts the whole batch up along the layouts of its
    arguments (mapping one axis by hand and leaving the others to it ends XLA's partitioner in jaxlib 0.10).
    """
    if not _is_mapped(mesh):
        return function
    # Varying-manual-axes checks are off: the policy comes in as a function and need not know that it is mapped.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names={DATA_AXIS}, check_vma=False
    )


def _micro_batches(batch: Tree, settings: UpdateSettings, mesh: Mesh | None) -> Tree:
    """[R, ...] leaves to [R / rows, rows, ...], the rows of a micro-batch spread over the devices that share them."""
    parts = 1 if _is_mapped(mesh) else num_row_shards(mesh)

    def split(x: jax.Array) -> jax.Array:
        rows = settings.micro_batch_rows * parts or x.shape[0]
        # Every device keeps its rows: they are cut within its own block, which is a row of the first axis.
        x = x.reshape(parts, -1, rows // parts, *x.shape[1:]).swapaxes(0, 1)
        x = x.reshape(-1, rows, *x.shape[3:])
        if parts == 1 or mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, _row_axes(mesh))))

    return jax.tree.map(split, batch)


def _whole_batch(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """[R / rows, rows, ...] back to [R, ...] in the order of `_micro_batches`."""
    parts = 1 if _is_mapped(mesh) else num_row_shards(mesh)
    return x.reshape(len(x), parts, -1, *x.shape[2:]).swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _row_axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(axis for axis in (DATA_AXIS, FSDP_AXIS) if axis in mesh.shape)


def _placement_of(state: TrainState, mesh: Mesh | None) -> Placement:
    if mesh is None or _is_mapped(mesh):
        return None  # everything is everywhere
    return tuple(leaf.sharding for leaf in jax.tree.leaves(state))


def _placed(tree: Tree, structure: Any, placement: Placement) -> Tree:
    """The leaves laid out like the state's first ones: the parameters, or all of it."""
    if placement is None:
        return tree
    shardings = jax.tree.unflatten(structure, placement[: structure.num_leaves])
    return jax.lax.with_sharding_constraint(tree, shardings)


def _sum_of_gradients(
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

    micro_batches = _micro_batches(batch, settings, mesh)
    first = jax.tree.map(lambda x: x[0], micro_batches)
    if micro_batches.tokens.shape[0] == 1:
        return gradient(first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(gradient, first))
    return jax.lax.scan(step, zeros, micro_batches)[0]


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
    axis = DATA_AXIS if _is_mapped(mesh) else None

    def shard(params: Params, frozen: Params | None, batch: Batch) -> tuple[Params, LossTerms]:
        gradients, terms = _sum_of_gradients(params, frozen, batch, log_prob_fn, loss_fn, settings, mesh)
        if axis is not None:
            gradients = jax.lax.psum(gradients, axis)
        return gradients, sum_over_axis(terms, axis)

    everywhere, rows = PartitionSpec(), PartitionSpec(DATA_AXIS)
    summed = _over_shards(shard, mesh, (everywhere, everywhere, rows), (everywhere, everywhere))
    sums = summed(state.params, frozen, batch)
    return _apply(state, sums, settings, placement)


def _apply(state: TrainState, sums: Sums, settings: UpdateSettings, placement: Placement) -> tuple[TrainState, Metrics]:
    """The optimizer's step on the gradients of the whole batch."""
    gradients, terms = sums
    # Each device keeps of the gradient what it keeps of the parameters (ZeRO, arXiv 1910.02054).
    gradients = _placed(gradients, jax.tree.structure(state.params), placement)
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
    new_state = _placed(new_state, jax.tree.structure(state), placement)
    metrics |= {
        "loss": loss,
        "grad_norm": grad_norm,
        "learning_rate": jnp.asarray(learning_rate(settings)(state.step), jnp.float32),
        "is_applied": is_applied,
    }
    return new_state, metrics


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


def _loss_fn(loss_settings: LossSettings | None, settings: UpdateSettings) -> LossFn:
    return _supervised_loss if loss_settings is None else _policy_loss(loss_settings, settings)


_STATIC = ("log_prob_fn", "loss_settings", "settings", "mesh", "placement")


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames="state")
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
    loss_fn = _loss_fn(loss_settings, settings)
    return _gradient_step(state, batch, frozen, log_prob_fn, loss_fn, settings, mesh, placement)


# The same in pieces of different shapes. Devices that are mapped by hand keep sums of their own, stacked along a first
# axis, so that they exchange gradients once an update.


@functools.partial(jax.jit, static_argnames=("mesh", "placement"))
def _zero_sums(params: Params, *, mesh: Mesh | None, placement: Placement) -> Sums:
    parts = (1,) if _is_mapped(mesh) else ()

    def zeros(params: Params) -> Params:
        return jax.tree.map(lambda p: jnp.zeros((*parts, *p.shape), jnp.float32), params)

    gradients = _over_shards(zeros, mesh, (PartitionSpec(),), PartitionSpec(DATA_AXIS))(params)
    terms = LossTerms(**{field.name: jnp.zeros((), jnp.float32) for field in dataclasses.fields(LossTerms)})
    return _placed(gradients, jax.tree.structure(params), placement), terms


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames="sums")
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
    axis, loss_fn = DATA_AXIS if _is_mapped(mesh) else None, _loss_fn(loss_settings, settings)

    def shard(total: Params, params: Params, frozen: Params | None, batch: Batch) -> Sums:
        gradients, terms = _sum_of_gradients(params, frozen, batch, log_prob_fn, loss_fn, settings, mesh)
        total = jax.tree.map(lambda a, b: a + (b if axis is None else b[None]), total, gradients)
        return total, sum_over_axis(terms, axis)

    everywhere, rows = PartitionSpec(), PartitionSpec(DATA_AXIS)
    summed = _over_shards(shard, mesh, (rows, everywhere, everywhere, rows), (rows, everywhere))
    gradients, terms = summed(sums[0], params, frozen, batch)
    return _placed(gradients, jax.tree.structure(params), placement), add_terms(sums[1], terms)


@functools.partial(jax.jit, static_argnames=("settings", "mesh", "placement"), donate_argnames="state")
def _apply_sums(
    state: TrainState, sums: Sums, *, settings: UpdateSettings, mesh: Mesh | None, placement: Placement
) -> tuple[TrainState, Metrics]:
    gradients, terms = sums
    if _is_mapped(mesh):

        def total(gradients: Params) -> Params:
            return jax.lax.psum(jax.tree.map(lambda g: g[0], gradients), DATA_AXIS)

        gradients = _over_shards(total, mesh, (PartitionSpec(DATA_AXIS),), PartitionSpec())(gradients)
    return _apply(state, (gradients, terms), settings, placement)


@functools.partial(jax.jit, static_argnames=("log_prob_fn", "settings", "mesh"))
def _compute_log_probs(
    params: Params,
    rows: tuple[jax.Array, ...],
    *,
    log_prob_fn: LogProbFn,
    settings: UpdateSettings,
    mesh: Mesh | None,
) -> jax.Array:
    def shard(params: Params, rows: tuple[jax.Array, ...]) -> jax.Array:
        micro_batches = _micro_batches(rows, settings, mesh)
        log_probs = jax.lax.map(lambda micro_batch: log_prob_fn(params, *micro_batch)[0], micro_batches)
        return _whole_batch(log_probs, mesh)

    by_row = PartitionSpec(DATA_AXIS)
    return _over_shards(shard, mesh, (PartitionSpec(), by_row), by_row)(params, rows)


def token_cuts(batch: Batch, settings: UpdateSettings, mesh: Mesh | None) -> list[Cut]:
    """The micro-batches of a host batch under `settings.micro_batch_tokens`."""
    return cut_by_tokens(row_lengths(batch), batch.tokens.shape[1], settings.micro_batch_tokens, num_row_shards(mesh))


def num_computed_tokens(batch: Batch, settings: UpdateSettings, mesh: Mesh | None = None) -> int:
    """Tokens that an update or `compute_log_probs` goes through, padding included."""
    if not settings.micro_batch_tokens:
        return int(np.prod(batch.tokens.shape))
    return sum(len(cut.rows) * cut.length for cut in token_cuts(batch, settings, mesh))


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
    static: dict[str, Any] = {"mesh": mesh, "placement": _placement_of(state, mesh)}
    if not settings.micro_batch_tokens:
        batch = _place_rows(batch, batch.tokens.shape[0], settings, mesh)
        static |= {"log_prob_fn": log_prob_fn, "loss_settings": loss_settings, "settings": settings}
        return _update(state, batch, frozen, **static)
    width, whole = batch.tokens.shape[1], dataclasses.replace(settings, micro_batch_tokens=0)
    if loss_settings is not None and not loss_settings.norm_length:
        # Where a loss is divided by the width of its row, that is the one before the cut.
        is_by_width = loss_settings.aggregation == "seq_mean_token_sum_norm"
        loss_settings = dataclasses.replace(loss_settings, norm_length=width if is_by_width else 0)
    sums = _zero_sums(state.params, **static)
    for cut in token_cuts(batch, settings, mesh):
        rows = _place_rows(take_rows(batch, cut), len(cut.rows), whole, mesh)
        sums = _add_micro_batch(
            sums, state.params, rows, frozen,
            log_prob_fn=log_prob_fn, loss_settings=loss_settings, settings=whole, **static,
        )  # fmt: skip
    return _apply_sums(state, sums, settings=whole, **static)


def _place_rows(batch: Tree, num_rows: int, settings: UpdateSettings, mesh: Mesh | None) -> Tree:
    """Checks that the rows divide and spreads them over the mesh axes "data" and "fsdp"."""
    check_rows(num_rows, num_row_shards(mesh), settings.micro_batch_rows)
    if mesh is None:
        return batch
    return put(batch, NamedSharding(mesh, PartitionSpec(_row_axes(mesh))))


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
        placement=_placement_of(state, mesh),
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
            found[cut.rows[is_row], : cut.length] = np.asarray(log_probs)[is_row]
        return jnp.asarray(found)
    rows = _place_rows(model_inputs(batch), batch.tokens.shape[0], settings, mesh)
    return gather(_compute_log_probs(params, rows, log_prob_fn=log_prob_fn, settings=settings, mesh=mesh))
