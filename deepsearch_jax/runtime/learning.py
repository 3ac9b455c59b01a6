"""The learning half of a step: groups of responses in, updated train state and metrics out."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepsearch_jax.policy import (
    ModelConfig,
    arrange_kernels,
    param_shardings,
    quantize_int8,
    token_log_probs,
    tree_log_probs,
    unstack_layers,
)
from deepsearch_jax.runtime.groups import Packed, drop_unteachable, node_advantages, pack
from deepsearch_jax.runtime.meshes import build_train_mesh
from deepsearch_jax.runtime.rollout_settings import RolloutSettings
from deepsearch_jax.runtime.rollouts import Group, chunks
from deepsearch_jax.runtime.settings import RunSettings
from deepsearch_jax.training import (
    Batch,
    LogProbFn,
    TrainState,
    UpdateSettings,
    check_rows,
    compute_log_probs,
    gather,
    init_train_state,
    num_row_shards,
    put,
    supervised_update,
    update,
)
from deepsearch_jax.types import PackedBatch, TokenBatch


class TooManySkipped(RuntimeError):
    """Non-finite updates followed each other; the last batch is on disk."""


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
        self.settings, self._model, self._workdir = settings, model, workdir
        self._rollout_mesh, self._mesh = rollout_mesh, build_train_mesh(mesh, settings.mesh)
        check_rows(settings.pack.min_rows, num_row_shards(self._mesh), settings.optimizer.micro_batch_rows)
        is_one_update = settings.rounds.update_problems == settings.rounds.problems_per_step
        # With one update a step the recomputed old log-probs are those of the update's own forward pass.
        self._update_settings = dataclasses.replace(
            settings.optimizer,
            on_policy=settings.optimizer.on_policy or (is_one_update and settings.old_log_probs == "recompute"),
        )
        self._log_prob_fn = _log_prob_fn(model, settings.log_prob_chunk)
        self._last_batch: Batch | None = None

    def init(self, params: Any) -> TrainState:
        """A train state that has done nothing yet; takes the parameters over."""
        if self._mesh is not None and self._mesh is not self._rollout_mesh:
            params = put(params, param_shardings(self._model, params, self._mesh))
        return init_train_state(params, self.settings.optimizer, self._mesh)

    def fresh_optimizer(self, state: TrainState) -> TrainState:
        """The same parameters with an optimizer that has done nothing: the warm start's moments do not leak on."""
        return init_train_state(state.params, self.settings.optimizer, self._mesh)

    def sampling_params(self, state: TrainState) -> Any:
        """The parameters as the decode engine likes them; see `sampling_params`."""
        params = gather(state.params)
        if self._mesh is not self._rollout_mesh and self._rollout_mesh is not None:
            params = jax.device_put(params, NamedSharding(self._rollout_mesh, PartitionSpec()))
        return sampling_params(params, self.settings, self._model)

    def supervised(self, state: TrainState, batch: TokenBatch, learning_rate: float) -> tuple[TrainState, jax.Array]:
        """One step of the warm start; returns its loss."""
        settings = dataclasses.replace(self.settings.warm_start, learning_rate=learning_rate)
        state, metrics = supervised_update(state, batch, self._log_prob_fn, settings, self._mesh)
        return state, metrics["loss"]

    def learn(self, state: TrainState, groups: Sequence[Group]) -> tuple[TrainState, dict[str, Any]]:
        """The updates of one step. Groups without a signal are dropped first; nothing left means no update."""
        settings = self.settings
        kept, dropped = drop_unteachable(groups, settings.advantage, settings.degenerate)
        values: dict[str, Any] = {
            "dropped_groups": dropped.uniform_groups + dropped.empty_groups,
            "dropped_degenerate": dropped.degenerate,
            "trained_groups": len(kept),
            "trained_tokens": sum(len(r.tokens) for group in kept for r in group.responses),
            "max_decode_train_gap": None,
        }
        advantages = node_advantages(kept, settings.advantage)
        share = settings.rounds.update_problems
        batches = [
            pack(
                list(some),
                list(theirs),
                settings.pack,
                settings.loss,
                self._model,
                num_devices=num_row_shards(self._mesh),
                micro_batch_rows=settings.optimizer.micro_batch_rows,
            )
            for some, theirs in zip(chunks(kept, share), chunks(advantages, share), strict=True)
        ]
        # The behaviour policy is the one before the first update, so all old log-probs are computed first.
        ready = [(self._with_old_log_probs(state, packed, values), self._cut(packed)) for packed in batches]
        values["processed_tokens"] = sum(batch.tokens.size for batch, _ in ready)
        totals: list[dict[str, Any]] = []
        for batch, cut in ready:
            self._last_batch = batch
            state, metrics = update(state, batch, self._log_prob_fn, settings.loss, cut, self._mesh)
            totals.append(jax.device_get(metrics))
            self._check_skipped(state)
        return state, {**values, **_mean_metrics(totals), "skipped_updates": int(state.num_skipped)}

    def _cut(self, packed: Packed) -> UpdateSettings:
        """The update's settings with the micro-batches that fit this batch."""
        return dataclasses.replace(self._update_settings, micro_batch_rows=packed.micro_batch_rows)

    def _with_old_log_probs(self, state: TrainState, packed: Packed, values: dict[str, Any]) -> Batch:
        batch = packed.batch
        if self._update_settings.on_policy or (self.settings.old_log_probs == "sampler" and packed.is_known):
            return batch
        log_probs = np.asarray(compute_log_probs(state.params, batch, self._log_prob_fn, self._cut(packed), self._mesh))
        trained = batch.num_paths > 0 if isinstance(batch, PackedBatch) else batch.loss_mask
        sampled = np.asarray(trained) & (np.asarray(batch.old_log_probs) != 0)
        gap = np.abs(log_probs - batch.old_log_probs)[sampled]
        values["max_decode_train_gap"] = max(values["max_decode_train_gap"] or 0.0, float(gap.max(initial=0.0)))
        old = np.where(trained, log_probs, 0).astype(np.float32)
        return dataclasses.replace(batch, old_log_probs=old)  # type: ignore[arg-type]  # host arrays on purpose

    def _check_skipped(self, state: TrainState) -> None:
        """Stops a run whose updates are not finite any more.

        Raises:
          TooManySkipped: max_skipped_updates of them followed each other; the last batch is saved for inspection.
        """
        in_a_row = int(state.num_skipped_in_a_row)
        batch = self._last_batch
        if in_a_row < self.settings.max_skipped_updates or batch is None:
            return
        path = self._workdir / "non_finite_batch.npz"
        np.savez_compressed(path, **{f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)})
        raise TooManySkipped(
            f"loss or gradient was not finite in {in_a_row} updates in a row; the last batch is in {path}. "
            "Lower optimizer.learning_rate or optimizer.max_grad_norm and start again in the same workdir"
        )


