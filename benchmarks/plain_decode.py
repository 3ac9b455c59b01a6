"""Decoding as a plain JAX model does it: one cache of its own for every sequence, attention by jax.nn.

It stands in the benchmarks for what is written without knowledge of trees; weights, layers and sampler are this
project's, so that nothing but the caches and their attention differs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from deepsearch_jax import decode, policy
from deepsearch_jax.decode import DecodeSettings


@functools.partial(jax.jit, static_argnames=("config", "settings"), donate_argnames=("caches",))
def sample(
    config: policy.ModelConfig, params: policy.Params, caches: list[Any], length: jax.Array, tokens: jax.Array,
    keys: jax.Array, settings: DecodeSettings,
) -> tuple[list[Any], jax.Array]:  # fmt: skip
    """S tokens behind each of B sequences.

    Args:
      params: one dict per layer.
      caches: per layer keys and values [B, T, Hkv, Dh] with room for the new tokens.
      length: [] int32 tokens in the caches.
      tokens: [B] int32 last token of each sequence, not in the caches yet.
      keys: [B] typed keys.
    Returns: the caches and [B, S] int32 tokens.
    """
    decoder = policy.bind(config, params)

    def step(index: jax.Array, state: tuple[list[Any], jax.Array, jax.Array]) -> Any:
        caches, last, made = state
        position = length + index
        positions = jnp.broadcast_to(position, (last.size, 1))

        def layer_step(layer: Any, x: jax.Array, caches: list[Any], number: Any) -> Any:
            def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> Any:
                written = tuple(
                    jax.lax.dynamic_update_slice(cache, new, (0, position, 0, 0))
                    for cache, new in zip(caches[number], (key, value), strict=True)
                )
                mask = (jnp.arange(written[0].shape[1]) <= position)[None, None, None]
                attended = jax.nn.dot_product_attention(query, *written, mask=mask)
                return attended, [*caches[:number], written, *caches[number + 1 :]]

            return layer(x, positions, attend)

        x, caches = policy.scan_layers(decoder, decoder.embed_tokens(last[:, None]), caches, layer_step)
        scores = policy.logits(params, decoder.final_norm(x))[:, 0]
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        token = jax.vmap(lambda key, row: decode.sample_token(key, row, settings).token)(folded, scores)
        return caches, token, jax.lax.dynamic_update_slice(made, token[:, None], (0, index))

    made = jnp.zeros((tokens.size, settings.segment_length), jnp.int32)
    caches, _, made = jax.lax.fori_loop(0, settings.segment_length, step, (caches, tokens, made))
    return caches, made
