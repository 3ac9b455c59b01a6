"""Decodes the K continuations of R nodes at once, the K siblings of a node attending to one copy of its path."""

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
    """The nodes to expand, R rows; several of them may continue one of the B prompts.

    D is the static bucket of path lengths, chosen by the caller. All nodes of a path are full segments.

    Attributes:
      prompt_lengths: [B] int32 tokens of the prompts, >= 1 where a row continues them.
      path_pages: [R, D] int32 pages of the nodes from depth 1 to the node itself; -1 behind, and at a node that has no
        page with its keys and values in it.
      depth: [R] int32 depth of the node, 0 at the root; <= D.
      last_token: [R] int32 last token of the prefix; it is fed here, whether stored before or not.
      child_pages: [R, K] int32 pages to keep the children's keys and values in; -1 keeps nothing.
      row_keys: [R, K] typed PRNG keys; token t of a child is drawn with fold_in(its key, t).
      active: [R] bool; other rows yield segments of length 0 and write nothing.
      slots: [R] int32 the prompt that each row continues; None: row r continues prompt r (R = B), without a copy of
        the prompts where D is 0.
      path_tokens: [R, D * S] int32 tokens of the path, prompt excluded; what is behind the depth is not read. Only
        needed with `settings.recompute` or a stop table.
      keep_pages: [R, D] int32 page in which to keep a node that has no page in path_pages, -1 for nowhere. None keeps
        nothing.
    """

    prompt_lengths: jax.Array
    path_pages: jax.Array
    depth: jax.Array
    last_token: jax.Array
    child_pages: jax.Array
    row_keys: jax.Array
    active: jax.Array
    slots: jax.Array | None = None
    path_tokens: jax.Array | None = None
    keep_pages: jax.Array | None = None


class _Loop(NamedTuple):
    step: jax.Array  # [] int32 index of the token to sample
    tokens: jax.Array  # [R, K] int32 sampled last
    is_open: jax.Array  # [R, K] bool rows that go on
    own: tuple[Layered, Layered]  # keys and values of the rows' own tokens, per layer [R, K, Hkv, S, Dh]
    segments: Segments


def decode_children(
    config: ModelConfig, params: Params, pages: KVPages, request: DecodeRequest, settings: DecodeSettings
) -> tuple[KVPages, Segments, jax.Array]:
    """Samples K segments of at most S tokens behind each row's node.

    The last token of the prefix is fed once per row and its keys and values go into the node's own page (or the
    prompt's); every further token of the K children once. Stops as soon as every child has ended.
    Args:
      params: stacked, or as `unstack_layers` gives them (layers are then unrolled).
      pages: donate them; they come back updated.
      settings: static. K, S and the sampling rule.
    Returns: the pages, Segments with a leading [R] axis (inactive rows: length 0), and [R] int32 tokens of the path
      that were encoded again for lack of a page.
    """
    _check_shapes(config, pages, request, settings)
    if settings.unroll_layers:
        params = unstack_layers(config, params)
    is_unrolled = "attention" not in params["layers"]
    prompt_lengths = _per_row(request.prompt_lengths, request)
    prefix = _gather_prefix(pages, request, is_unrolled)
    prefix_tokens = _token_of_slot(pages, request, prompt_lengths)  # [R, Tp]
    num_before = prompt_lengths + request.depth * settings.segment_length - 1  # tokens before the last one
    recomputed = jnp.zeros_like(request.depth)

    def empty(*shape: int) -> Layered:
        shape = (shape[0], shape[1], config.num_kv_heads, shape[2], config.head_dim)
        if is_unrolled:
            return tuple(_zeros(shape, pages.keys) for _ in range(config.num_layers))
        return _zeros((config.num_layers, *shape), pages.keys)

    num_rows, num_samples, length = *request.child_pages.shape, settings.segment_length
    mask = prefix_tokens < num_before[:, None]
    first_logits, last_kv = forward(
        config, params, request.last_token[:, None], num_before[:, None], *prefix, mask,
        (empty(num_rows, 1, 1), empty(num_rows, 1, 1)), jnp.int32(0),
    )  # fmt: skip
    new_keys, new_values = (stack_layers(cache)[:, :, 0, :, 0] for cache in last_kv)
    pages, prefix = _store_last_token(pages, prefix, request, prompt_lengths, (new_keys, new_values))
    mask = prefix_tokens <= num_before[:, None]

    def draw(step: jax.Array, scores: jax.Array, per_row: bool) -> Sample:
        folded = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(request.row_keys, step)
        sample = jax.vmap(lambda key, row: sample_token(key, row, settings), (0, 0 if per_row else None))
        return jax.vmap(sample)(folded, scores)

    def body(loop: _Loop) -> _Loop:
        positions = jnp.broadcast_to(num_before[:, None] + loop.step, loop.tokens.shape)
        scores, own = forward(config, params, loop.tokens, positions, *prefix, mask, loop.own, loop.step - 1)
        return _append(loop, draw(loop.step, scores, True), settings)._replace(own=own)

    def goes_on(loop: _Loop) -> jax.Array:
        return (loop.step < length) & jnp.any(loop.is_open)

    def blank(dtype: Any) -> jax.Array:
        return _zeros((num_rows, num_samples, length), request.last_token, dtype)

    row = _zeros((num_rows, num_samples), request.last_token, jnp.int32)
    start = _Loop(
        step=jnp.int32(0),
        tokens=row,
        is_open=(row == 0) & request.active[:, None],
        own=(empty(num_rows, num_samples, length), empty(num_rows, num_samples, length)),
        segments=Segments(blank(jnp.int32), row, blank(jnp.float32), blank(jnp.float32), row != 0),
    )
    loop = _append(start, draw(jnp.int32(0), first_logits[:, 0], False), settings)
    loop = jax.lax.while_loop(goes_on, body, loop)
    return _store_children(pages, request, loop.own), loop.segments, recomputed


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


