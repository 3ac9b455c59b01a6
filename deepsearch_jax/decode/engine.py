"""Decodes the K continuations of a node for B trees at once, all K attending to one copy of the node's path."""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct

from deepsearch_jax.decode.forward import Layered, forward, stack_layers
from deepsearch_jax.decode.pages import KVPages
from deepsearch_jax.decode.sampling import Sample, sample_token
from deepsearch_jax.decode.settings import DecodeSettings
from deepsearch_jax.policy import ModelConfig, Params, unstack_layers
from deepsearch_jax.types import Segments


@struct.dataclass
class DecodeRequest:
    """The nodes to expand, one per slot. D is the static bucket of path lengths, chosen by the caller.

    Attributes:
      prompt_lengths: [B] int32 tokens of the prompt, >= 1.
      path_pages: [B, D] int32 pages of the nodes from depth 1 to the node itself, -1 behind; all of them full segments.
      depth: [B] int32 depth of the node, 0 at the root; <= D.
      last_token: [B] int32 last token of the prefix; its keys and values are not stored yet.
      child_pages: [B, K] int32 pages to keep the children's keys and values in; -1 keeps nothing.
      row_keys: [B, K] typed PRNG keys; token t of a row is drawn with fold_in(row_key, t).
      active: [B] bool; other slots yield segments of length 0 and write nothing.
    """

    prompt_lengths: jax.Array
    path_pages: jax.Array
    depth: jax.Array
    last_token: jax.Array
    child_pages: jax.Array
    row_keys: jax.Array
    active: jax.Array


class _Loop(NamedTuple):
    step: jax.Array  # [] int32 index of the token to sample
    tokens: jax.Array  # [B, K] int32 sampled last
    is_open: jax.Array  # [B, K] bool rows that go on
    own: tuple[Layered, Layered]  # keys and values of the rows' own tokens, per layer [B, K, Hkv, S, Dh]
    segments: Segments


def decode_children(
    config: ModelConfig, params: Params, pages: KVPages, request: DecodeRequest, settings: DecodeSettings
) -> tuple[KVPages, Segments]:
    """Samples K segments of at most S tokens behind each slot's node.

    The last token of the prefix is fed once per slot and its keys and values go into the node's own page (or the
    prompt's); every further token of the K rows once. Stops as soon as every row has ended.
    Args:
      params: stacked, or as `unstack_layers` gives them (layers are then unrolled).
      pages: donate them; they come back updated.
      settings: static. K, S and the sampling rule.
    Returns: the pages and Segments with a leading [B] axis (inactive slots: length 0).
    """
    _check_shapes(config, pages, request, settings)
    if settings.unroll_layers:
        params = unstack_layers(config, params)
    is_unrolled = "attention" not in params["layers"]
    prefix = _gather_prefix(pages, request)
    prefix_tokens = _token_of_slot(pages, request)  # [B, Tp]
    num_before = request.prompt_lengths + request.depth * settings.segment_length - 1  # tokens before the last one

    def empty(*shape: int) -> Layered:
        shape = (shape[0], shape[1], config.num_kv_heads, shape[2], config.head_dim)
        if is_unrolled:
            return tuple(_zeros(shape, pages.keys) for _ in range(config.num_layers))
        return _zeros((config.num_layers, *shape), pages.keys)

    def layered(stacked: jax.Array) -> Layered:
        return tuple(stacked[index] for index in range(config.num_layers)) if is_unrolled else stacked

    num_slots, num_samples, length = *request.child_pages.shape, settings.segment_length
    one = (empty(num_slots, 1, 1), empty(num_slots, 1, 1))
    mask = prefix_tokens < num_before[:, None]
    first_logits, last_kv = forward(
        config, params, request.last_token[:, None], num_before[:, None], layered(prefix[0]), layered(prefix[1]),
        mask, one, jnp.int32(0),
    )  # fmt: skip
    pages, prefix = _store_last_token(pages, prefix, request, [stack_layers(cache)[:, :, 0, :, 0] for cache in last_kv])
    keys, values = layered(prefix[0]), layered(prefix[1])
    mask = prefix_tokens <= num_before[:, None]

    def draw(step: jax.Array, scores: jax.Array, per_row: bool) -> Sample:
        folded = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(request.row_keys, step)
        sample = jax.vmap(lambda key, row: sample_token(key, row, settings), (0, 0 if per_row else None))
        return jax.vmap(sample)(folded, scores)

    def body(loop: _Loop) -> _Loop:
        positions = jnp.broadcast_to(num_before[:, None] + loop.step, loop.tokens.shape)
        scores, own = forward(config, params, loop.tokens, positions, keys, values, mask, loop.own, loop.step - 1)
        return _append(loop, draw(loop.step, scores, True), settings)._replace(own=own)

    def goes_on(loop: _Loop) -> jax.Array:
        return (loop.step < length) & jnp.any(loop.is_open)

    def blank(dtype: Any) -> jax.Array:
        return _zeros((num_slots, num_samples, length), request.last_token, dtype)

    row = _zeros((num_slots, num_samples), request.last_token, jnp.int32)
    start = _Loop(
        step=jnp.int32(0),
        tokens=row,
        is_open=(row == 0) & request.active[:, None],
        own=(empty(num_slots, num_samples, length), empty(num_slots, num_samples, length)),
        segments=Segments(blank(jnp.int32), row, blank(jnp.float32), blank(jnp.float32), row != 0),
    )
    loop = _append(start, draw(jnp.int32(0), first_logits[:, 0], False), settings)
    loop = jax.lax.while_loop(goes_on, body, loop)
    return _store_children(pages, request, [stack_layers(cache) for cache in loop.own]), loop.segments


