"""The rows' prefixes as the engine reads them, one contiguous copy, and what comes back from there into the pages."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from deepsearch_jax.decode.forward import Layered
from deepsearch_jax.decode.pages import KVPages
from deepsearch_jax.decode.prefill import encode_rows
from deepsearch_jax.decode.request import DecodeRequest
from deepsearch_jax.decode.settings import DecodeSettings
from deepsearch_jax.policy import ModelConfig, Params


def gather_prefix(pages: KVPages, request: DecodeRequest, is_unrolled: bool) -> tuple[Layered, Layered]:
    """The prompt's room followed by the path's pages, per layer [R, Hkv, P + D * S, Dh]; once per expansion."""
    length, dim = pages.keys.shape[3:]

    def joined(pool: jax.Array, prompt: jax.Array, layer: Any) -> jax.Array:
        if request.slots is None:
            prompt = prompt[layer]
        else:
            prompt = prompt[layer, request.slots]
        if not request.path_pages.shape[1]:
            return prompt
        if not pool.shape[1]:
            path = jnp.zeros_like(prompt, shape=(*prompt.shape[:-2], request.path_pages.shape[1] * length, dim))
            return jnp.concatenate([prompt, path], axis=-2)
        # A missing page gives what another one holds, which nobody attends to before it is written anew. Layer and
        # pages are indexed in one gather: the layer first would copy all of its pages.
        path = pool.at[layer, jnp.maximum(request.path_pages, 0)].get(mode="clip")  # [..., R, D, Hkv, S, Dh]
        path = path.swapaxes(-4, -3)
        return jnp.concatenate([prompt, path.reshape(*path.shape[:-3], -1, path.shape[-1])], axis=-2)

    def of_layers(pool: jax.Array, prompt: jax.Array) -> Layered:
        if is_unrolled:
            return tuple(joined(pool, prompt, layer) for layer in range(pool.shape[0]))
        return joined(pool, prompt, slice(None))

    return of_layers(pages.keys, pages.prompt_keys), of_layers(pages.values, pages.prompt_values)


def _is_missing(request: DecodeRequest) -> jax.Array:
    """[R, D] bool nodes of the paths of active rows that have no page."""
    in_path = jnp.arange(request.path_pages.shape[1])[None] < request.depth[:, None]
    return in_path & (request.path_pages < 0) & request.active[:, None]


def encode_missing(
    config: ModelConfig, params: Params, prefix: tuple[Layered, Layered], request: DecodeRequest,
    prompt_lengths: jax.Array, prefix_tokens: jax.Array, settings: DecodeSettings, room: int,
) -> tuple[tuple[Layered, Layered], jax.Array]:  # fmt: skip
    """Encodes each path from its first missing node on, but for its last token, into the gathered copy.

    Returns: the copy, and [R] int32 tokens encoded.
    """
    assert request.path_tokens is not None  # check_shapes has seen to it
    is_missing, length = _is_missing(request), settings.segment_length
    end = jnp.where(is_missing.any(axis=1), request.depth * length - 1, 0)
    begin = jnp.minimum(jnp.argmax(is_missing, axis=1).astype(end.dtype) * length, end)
    prefix = encode_rows(
        config, params, prefix, request.path_tokens, begin, end, prompt_lengths, prefix_tokens, offset=room,
        chunk_size=settings.recompute_chunk,
    )  # fmt: skip
    return prefix, end - begin


def keep_missing(pages: KVPages, prefix: tuple[Layered, Layered], request: DecodeRequest) -> KVPages:
    """Copies the nodes that were encoded again from the gathered copy into the pages they are to have, one by one."""
    num_rows, bucket = request.path_pages.shape
    if not bucket or not pages.num_pages:
        return pages
    assert request.keep_pages is not None
    room, (length, dim) = pages.prompt_keys.shape[3], pages.keys.shape[3:]
    keep_pages = request.keep_pages.ravel()
    is_kept = _is_missing(request).ravel() & (keep_pages >= 0)
    (nodes,) = jnp.nonzero(is_kept, size=num_rows * bucket, fill_value=0)

    def copy(pool: jax.Array, cache: jax.Array, node: jax.Array, layer: int) -> jax.Array:
        """Copies one node of a stacked cache [L', R, Hkv, T, Dh] to pool[layer : layer + L']."""
        at = (0, node // bucket, 0, room + node % bucket * length, 0)
        page = jax.lax.dynamic_slice(cache, at, (cache.shape[0], 1, cache.shape[2], length, dim))
        return jax.lax.dynamic_update_slice(pool, page, (layer, keep_pages[node], 0, 0, 0))

    def keep(index: jax.Array, pools: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        result = []
        for pool, cache in zip(pools, prefix):
            if isinstance(cache, tuple):
                for layer, part in enumerate(cache):
                    pool = copy(pool, part[None], nodes[index], layer)
            else:
                pool = copy(pool, cache, nodes[index], 0)
            result.append(pool)
        return tuple(result)

    keys, values = jax.lax.fori_loop(0, is_kept.sum(), keep, (pages.keys, pages.values))
    return dataclasses.replace(pages, keys=keys, values=values)


def token_of_slot(pages: KVPages, request: DecodeRequest, prompt_lengths: jax.Array) -> jax.Array:
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


def _put(cache: Layered, value: jax.Array, where: jax.Array, at: jax.Array) -> Layered:
    """Writes [L, R, Hkv, Dh] to places (where [R], at [R]) of a cache [L, X, Hkv, T, Dh]; out of range is dropped."""
    if isinstance(cache, tuple):
        return tuple(c.at[where, :, at].set(v, mode="drop") for c, v in zip(cache, value))
    return cache.at[:, where, :, at].set(value.swapaxes(0, 1), mode="drop")  # indexed axes come first


def add_last_token(
    prefix: tuple[Layered, Layered], request: DecodeRequest, prompt_lengths: jax.Array, room: int, length: int,
    new: tuple[jax.Array, jax.Array],
) -> tuple[Layered, Layered]:  # fmt: skip
    """Puts keys and values [L, R, Hkv, Dh] of the prefix's last token into the gathered copy.

    Args:
      room: tokens of a prompt's room; length: of a segment.
    """
    rows, at = jnp.arange(request.depth.shape[0]), _last_token_in_prefix(request, prompt_lengths, room, length)
    keys, values = (_put(cache, value, rows, at) for cache, value in zip(prefix, new))
    return keys, values


def _last_token_in_prefix(request: DecodeRequest, prompt_lengths: jax.Array, room: int, length: int) -> jax.Array:
    return jnp.where(request.depth == 0, prompt_lengths, room + request.depth * length) - 1


def store_last_token(
    pages: KVPages, request: DecodeRequest, prompt_lengths: jax.Array, new: tuple[jax.Array, jax.Array],
    after: jax.Array | bool = True,
) -> KVPages:  # fmt: skip
    """Puts keys and values [L, R, Hkv, Dh] of the prefix's last token into their page, or the prompt's.

    XLA writes in place only what nothing reads any more by the dependencies of the program, whatever their order on the
    device. The last layer's part of the gathered copy is no ancestor of `new`, so that all pages would be copied.

    Args:
      after: [] bool, always True; a result of what reads the pages as they were.
    """
    room, length = pages.prompt_keys.shape[3], pages.keys.shape[3]
    slots = jnp.arange(request.depth.shape[0]) if request.slots is None else request.slots
    is_root, active = request.depth == 0, request.active & after
    # Out of range is dropped. Rows that continue one root write the same numbers to the same place.
    in_prompt = jnp.where(is_root & active, _last_token_in_prefix(request, prompt_lengths, room, length), room)
    prompts = [_put(c, v, slots, in_prompt) for c, v in zip((pages.prompt_keys, pages.prompt_values), new)]
    pages = dataclasses.replace(pages, prompt_keys=prompts[0], prompt_values=prompts[1])
    if not request.path_pages.shape[1] or not pages.num_pages:
        return pages
    own = jnp.maximum(request.depth - 1, 0)[:, None]
    own_page = jnp.take_along_axis(request.path_pages, own, axis=1)[:, 0]
    own_page = jnp.where(~is_root & active & (own_page >= 0), own_page, pages.num_pages)
    last = jnp.full_like(own_page, length - 1)
    keys, values = (_put(c, v, own_page, last) for c, v in zip((pages.keys, pages.values), new))
    return dataclasses.replace(pages, keys=keys, values=values)


def store_children(pages: KVPages, request: DecodeRequest, own: tuple[Layered, Layered]) -> KVPages:
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