@functools.cache
def _log_prob_fn(model: ModelConfig, chunk_size: int) -> LogProbFn:
    """One object per architecture: it is a static argument, and a new one would compile anew."""
    return functools.partial(_log_probs, model=model, chunk_size=chunk_size)


def _log_probs(
    params: Any, tokens: jax.Array, segment_ids: jax.Array, *form: jax.Array, model: ModelConfig, chunk_size: int
) -> tuple[jax.Array, jax.Array]:
    """Of texts, or of trees where `form` holds their positions, parents and ends."""
    of = tree_log_probs if form else token_log_probs
    return of(model, params, tokens, segment_ids, *form, chunk_size=chunk_size)


def sampling_params(params: Any, settings: RunSettings, model: ModelConfig) -> Any:
    """Parameters for decoding: compute dtype, layers apart where that is faster, 8 bits where asked for."""
    search, devices = settings.search, settings.num_devices or jax.device_count()
    rows = settings.rollout.num_slots * search.picks_per_step * search.children_per_expansion // devices
    return decoding_params(params, settings.rollout, model, max(rows, 1))


def decoding_params(params: Any, rollout: RolloutSettings, model: ModelConfig, rows: int) -> Any:
    """The same for a decoder that computes `rows` rows at a time on each device."""
    unroll, int8 = rollout.unrolls(jax.default_backend()), rollout.int8
    if not unroll and not int8 and model.param_dtype == model.compute_dtype:
        return params
    return _sampling_params(params, model=model, unroll=unroll, int8=int8, rows=rows)


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
    """Means over the updates of a step, weighted by tokens; None where there was no update."""
    names = (
        "loss", "grad_norm", "entropy", "pg_clipfrac", "pg_clipfrac_lower", "ppo_kl", "mean_ratio", "max_abs_log_ratio",
        "advantage_mean", "learning_rate",
    )  # fmt: skip
    weights = [float(metrics["num_tokens"]) for metrics in totals]
    if not sum(weights):
        return dict.fromkeys(names) | {"updates": 0}
    means = {name: float(np.average([m[name] for m in totals], weights=weights)) for name in names}
    return means | {"updates": len(totals)}