def _append(loop: _Loop, sample: Sample, settings: DecodeSettings) -> _Loop:
    """Adds token number `loop.step` to the rows that are open."""
    segments, is_open = loop.segments, loop.is_open

    def put(table: jax.Array, values: jax.Array) -> jax.Array:
        values = jnp.where(is_open, values, 0).astype(table.dtype)[..., None]
        return jax.lax.dynamic_update_slice(table, values, (0, 0, loop.step))

    is_eos = is_open & jnp.isin(sample.token, jnp.array(settings.eos_ids, jnp.int32))
    segments = Segments(
        tokens=put(segments.tokens, sample.token),
        lengths=segments.lengths + is_open,
        log_probs=put(segments.log_probs, sample.log_prob),
        sampling_log_probs=put(segments.sampling_log_probs, sample.sampling_log_prob),
        is_eos=segments.is_eos | is_eos,
    )
    return loop._replace(step=loop.step + 1, tokens=sample.token, is_open=is_open & ~is_eos, segments=segments)


def _gather_prefix(pages: KVPages, request: DecodeRequest) -> tuple[jax.Array, jax.Array]:
    """The prompt's room followed by the path's pages, [L, B, Hkv, P + D * S, Dh] each; gathered once per expansion."""
    if not request.path_pages.shape[1]:
        return pages.prompt_keys, pages.prompt_values

    def joined(pool: jax.Array, prompt: jax.Array) -> jax.Array:
        path = pool[:, jnp.maximum(request.path_pages, 0)]  # [L, B, D, Hkv, S, Dh]
        path = path.swapaxes(2, 3)
        return jnp.concatenate([prompt, path.reshape(*path.shape[:3], -1, path.shape[-1])], axis=3)

    return joined(pages.keys, pages.prompt_keys), joined(pages.values, pages.prompt_values)


