"""Decodes the K continuations of R nodes at once, the K siblings of a node attending to one copy of its path."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deepsearch_jax.decode.forward import Layered, forward, stack_layers
from deepsearch_jax.decode.pages import KVPages
from deepsearch_jax.decode.prefix import (
    add_last_token,
    encode_missing,
    gather_prefix,
    keep_missing,
    store_children,
    store_last_token,
    token_of_slot,
)
from deepsearch_jax.decode.request import DecodeRequest, check_shapes, per_row
from deepsearch_jax.decode.sampling import Sample, sample_token
from deepsearch_jax.decode.settings import DecodeSettings
from deepsearch_jax.decode.siblings import Siblings
from deepsearch_jax.decode.stops import StopTable
from deepsearch_jax.policy import ModelConfig, Params, unstack_layers
from deepsearch_jax.types import Segments


class _Loop(NamedTuple):
    step: jax.Array  # [] int32 index of the token to sample
    tokens: jax.Array  # [R, K] int32 sampled last
    is_open: jax.Array  # [R, K] bool rows that go on
    own: tuple[Layered, Layered]  # keys and values of the rows' own tokens, per layer [R, K, Hkv, S, Dh]
    segments: Segments
    stop_states: jax.Array | None  # [R, K] int32 how much of a stop string the rows end with
    log_masses: jax.Array | None  # [R, K, W, S] of siblings, -inf once a row differs from them


def decode_children(
    config: ModelConfig,
    params: Params,
    pages: KVPages,
    request: DecodeRequest,
    settings: DecodeSettings,
    stop_table: StopTable | None = None,
) -> tuple[KVPages, Segments, jax.Array]:
    """Samples K segments of at most S tokens behind each row's node.

    The last token of the prefix is fed once per row and its keys and values go into the node's own page (or the
    prompt's); every further token of the K children once. Stops as soon as every child has ended.
    Args:
      params: stacked, or as `unstack_layers` gives them (layers are then unrolled).
      pages: donate them; they come back updated.
      settings: static. K, S and the sampling rule.
      stop_table: a child whose token completes a stop string in its response ends there, like at an EOS.
    Returns: the pages, Segments with a leading [R] axis (inactive rows: length 0), and [R] int32 tokens of the path
      that were encoded again for lack of a page.
    """
    check_shapes(config, pages, request, settings, stop_table)
    length = settings.segment_length
    if settings.unroll_layers:
        params = unstack_layers(config, params)
    is_unrolled = "attention" not in params["layers"]
    prompt_lengths = per_row(request.prompt_lengths, request)
    prefix = gather_prefix(pages, request, is_unrolled)
    prefix_tokens = token_of_slot(pages, request, prompt_lengths)  # [R, Tp]
    num_before = prompt_lengths + request.depth * length - 1  # tokens before the last one
    recomputed = jnp.zeros_like(request.depth)
    if settings.recompute and request.path_pages.shape[1]:
        prefix, recomputed = encode_missing(
            config, params, prefix, request, prompt_lengths, prefix_tokens, settings, pages.prompt_keys.shape[3]
        )

    mask = prefix_tokens < num_before[:, None]
    first_logits, last_kv = forward(
        config, params, request.last_token[:, None], num_before[:, None], *prefix, mask, prefix_tokens,
        _empty_cache(config, pages, (request.depth.shape[0], 1, 1), is_unrolled), jnp.int32(0),
    )  # fmt: skip
    new_keys, new_values = (stack_layers(cache)[:, :, 0, :, 0] for cache in last_kv)
    is_prompt = not request.path_pages.shape[1] and request.slots is None
    if is_prompt:
        # The prompts are the whole prefix; inactive rows miss their last token there, nobody reads them.
        pages = store_last_token(pages, request, prompt_lengths, (new_keys, new_values))
        prefix = gather_prefix(pages, request, is_unrolled)
    else:
        room = pages.prompt_keys.shape[3]
        prefix = add_last_token(prefix, request, prompt_lengths, room, length, (new_keys, new_values))
    mask = prefix_tokens <= num_before[:, None]

    def body(loop: _Loop) -> _Loop:
        positions = jnp.broadcast_to(num_before[:, None] + loop.step, loop.tokens.shape)
        scores, own = forward(
            config, params, loop.tokens, positions, *prefix, mask, prefix_tokens, loop.own, loop.step - 1
        )
        sample = _draw(loop, scores, request, settings)
        return _append(loop, sample, request.siblings, settings, stop_table)._replace(own=own)

    def goes_on(loop: _Loop) -> jax.Array:
        return (loop.step < length) & jnp.any(loop.is_open)

    own = _empty_cache(config, pages, (*request.child_pages.shape, length), is_unrolled)
    start = _start(request, settings, stop_table, own)
    first = _draw(start, first_logits[:, 0], request, settings)
    loop = _append(start, first, request.siblings, settings, stop_table)
    loop = jax.lax.while_loop(goes_on, body, loop)
    # All pages are written here, behind all that reads them, so that they can be written in place.
    pages = store_children(pages, request, loop.own)
    if not is_prompt:
        pages = store_last_token(pages, request, prompt_lengths, (new_keys, new_values), loop.step <= length)
        if settings.recompute and request.keep_pages is not None:
            pages = keep_missing(pages, prefix, request)
    return pages, loop.segments, recomputed


def _empty_cache(
    config: ModelConfig, pages: KVPages, shape: tuple[int, ...], is_unrolled: bool
) -> tuple[Layered, Layered]:
    """Keys and values of [R, K, S] tokens that are still to be sampled."""
    num_rows, num_samples, length = shape
    of_layer = (num_rows, num_samples, config.num_kv_heads, length, config.head_dim)

    def empty() -> Layered:
        if is_unrolled:
            return tuple(_zeros(of_layer, pages.keys) for _ in range(config.num_layers))
        return _zeros((config.num_layers, *of_layer), pages.keys)

    return empty(), empty()


def _start(
    request: DecodeRequest, settings: DecodeSettings, stop_table: StopTable | None, own: tuple[Layered, Layered]
) -> _Loop:
    """Before the first token: children of active rows are open, as far in a stop string as their path has come."""
    num_rows, num_samples, length = *request.child_pages.shape, settings.segment_length

    def blank(dtype: Any) -> jax.Array:
        return _zeros((num_rows, num_samples, length), request.last_token, dtype)

    stop_states = None
    if stop_table is not None:
        stop_states = stop_table.start(request.depth.shape, request.depth)
        if request.path_pages.shape[1]:
            assert request.path_tokens is not None  # check_shapes has seen to it
            stop_states = stop_table.after(request.path_tokens, request.depth * length)
        stop_states = jnp.broadcast_to(stop_states[:, None], (num_rows, num_samples))
    row = _zeros((num_rows, num_samples), request.last_token, jnp.int32)
    return _Loop(
        step=jnp.int32(0),
        tokens=row,
        is_open=(row == 0) & request.active[:, None],
        own=own,
        segments=Segments(blank(jnp.int32), row, blank(jnp.float32), blank(jnp.float32), row != 0,
                          blank(jnp.float32) if settings.entropy else None),
        stop_states=stop_states,
        log_masses=None if request.siblings is None else jnp.repeat(
            request.siblings.log_masses[:, None], num_samples, axis=1
        ),
    )  # fmt: skip


def _draw(loop: _Loop, scores: jax.Array, request: DecodeRequest, settings: DecodeSettings) -> Sample:
    """Draws token number `loop.step` of every row, [R, K], from logits [R, K, V], or [R, V] common to the K."""
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(request.row_keys, loop.step)
    of_row = 0 if scores.ndim == 3 else None
    if loop.log_masses is None or request.siblings is None:
        return jax.vmap(jax.vmap(lambda key, row: sample_token(key, row, settings), (0, of_row)))(keys, scores)

    def beside(key: jax.Array, row: jax.Array, log_masses: jax.Array, tokens: jax.Array, is_last: jax.Array) -> Sample:
        return sample_token(key, row, settings, (tokens, log_masses, is_last))

    tokens, log_masses = request.siblings.tokens[..., loop.step], loop.log_masses[..., loop.step]
    is_last = request.siblings.lengths == loop.step + 1
    return jax.vmap(jax.vmap(beside, (0, of_row, 0, None, None)))(keys, scores, log_masses, tokens, is_last)


def _append(
    loop: _Loop, sample: Sample, siblings: Siblings | None, settings: DecodeSettings, stop_table: StopTable | None
) -> _Loop:
    """Adds token number `loop.step` to the rows that are open."""
    segments, is_open = loop.segments, loop.is_open
    log_masses = loop.log_masses
    if log_masses is not None and siblings is not None:
        differs = siblings.tokens[:, None, :, loop.step] != sample.token[:, :, None]
        log_masses = jnp.where(differs[..., None], -jnp.inf, log_masses)

    def put(table: jax.Array, values: jax.Array) -> jax.Array:
        values = jnp.where(is_open, values, 0).astype(table.dtype)[..., None]
        return jax.lax.dynamic_update_slice(table, values, (0, 0, loop.step))

    is_eos = is_open & jnp.isin(sample.token, jnp.array(settings.eos_ids, jnp.int32))
    stop_states = loop.stop_states
    if stop_table is not None and stop_states is not None:
        stop_states = stop_table.advance(stop_states, sample.token)
        is_eos |= is_open & stop_table.is_complete(stop_states)
    entropies = segments.entropies
    if entropies is not None and sample.exact_entropy is not None:
        entropies = put(entropies, sample.exact_entropy)
    segments = Segments(
        tokens=put(segments.tokens, sample.token),
        lengths=segments.lengths + is_open,
        log_probs=put(segments.log_probs, sample.log_prob),
        sampling_log_probs=put(segments.sampling_log_probs, sample.sampling_log_prob),
        is_eos=segments.is_eos | is_eos,
        entropies=entropies,
    )
    is_open = is_open & ~is_eos
    return loop._replace(
        step=loop.step + 1,
        tokens=sample.token,
        is_open=is_open,
        segments=segments,
        stop_states=stop_states,
        log_masses=log_masses,
    )


def _zeros(shape: tuple[int, ...], like: jax.Array, dtype: Any = None) -> jax.Array:
    """Zeros that vary over the same mapped axes as `like`, as loop carries must under shard_map."""
    return jnp.zeros_like(like, shape=shape, dtype=dtype)
