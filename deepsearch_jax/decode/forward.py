"""One token per row through the decoder: siblings share a prefix, each row keeps its own keys and values."""

from typing import Any

import jax
import jax.numpy as jnp

from deepsearch_jax.decode.attention import tree_attention
from deepsearch_jax.policy import ModelConfig, Params, bind, layer_window, logits, scan_layers

# Per layer: a stacked array [L, ...] for scanned layers, a tuple of L arrays for unrolled ones.
Layered = Any


def forward(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    prefix_keys: Layered,
    prefix_values: Layered,
    prefix_mask: jax.Array,
    prefix_positions: jax.Array,
    own: tuple[Layered, Layered],
    index: jax.Array,
) -> tuple[jax.Array, tuple[Layered, Layered]]:
    """Feeds one token per row [B, K] and writes its keys and values at `index` of the own caches; logits [B, K, V].

    Args:
      positions: [B, K] int32 of the tokens, the same for all K.
      prefix_mask: [B, Tp] bool keys of the prefix that may be attended to, as far as a layer's window reaches.
      prefix_positions: [B, Tp] int32 of the prefix's keys.
    """
    decoder = bind(config, params)

    def step(layer, x, own, layer_index):
        def attend(query, key, value):
            written = tuple(write_token(cache, new, layer_index, index) for cache, new in zip(own, (key, value)))
            own_keys, own_values = (layer_of(cache, layer_index) for cache in written)
            age = index - jnp.arange(own_keys.shape[3])  # how far behind the new token each own one is
            own_mask, mask, window = age >= 0, prefix_mask, layer_window(config, layer_index)
            if window is not None:
                own_mask, mask = own_mask & (age < window), mask & (positions[:, :1] - prefix_positions < window)
            keys, values = layer_of(prefix_keys, layer_index), layer_of(prefix_values, layer_index)
            return tree_attention(query, keys, values, mask, own_keys, own_values, own_mask), written

        return layer(x, positions, attend)

    x, own = scan_layers(decoder, decoder.embed_tokens(tokens), own, step)
    return logits(params, decoder.final_norm(x)), own


def layer_of(cache: Layered, index: Any) -> jax.Array:
    return cache[index] if isinstance(cache, tuple) else jax.lax.dynamic_index_in_dim(cache, index, keepdims=False)


def stack_layers(cache: Layered) -> jax.Array:
    return jnp.stack(cache) if isinstance(cache, tuple) else cache


def write_token(cache: Layered, new: jax.Array, layer: Any, index: jax.Array) -> Layered:
    """Writes [B, K, Hkv, Dh] of one layer at token `index`."""
    if isinstance(cache, tuple):
        updated = jax.lax.dynamic_update_slice(cache[layer], new[:, :, :, None], (0, 0, 0, index, 0))
        return (*cache[:layer], updated, *cache[layer + 1 :])
    return jax.lax.dynamic_update_slice(cache, new[None, :, :, :, None], (layer, 0, 0, 0, index, 0))