def _token_of_slot(pages: KVPages, request: DecodeRequest) -> jax.Array:
    """[B, P + D * S] int32 which token of the prefix each gathered slot holds; a huge number where it holds none."""
    room, length = pages.prompt_keys.shape[3], pages.keys.shape[3]
    nothing = jnp.iinfo(jnp.int32).max
    prompt, path = jnp.arange(room)[None], jnp.arange(request.path_pages.shape[1] * length)[None]
    lengths = request.prompt_lengths[:, None]
    return jnp.concatenate(
        [
            jnp.where(prompt < lengths, prompt, nothing),
            jnp.where(path < request.depth[:, None] * length, lengths + path, nothing),
        ],
        axis=1,
    )


def _store_last_token(
    pages: KVPages, prefix: tuple[jax.Array, jax.Array], request: DecodeRequest, new: list[jax.Array]
) -> tuple[KVPages, tuple[jax.Array, jax.Array]]:
    """Puts keys and values [L, B, Hkv, Dh] of the prefix's last token into their page and into the gathered copy."""
    room, length = pages.prompt_keys.shape[3], pages.keys.shape[3]
    slots = jnp.arange(request.depth.shape[0])
    is_root = request.depth == 0
    in_prefix = jnp.where(is_root, request.prompt_lengths, room + request.depth * length) - 1
    in_prompt = jnp.where(is_root & request.active, in_prefix, room)  # out of range is dropped
    new = [value.swapaxes(0, 1) for value in new]  # indexed arrays put [B] first

    def put(cache: jax.Array, value: jax.Array, at: jax.Array) -> jax.Array:
        return cache.at[:, slots, :, at].set(value, mode="drop")

    prompt_keys, prompt_values = put(pages.prompt_keys, new[0], in_prompt), put(pages.prompt_values, new[1], in_prompt)
    keys, values = pages.keys, pages.values
    if not request.path_pages.shape[1]:
        # The prompt is the whole prefix; inactive slots may miss their last token there, nobody reads them.
        return dataclasses.replace(pages, prompt_keys=prompt_keys, prompt_values=prompt_values), (
            prompt_keys,
            prompt_values,
        )
    own_page = jnp.take_along_axis(request.path_pages, jnp.maximum(request.depth - 1, 0)[:, None], axis=1)[:, 0]
    own_page = jnp.where(~is_root & request.active, own_page, pages.num_pages)
    keys = keys.at[:, own_page, :, length - 1].set(new[0], mode="drop")
    values = values.at[:, own_page, :, length - 1].set(new[1], mode="drop")
    joined = (put(prefix[0], new[0], in_prefix), put(prefix[1], new[1], in_prefix))
    return KVPages(keys, values, prompt_keys, prompt_values), joined


def _store_children(pages: KVPages, request: DecodeRequest, own: list[jax.Array]) -> KVPages:
    """Copies the rows' keys and values [L, B, K, Hkv, S, Dh] into their pages; the last token's slot is still empty."""
    if not pages.num_pages:
        return pages
    keep = (request.child_pages >= 0) & request.active[:, None]
    target = jnp.where(keep, request.child_pages, pages.num_pages)
    keys, values = own
    return dataclasses.replace(
        pages,
        keys=pages.keys.at[:, target].set(keys, mode="drop"),
        values=pages.values.at[:, target].set(values, mode="drop"),
    )


def _zeros(shape: tuple[int, ...], like: jax.Array, dtype: Any = None) -> jax.Array:
    """Zeros that vary over the same mapped axes as `like`, as loop carries must under shard_map."""
    return jnp.zeros_like(like, shape=shape, dtype=dtype)


def _check_shapes(config: ModelConfig, pages: KVPages, request: DecodeRequest, settings: DecodeSettings) -> None:
    num_slots = pages.prompt_keys.shape[1]
    chex.assert_shape([request.prompt_lengths, request.depth, request.last_token, request.active], (num_slots,))
    chex.assert_shape([request.child_pages, request.row_keys], (num_slots, settings.num_samples))
    chex.assert_shape(request.path_pages, (num_slots, None))
    if pages.num_pages:
        heads = (config.num_kv_heads, settings.segment_length, config.head_dim)
        chex.assert_shape(pages.keys, (config.num_layers, pages.num_pages, *heads))
