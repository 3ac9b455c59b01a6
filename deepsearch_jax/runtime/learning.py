"""The learning half of a step: groups of responses in, updated train state and metrics out."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepsearch_jax.policy import (
    ModelConfig,
    adapt,
    arrange_kernels,
    freeze,
    init_adapters,
    merge,
    param_shardings,
    quantize_int8,
    token_log_probs,
    tree_log_probs,
    unstack_layers,
    weights_fingerprint,
)
from deepsearch_jax.runtime.decode_gap import DecodeTrainGap
from deepsearch_jax.runtime.groups import Packed, drop_unteachable, node_advantages, pack
from deepsearch_jax.runtime.kept_batches import BatchKeeper, Origin, problems_of
from deepsearch_jax.runtime.meshes import build_train_mesh
from deepsearch_jax.runtime.rollout_settings import RolloutSettings
from deepsearch_jax.runtime.rollouts import Group, chunks
from deepsearch_jax.runtime.settings import RunSettings
from deepsearch_jax.training import (
    Batch,
    LogProbFn,
    RowReport,
    TrainState,
    UpdateSettings,
    check_rows,
    committed,
    compute_log_probs,
    gather,
    init_train_state,
    inspect_row,
    lower_update,
    num_computed_tokens,
    num_row_shards,
    put,
    supervised_update,
    update,
)
from deepsearch_jax.types import PackedBatch, TokenBatch

_ADAPTERS_STREAM = 2**31 - 2  # counter of the key that fresh adapters are drawn with; no purpose of a sampler


class Learner:
    """Updates of one policy architecture under one set of settings."""

    def __init__(
        self, settings: RunSettings, model: ModelConfig, mesh: Mesh | None, workdir: pathlib.Path, *,
        rollout_mesh: Mesh | None = None,
    ):  # fmt: skip
        """
        Args:
          mesh: the devices of the run; the update arranges them by settings.mesh.
          rollout_mesh: the devices that this process rolls out on; by default one.
        Raises:
          ValueError: devices or the smallest batch do not divide.
        """
        self.settings, self._model = settings, model
        self._rollout_mesh, self._mesh = rollout_mesh, build_train_mesh(mesh, settings.mesh)
        if not settings.optimizer.micro_batch_tokens:
            check_rows(settings.pack.min_rows, num_row_shards(self._mesh), settings.optimizer.micro_batch_rows)
        is_one_update = settings.rounds.update_problems == settings.rounds.problems_per_step
        # With one update a step the recomputed old log-probs are those of the update's own forward pass.
        self._update_settings = dataclasses.replace(
            settings.optimizer,
            on_policy=settings.optimizer.on_policy or (is_one_update and settings.old_log_probs == "recompute"),
        )
        # Where rows alone are shared, the update maps over the devices by hand and the policy sees one of them.
        is_spread = settings.mesh.fsdp * settings.mesh.tensor > 1
        self._log_prob_fn = _log_prob_fn(
            model, settings.log_prob_chunk, settings.lora.scale, self._mesh if is_spread else None
        )
        self._base: Any = None  # the frozen parameters, where adapters are trained
        self._last_batch: Batch | None = None
        self._last_supervised: tuple[Batch, float, Any] | None = None
        self._keeper = BatchKeeper(settings, model, self._mesh, workdir, lambda: self.base_fingerprint)

    @property
    def mesh(self) -> Mesh | None:
        """Of the update."""
        return self._mesh

    def lower(self, state: TrainState, batch: Batch, micro_batch_rows: int) -> jax.stages.Lowered:
        """The program of one update, for shapes alone; see `Packed` for the rows."""
        cut = dataclasses.replace(self._update_settings, micro_batch_rows=micro_batch_rows, micro_batch_tokens=0)
        return lower_update(state, batch, self._log_prob_fn, self.settings.loss, cut, self._mesh)

    def init(self, params: Any) -> TrainState:
        """A train state that has done nothing yet; takes the parameters over.

        With `lora.rank` the state holds adapters; the parameters are the learner's, frozen.
        """
        lora = self.settings.lora
        if lora.rank:
            self._base = self._on_mesh(freeze(self._model, params))
            key = jax.random.fold_in(jax.random.key(self.settings.seed), _ADAPTERS_STREAM)
            params = init_adapters(self._model, lora, key, self.settings.model.param_dtype)
        return self._fresh_state(self._on_mesh(params))

    def _fresh_state(self, params: Any) -> TrainState:
        state = init_train_state(params, self.settings.optimizer, self._mesh)
        return committed(state) if self._mesh is None else state

    def _on_mesh(self, params: Any) -> Any:
        if self._mesh is None:
            return params
        if self._mesh is self._rollout_mesh:
            return put(params, NamedSharding(self._mesh, PartitionSpec()))
        return put(params, param_shardings(self._model, params, self._mesh))

    @property
    def base_fingerprint(self) -> str:
        """Name of the frozen weights, which no checkpoint holds; "" where all parameters are trained."""
        return "" if self._base is None else weights_fingerprint(self._base)

    def _with_base(self, params: Any) -> Any:
        """Parameters of the state (or a copy of them) as `_log_prob_fn` takes them."""
        return params if self._base is None else (self._base, params)

    def policy_params(self, state: TrainState, dtype: str | None = None) -> Any:
        """The parameters of the policy: those of the state, or the frozen ones with the adapters added.

        Args:
          dtype: of the matrices that adapters were added to; default: the compute dtype.
        """
        if self._base is None:
            return state.params
        return merge(self._base, state.params, scale=self.settings.lora.scale, dtype=dtype)

    def fresh_optimizer(self, state: TrainState) -> TrainState:
        """The same parameters with an optimizer that has done nothing: the warm start's moments do not leak on."""
        return self._fresh_state(state.params)

    def sampling_params(self, state: TrainState) -> Any:
        """The parameters as the decode engine likes them; see `sampling_params`."""
        params = self.policy_params(state)
        if self._mesh is not self._rollout_mesh and not self.settings.rollout.int8:
            params = _cast(params, dtype=self._model.compute_dtype)  # half the bytes to move and to hold
        params = gather(params)
        if self._mesh is not self._rollout_mesh and self._rollout_mesh is not None:
            params = jax.device_put(params, NamedSharding(self._rollout_mesh, PartitionSpec()))
        return sampling_params(params, self.settings, self._model)

    def supervised(self, state: TrainState, batch: TokenBatch, learning_rate: float) -> tuple[TrainState, jax.Array]:
        """One step of the warm start; returns its loss."""
        state, metrics = self.supervised_with_metrics(state, batch, learning_rate)
        self._last_supervised = batch, learning_rate, metrics
        return state, metrics["loss"]

    def supervised_with_metrics(
        self, state: TrainState, batch: TokenBatch, learning_rate: float
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The same with all metrics, as `update` gives them."""
        settings = dataclasses.replace(
            self.settings.warm_start, learning_rate=learning_rate, state_dtype=self.settings.optimizer.state_dtype
        )
        return supervised_update(state, batch, self._log_prob_fn, settings, self._mesh, frozen=self._base)

    def check_supervised(self, state: TrainState, step: int) -> None:
        """Stops a warm start whose steps are not finite any more, as `learn` does; waits for the last one.

        Args:
          step: supervised steps done.
        Raises:
          TooManySkipped: guards.max_skipped_updates of them followed each other; the last batch is kept.
        """
        if self._last_supervised is not None and self._are_too_many(state):
            batch, rate, metrics = self._last_supervised
            origin = Origin(step=step - 1, warm_start_rate=rate)
            self._keeper.stop_at(state, batch, jax.device_get(metrics), origin)

    def reference(self, state: TrainState) -> Any:
        """A copy of the parameters in compute dtype, to hold the policy near to; None where nothing asks for it."""
        return _frozen(state.params, model=self._model) if self.settings.loss.kl_coefficient else None

    def learn(
        self, state: TrainState, groups: Sequence[Group], reference: Any = None, *, counters: tuple[int, int] = (0, 0),
        tell: Callable[[list[Group], list[list[np.ndarray]]], None] | None = None,
    ) -> tuple[TrainState, dict[str, Any]]:  # fmt: skip
        """The updates of one step. Groups without a signal are dropped first; nothing left means no update.

        Args:
          reference: what `reference` gave before the first step.
          counters: round and step, as for the rollouts; they name batches that are kept.
          tell: called with the groups that are left and the advantages of their nodes.
        Raises:
          TooManySkipped: guards.max_skipped_updates updates in a row were not finite; the last batch is kept.
        """
        settings = self.settings
        kept, dropped = drop_unteachable(groups, settings.advantage, settings.degenerate)
        values: dict[str, Any] = {
            "dropped_groups": dropped.uniform_groups + dropped.empty_groups,
            "dropped_degenerate": dropped.degenerate,
            "trained_groups": len(kept),
            "trained_tokens": sum(len(r.tokens) for group in kept for r in group.responses),
        }
        advantages = node_advantages(kept, settings.advantage)
        if tell is not None:
            tell(kept, advantages)
        share = settings.rounds.update_problems
        batches = [
            pack(
                list(some),
                list(theirs),
                settings.pack,
                settings.loss,
                self._model,
                max_groups=share,
                num_devices=num_row_shards(self._mesh),
                micro_batch_rows=settings.optimizer.micro_batch_rows,
                micro_batch_tokens=settings.optimizer.micro_batch_tokens,
            )
            for some, theirs in zip(chunks(kept, share), chunks(advantages, share), strict=True)
        ]
        # The behaviour policy is the one before the first update, so all old log-probs are computed first.
        gaps = DecodeTrainGap()
        ready = [(self._with_log_probs(state, reference, packed, gaps), packed) for packed in batches]
        values["processed_tokens"] = sum(
            num_computed_tokens(batch, self._cut(packed), self._mesh) for batch, packed in ready
        )
        totals: list[dict[str, Any]] = []
        for number, ((batch, packed), some) in enumerate(zip(ready, chunks(kept, share), strict=True)):
            self._last_batch = batch
            origin = Origin(*counters, number, problems_of(some), packed.micro_batch_rows)
            is_kept = counters[1] + 1 == settings.guards.save_batch_at
            before = jax.tree.map(jnp.copy, state) if is_kept else None  # the update takes the state over
            state, metrics = self.update(state, batch, packed.micro_batch_rows)
            totals.append(metrics)
            if before is not None:
                self._keeper.save(f"batch_{counters[1] + 1}_{number}", before, batch, metrics, origin)
            if len(totals) == 1 and not self._is_recomputed(packed):
                # The first update's own forward is that of the policy that sampled; a later one's is not any more.
                gaps.add_measured(totals[0])
            if self._are_too_many(state):
                self._keeper.stop_at(state, batch, metrics, origin)
        learned = _mean_metrics(totals)
        if not self.settings.loss.kl_coefficient:
            learned["kl_to_reference"] = None
        return state, {**values, **gaps.metrics(), **learned, "skipped_updates": int(jax.device_get(state.num_skipped))}

    def update(self, state: TrainState, batch: Batch, micro_batch_rows: int) -> tuple[TrainState, dict[str, Any]]:
        """One update on the policy loss, and its metrics on the host; see `Packed` for the rows."""
        cut = dataclasses.replace(self._update_settings, micro_batch_rows=micro_batch_rows)
        loss = self.settings.loss
        state, metrics = update(state, batch, self._log_prob_fn, loss, cut, self._mesh, frozen=self._base)
        return state, jax.device_get(metrics)

    def inspect(self, params: Any, row: Batch, *, is_supervised: bool) -> RowReport:
        """Forward and backward pass of one row alone, on one device.

        Args:
          params: those that are trained.
          is_supervised: on the loss of the warm start.
        """
        return inspect_row(
            params, self._base, row,
            log_prob_fn=_log_prob_fn(self._model, self.settings.log_prob_chunk, self.settings.lora.scale),
            loss_settings=None if is_supervised else self.settings.loss,
            settings=dataclasses.replace(self._update_settings, micro_batch_rows=0, micro_batch_tokens=0),
        )  # fmt: skip

    def _cut(self, packed: Packed) -> UpdateSettings:
        """The update's settings with the micro-batches that fit this batch."""
        return dataclasses.replace(self._update_settings, micro_batch_rows=packed.micro_batch_rows)

    def _with_log_probs(self, state: TrainState, reference: Any, packed: Packed, gaps: DecodeTrainGap) -> Batch:
        """The batch with the log-probs that its update reads and that are not the update's own."""
        batch, cut = packed.batch, self._cut(packed)
        if reference is not None:
            whole = self._with_base(reference)
            of_reference = jax.device_get(compute_log_probs(whole, batch, self._log_prob_fn, cut, self._mesh))
            batch = dataclasses.replace(batch, reference_log_probs=of_reference)
        if not self._is_recomputed(packed):
            return batch
        params = self._with_base(state.params)
        log_probs = jax.device_get(compute_log_probs(params, batch, self._log_prob_fn, cut, self._mesh))
        trained = np.asarray(batch.sums.num_paths > 0 if isinstance(batch, PackedBatch) else batch.loss_mask)
        gaps.add(log_probs, batch)
        old = np.where(trained, log_probs, 0).astype(np.float32)
        return dataclasses.replace(batch, old_log_probs=old)  # type: ignore[arg-type]  # host arrays on purpose

    def _is_recomputed(self, packed: Packed) -> bool:
        """Whether the old log-probs of a batch come from a forward pass of their own."""
        is_from_sampler = self.settings.old_log_probs == "sampler" and packed.is_known
        return not self._update_settings.on_policy and not is_from_sampler

    def _are_too_many(self, state: TrainState) -> bool:
        """Whether the last updates were skipped so often that the run must not go on."""
        return int(jax.device_get(state.num_skipped_in_a_row)) >= self.settings.guards.max_skipped_updates


@functools.partial(jax.jit, static_argnames="model")
def _frozen(params: Any, *, model: ModelConfig) -> Any:
    """A copy, also of what has the compute dtype already: updates take the parameters over."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf).astype(model.compute_dtype), params)


@functools.cache
def _log_prob_fn(model: ModelConfig, chunk_size: int, lora_scale: float = 0.0, mesh: Mesh | None = None) -> LogProbFn:
    """One object per architecture: it is a static argument, and a new one would compile anew."""
    return functools.partial(_log_probs, model=model, chunk_size=chunk_size, lora_scale=lora_scale, mesh=mesh)


def _log_probs(
    params: Any, tokens: jax.Array, segment_ids: jax.Array, *form: jax.Array, model: ModelConfig, chunk_size: int,
    lora_scale: float, mesh: Mesh | None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Of texts, or of trees where `form` holds their positions, parents and ends.

    Args:
      params: with a scale of adapters, the pair of frozen parameters and adapters.
    """
    if lora_scale:
        base, adapters = params
        params = adapt(base, adapters, lora_scale)
    of = tree_log_probs if form else token_log_probs
    return of(model, params, tokens, segment_ids, *form, chunk_size=chunk_size, mesh=mesh)


def sampling_params(params: Any, settings: RunSettings, model: ModelConfig, *, backend: str = "") -> Any:
    """Parameters for decoding: compute dtype, layers apart where that is faster, 8 bits where asked for.

    Args:
      backend: of jax that decodes; by default the one in use.
    """
    search, devices = settings.search, settings.num_devices or jax.device_count()
    rollout, backend = settings.rollout, backend or jax.default_backend()
    if settings.method == "deepsearch":
        num_cursors = rollout.num_slots * search.picks_per_step // devices
        rows = rollout.lot_size(backend, search, num_cursors) * search.children_per_expansion
    else:
        rows = rollout.num_slots * settings.rounds.group_size // devices
    return decoding_params(params, rollout, model, max(rows, 1), backend=backend)


def decoding_params(
    params: Any, rollout: RolloutSettings, model: ModelConfig, rows: int, *, backend: str = ""
) -> Any:  # fmt: skip
    """The same for a decoder that computes `rows` rows at a time on each device."""
    unroll, int8 = rollout.unrolls(backend or jax.default_backend()), rollout.int8
    if not unroll and not int8 and {leaf.dtype for leaf in jax.tree.leaves(params)} == {model.dtypes[1]}:
        return params
    return _sampling_params(params, model=model, unroll=unroll, int8=int8, rows=rows)


@functools.partial(jax.jit, static_argnames=("dtype",))
def _cast(params: Any, *, dtype: str) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


@functools.partial(jax.jit, static_argnames=("model", "unroll", "int8", "rows"))
def _sampling_params(params: Any, *, model: ModelConfig, unroll: bool, int8: bool, rows: int) -> Any:
    params = quantize_int8(model, params) if int8 else params
    params = jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.int8 else leaf.astype(model.compute_dtype), params)
    if not unroll:
        return params
    # 8-bit weights keep the layout their own product is made for; it needs the head apart.
    if int8:
        return unstack_layers(model, params, copy_head=True)
    return arrange_kernels(unstack_layers(model, params), rows=rows, copy_head=True)


def _mean_metrics(totals: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the updates of a step: means weighted by tokens, maxima; None where there was no update."""
    names = (
        "loss", "grad_norm", "entropy", "pg_clipfrac", "pg_clipfrac_lower", "ppo_kl", "mean_ratio", "advantage_mean",
        "kl_to_reference", "importance_weight_mean", "importance_capped_share", "learning_rate",
    )  # fmt: skip
    maxima = ("max_abs_log_ratio", "importance_weight_max")
    weights = [float(metrics["num_tokens"]) for metrics in totals]
    if not sum(weights):
        return dict.fromkeys((*names, *maxima)) | {"updates": 0}
    means = {name: float(np.average([m[name] for m in totals], weights=weights)) for name in names}
    return means | {name: float(max(m[name] for m in totals)) for name in maxima} | {"updates": len(totals)}