def _per_row(values: jax.Array, request: DecodeRequest) -> jax.Array:
    """[B, ...] -> [R, ...]."""
    return values if request.slots is None else values[request.slots]


def _gather_prefix(pages: KVPages, request: DecodeRequest, is_unrolled: bool) -> tuple[Layered, Layered]:
    """The prompt's room followed by the path's pages, per layer [R, Hkv, P + D * S, Dh]; once per expansion."""

    def joined(pool: jax.Array, prompt: jax.Array, layer: Any) -> jax.Array:
        if request.slots is None:
            prompt = prompt[layer]
        else:
            prompt = prompt[layer, request.slots]
        if not request.path_pages.shape[1]:
            return prompt
        # One gather each: indexing the layer first would copy all of its pages.
        # A missing page gives what another one holds, which nobody attends to before it is written anew.
        path = pool.at[layer, jnp.maximum(request.path_pages, 0)].get(mode="clip")  # [..., R, D, Hkv, S, Dh]
        path = path.swapaxes(-4, -3)
        return jnp.concatenate([prompt, path.reshape(*path.shape[:-3], -1, path.shape[-1])], axis=-2)

    def of_layers(pool: jax.Array, prompt: jax.Array) -> Layered:
        if is_unrolled:
            return tuple(joined(pool, prompt, layer) for layer in range(pool.shape[0]))
        return joined(pool, prompt, slice(None))

    return of_layers(pages.keys, pages.prompt_keys), of_layers(pages.values, pages.prompt_values)


def _token_of_slot(pages: KVPages, request: DecodeRequest, prompt_lengths: jax.Array) -> jax.Array:
    """[R, P + D * S] int32 which token of the prefix each gathered slot holds; a huge number where it holds none."""
    room, length = pages.prompt_keys.shape[3], pages.keys.shape[3]
    nothing = jnp.iinfo(jnp.int32).max
    prompt, path = jnp.arange(room)[None], jnp.arange(request.path_pages.shape[1] * length)[None]
    lengths = prompt_lengths[:, None]
    return jnp.concatenate(
        [
            jnp.where(prompt < lengths, prompt, nothing),
            jnp.where(path < request.depth[:, None] * length, lengths + path, nothing),
        ],
        axis=1,
    )


