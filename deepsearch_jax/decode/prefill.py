"""Encodes prompts into the cache, once per problem."""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from deepsearch_jax.decode.attention import chunk_attention
from deepsearch_jax.decode.pages import KVPages
from deepsearch_jax.policy import ModelConfig, Params, bind, scan_layers


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

    Slots are encoded one after another, in chunks of tokens up to the prompt's own length, so that neither the other
    slots nor the room behind a short prompt cost anything.
    Args:
      prompt_tokens: [B, P] int32, padded on the right.
      prompt_lengths: [B] int32, 1..P.
      refresh: [B] bool, True at slots with a new prompt.
      chunk_size: tokens encoded together.
    """
    num_slots, room = prompt_tokens.shape
    chex.assert_shape(pages.prompt_keys, (config.num_layers, num_slots, config.num_kv_heads, room, config.head_dim))
    decoder = bind(config, params)
    size = min(chunk_size, room)
    num_chunks = jnp.where(refresh, -(-(prompt_lengths - 1) // size), 0)

    def encode_chunk(slot: jax.Array, index: jax.Array, caches: tuple[jax.Array, jax.Array]):
        # The last chunk of a room that is no multiple of the chunk starts early and writes some tokens again.
        start = jnp.minimum(index * size, room - size)
        positions = start + jnp.arange(size)
        tokens = jax.lax.dynamic_slice(prompt_tokens, (slot, start), (1, size))[0]

        def step(layer, x, caches, layer_index):
            def attend(query, key, value):
                at = (layer_index, slot, 0, start, 0)
                written = tuple(
                    jax.lax.dynamic_update_slice(cache, new.swapaxes(0, 1)[None, None].astype(cache.dtype), at)
                    for cache, new in zip(caches, (key, value))
                )
                mine = (jax.lax.dynamic_slice(c, (layer_index, slot, 0, 0, 0), (1, 1, *c.shape[2:])) for c in written)
                keys, values = (cache[0, 0] for cache in mine)
                return chunk_attention(query, keys, values, positions), written

            return layer(x, positions, attend)

        return scan_layers(decoder, decoder.embed_tokens(tokens), caches, step)[1]

    def encode_slot(slot: jax.Array, caches: tuple[jax.Array, jax.Array]):
        return jax.lax.fori_loop(0, num_chunks[slot], lambda index, c: encode_chunk(slot, index, c), caches)

    keys, values = jax.lax.fori_loop(0, num_slots, encode_slot, (pages.prompt_keys, pages.prompt_values))
    return dataclasses.replace(pages, prompt_keys=keys, prompt_values=values)
