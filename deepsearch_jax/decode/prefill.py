"""Encodes known tokens into the cache: prompts, once per problem, and path nodes that have lost their page."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from deepsearch_jax.decode.attention import chunk_attention
from deepsearch_jax.decode.forward import Layered
from deepsearch_jax.decode.pages import KVPages
from deepsearch_jax.policy import ModelConfig, Params, bind, layer_window, scan_layers


def prefill(
    config: ModelConfig,
    params: Params,
    pages: KVPages,
    prompt_tokens: jax.Array,
    prompt_lengths: jax.Array,
    refresh: jax.Array,
    *,
    chunk_size: int = 256,
) -> KVPages:
    """Writes keys and values of the prompts in `refresh`, but for the last token, which the first expansion feeds.

    Args:
      prompt_tokens: [B, P] int32, padded on the right.
      prompt_lengths: [B] int32, 1..P.
      refresh: [B] bool, True at slots with a new prompt; the others are left alone and cost nothing.
      chunk_size: tokens encoded together.
    """
    num_slots, room = prompt_tokens.shape
    chex.assert_shape(pages.prompt_keys, (config.num_layers, num_slots, config.num_kv_heads, room, config.head_dim))
    begin = jnp.zeros_like(prompt_lengths)
    keys, values = encode_rows(
        config, params, (pages.prompt_keys, pages.prompt_values), prompt_tokens, begin,
        jnp.where(refresh, prompt_lengths - 1, 0), begin, jnp.broadcast_to(jnp.arange(room)[None], prompt_tokens.shape),
        offset=0, chunk_size=chunk_size,
    )  # fmt: skip
    return dataclasses.replace(pages, prompt_keys=keys, prompt_values=values)


def encode_rows(
    config: ModelConfig,
    params: Params,
    caches: tuple[Layered, Layered],
    tokens: jax.Array,
    begin: jax.Array,
    end: jax.Array,
    first_position: jax.Array,
    key_positions: jax.Array,
    *,
    offset: int,
    chunk_size: int,
) -> tuple[Layered, Layered]:
    """Writes keys and values of tokens begin..end - 1 of each row, which attend to what the row's cache holds.

    The rows are encoded one after another, in chunks of tokens: neither rows without work nor the room behind a row's
    end cost anything.
    Args:
      caches: keys and values, per layer [R, Hkv, T, Dh], or stacked.
      tokens: [R, X] int32. Token j of a row goes into slot offset + j of its cache and has position
        first_position + j.
      begin, end: [R] int32; nothing is done where begin >= end.
      first_position: [R] int32.
      key_positions: [R, T] int32 position of each cache slot; a huge number where it will never hold one.
      chunk_size: tokens encoded together.
    """
    decoder = bind(config, params)
    size = min(chunk_size, tokens.shape[1])
    num_chunks = jnp.maximum(-(-(end - begin) // size), 0)
    ends = jnp.cumsum(num_chunks)

    def encode_chunk(index: jax.Array, caches: tuple[Layered, Layered]) -> tuple[Layered, Layered]:
        row = jnp.sum(ends <= index)
        # The last chunk of a room that is no multiple of the chunk starts early and writes some tokens again.
        start = begin[row] + (index - ends[row] + num_chunks[row]) * size
        start = jnp.minimum(start, tokens.shape[1] - size)
        positions = first_position[row] + start + jnp.arange(size)
        chunk = jax.lax.dynamic_slice(tokens, (row, start), (1, size))[0]

        def step(layer, x, caches, layer_index):
            def attend(query, key, value):
                written = tuple(
                    _write_run(cache, new, layer_index, row, offset + start) for cache, new in zip(caches, (key, value))
                )
                keys, values = (_row_of(cache, layer_index, row) for cache in written)
                window = layer_window(config, layer_index)
                return chunk_attention(query, keys, values, positions, key_positions[row], window), written

            return layer(x, positions, attend)

        return scan_layers(decoder, decoder.embed_tokens(chunk), caches, step)[1]

    return jax.lax.fori_loop(0, ends[-1], encode_chunk, caches)


def _row_of(cache: Layered, layer: Any, row: jax.Array) -> jax.Array:
    """[Hkv, T, Dh] of one row and layer, in one slice."""
    if isinstance(cache, tuple):
        return jax.lax.dynamic_index_in_dim(cache[layer], row, keepdims=False)
    return jax.lax.dynamic_slice(cache, (layer, row, 0, 0, 0), (1, 1, *cache.shape[2:]))[0, 0]


def _write_run(cache: Layered, new: jax.Array, layer: Any, row: jax.Array, start: jax.Array) -> Layered:
    """Writes [C, Hkv, Dh] of one layer at tokens start.. of a row."""
    if isinstance(cache, tuple):
        new = new.swapaxes(0, 1)[None].astype(cache[layer].dtype)
        updated = jax.lax.dynamic_update_slice(cache[layer], new, (row, 0, start, 0))
        return (*cache[:layer], updated, *cache[layer + 1 :])
    new = new.swapaxes(0, 1)[None, None].astype(cache.dtype)
    return jax.lax.dynamic_update_slice(cache, new, (layer, row, 0, start, 0))