def _store_last_token(
    pages: KVPages, prefix: tuple[Layered, Layered], request: DecodeRequest, prompt_lengths: jax.Array,
    new: tuple[jax.Array, jax.Array],
) -> tuple[KVPages, tuple[Layered, Layered]]:  # fmt: skip
    """Puts keys and values [L, R, Hkv, Dh] of the prefix's last token into their page and into the gathered copy."""
    room, length = pages.prompt_keys.shape[3], pages.keys.shape[3]
    rows = jnp.arange(request.depth.shape[0])
    slots = rows if request.slots is None else request.slots
    is_root = request.depth == 0
    in_prefix = jnp.where(is_root, prompt_lengths, room + request.depth * length) - 1
    # Out of range is dropped. Rows that continue one root write the same numbers to the same place.
    in_prompt = jnp.where(is_root & request.active, in_prefix, room)

    def put(cache: Layered, value: jax.Array, where: jax.Array, at: jax.Array) -> Layered:
        if isinstance(cache, tuple):
            return tuple(c.at[where, :, at].set(v, mode="drop") for c, v in zip(cache, value))
        return cache.at[:, where, :, at].set(value.swapaxes(0, 1), mode="drop")  # indexed axes come first

    prompts = [put(c, v, slots, in_prompt) for c, v in zip((pages.prompt_keys, pages.prompt_values), new)]
    pages = dataclasses.replace(pages, prompt_keys=prompts[0], prompt_values=prompts[1])
    if request.path_pages.shape[1] and pages.num_pages:
        own = jnp.maximum(request.depth - 1, 0)[:, None]
        own_page = jnp.take_along_axis(request.path_pages, own, axis=1)[:, 0]
        own_page = jnp.where(~is_root & request.active & (own_page >= 0), own_page, pages.num_pages)
        last = jnp.full_like(own_page, length - 1)
        keys, values = (put(c, v, own_page, last) for c, v in zip((pages.keys, pages.values), new))
        pages = dataclasses.replace(pages, keys=keys, values=values)
    if not request.path_pages.shape[1] and request.slots is None:
        # The prompts are the whole prefix; inactive rows miss their last token there, nobody reads them.
        return pages, _gather_prefix(pages, request, isinstance(prefix[0], tuple))
    keys, values = (put(c, v, rows, in_prefix) for c, v in zip(prefix, new))
    return pages, (keys, values)


def _store_children(pages: KVPages, request: DecodeRequest, own: tuple[Layered, Layered]) -> KVPages:
    """Copies the rows' keys and values [R, K, Hkv, S, Dh] into their pages; the last token's slot is still empty."""
    if not pages.num_pages:
        return pages
    keep = (request.child_pages >= 0) & request.active[:, None]
    target = jnp.where(keep, request.child_pages, pages.num_pages)

    def put(pool: jax.Array, new: Layered) -> jax.Array:
        if not isinstance(new, tuple):
            return pool.at[:, target].set(new, mode="drop")
        for layer, value in enumerate(new):
            pool = pool.at[layer, target].set(value, mode="drop")
        return pool

    return dataclasses.replace(pages, keys=put(pages.keys, own[0]), values=put(pages.values, own[1]))


def _zeros(shape: tuple[int, ...], like: jax.Array, dtype: Any = None) -> jax.Array:
    """Zeros that vary over the same mapped axes as `like`, as loop carries must under shard_map."""
    return jnp.zeros_like(like, shape=shape, dtype=dtype)


def _check_shapes(config: ModelConfig, pages: KVPages, request: DecodeRequest, settings: DecodeSettings) -> None:
    num_slots, num_rows = pages.prompt_keys.shape[1], request.depth.shape[0]
    chex.assert_shape(request.prompt_lengths, (num_slots,))
    chex.assert_shape([request.last_token, request.active], (num_rows,))
    chex.assert_shape([request.child_pages, request.row_keys], (num_rows, settings.num_samples))
    chex.assert_shape(request.path_pages, (num_rows, None))
    bucket = request.path_pages.shape[1]
    if request.slots is None:
        chex.assert_equal(num_rows, num_slots)
    else:
        chex.assert_shape(request.slots, (num_rows,))
    if request.path_tokens is not None:
        chex.assert_shape(request.path_tokens, (num_rows, bucket * settings.segment_length))
    if request.keep_pages is not None:
        chex.assert_shape(request.keep_pages, (num_rows, bucket))
    heads = (config.num_kv_heads, settings.segment_length, config.head_dim)
    chex.assert_shape(pages.keys, (config.num_layers, pages.num_pages, *heads))
