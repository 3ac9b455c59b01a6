"""Decodes the rows that have something to do, a lot of them at a time; what is idle costs nothing."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deepsearch_jax.decode.engine import decode_children
from deepsearch_jax.decode.pages import KVPages
from deepsearch_jax.decode.request import DecodeRequest
from deepsearch_jax.decode.settings import DecodeSettings
from deepsearch_jax.decode.stops import StopTable
from deepsearch_jax.policy import ModelConfig, Params
from deepsearch_jax.types import Segments


class _Loop(NamedTuple):
    lot: jax.Array  # [] int32 number of the next one
    pages: KVPages
    segments: Segments
    recomputed: jax.Array


def decode_in_lots(
    config: ModelConfig,
    params: Params,
    pages: KVPages,
    request: DecodeRequest,
    settings: DecodeSettings,
    lot_size: int,
    stop_table: StopTable | None = None,
) -> tuple[KVPages, Segments, jax.Array]:
    """`decode_children` of the active rows, `lot_size` of them at a time: as many lots as hold them, in one program.

    A row's result does not hang on its lot, since a call writes no page that another of its rows reads: nodes that lose
    theirs to somebody count as missing already. Rows that miss the same node each encode it, in one lot or in two.

    Args:
      lot_size: static; 0, or the number of rows and more: all together, idle or not.
    Returns: as `decode_children`; idle rows are all zeros.
    """
    num_rows, num_samples = request.child_pages.shape
    if not 0 < lot_size < num_rows:
        return decode_children(config, params, pages, request, settings, stop_table)
    order = jnp.argsort(~request.active, stable=True)
    num_active = request.active.sum()

    def body(loop: _Loop) -> _Loop:
        places = loop.lot * lot_size + jnp.arange(lot_size)
        rows = order[jnp.minimum(places, num_rows - 1)]
        some = _rows_of(request, rows, places < num_active)
        pages, segments, recomputed = decode_children(config, params, loop.pages, some, settings, stop_table)
        back = jnp.where(places < num_active, rows, num_rows)  # behind the end: dropped

        def put(table: jax.Array, new: jax.Array) -> jax.Array:
            return table.at[back].set(new, mode="drop")

        return _Loop(loop.lot + 1, pages, jax.tree.map(put, loop.segments, segments), put(loop.recomputed, recomputed))

    def zeros(dtype: Any, *shape: int) -> jax.Array:
        # Like a value of the request, so that they vary over the same mapped axes as loop carries must.
        return jnp.zeros_like(request.depth, shape=(num_rows, *shape), dtype=dtype)

    each, length = (num_samples,), settings.segment_length
    segments = Segments(
        tokens=zeros(jnp.int32, *each, length), lengths=zeros(jnp.int32, *each),
        log_probs=zeros(jnp.float32, *each, length), sampling_log_probs=zeros(jnp.float32, *each, length),
        is_eos=zeros(jnp.bool_, *each), entropies=zeros(jnp.float32, *each, length) if settings.entropy else None,
    )  # fmt: skip
    start = _Loop(jnp.int32(0), pages, segments, zeros(request.depth.dtype))
    end = jax.lax.while_loop(lambda loop: loop.lot * lot_size < num_active, body, start)
    return end.pages, end.segments, end.recomputed


def _rows_of(request: DecodeRequest, rows: jax.Array, is_active: jax.Array) -> DecodeRequest:
    """The request of some rows, of which those that are not active only fill the lot."""
    slots = jnp.arange(request.depth.shape[0]) if request.slots is None else request.slots
    some = {
        field.name: jax.tree.map(lambda values: values[rows], getattr(request, field.name))
        for field in dataclasses.fields(request)
        if field.name not in ("prompt_lengths", "slots", "active")
    }
    return DecodeRequest(prompt_lengths=request.prompt_lengths, slots=slots[rows], active=is_active, **some)
