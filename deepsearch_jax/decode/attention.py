"""Attention of siblings: one shared prefix and each sibling's own tokens, merged by log-sum-exp."""

import jax
import jax.numpy as jnp


def tree_attention(
    query: jax.Array,
    prefix_keys: jax.Array,
    prefix_values: jax.Array,
    prefix_mask: jax.Array,
    own_keys: jax.Array,
    own_values: jax.Array,
    own_mask: jax.Array,
) -> jax.Array:
    """softmax([q K_prefix | q K_own] / sqrt(Dh)) [V_prefix | V_own], without joining the two caches.

    The K siblings' queries meet the prefix in one matrix product per key/value head (Hydragen, arXiv 2402.05099); the
    two parts share one maximum and one denominator, which is their merge by log-sum-exp.
    Args:
      query: [B, K, Hq, Dh] one new token per sibling.
      prefix_keys, prefix_values: [B, Hkv, Tp, Dh] shared by the K siblings.
      prefix_mask: [B, Tp] bool, True at keys to attend to; may be all False.
      own_keys, own_values: [B, K, Hkv, S, Dh] of each sibling, the new token's among them.
      own_mask: [S] bool, True at the tokens written so far.
    Returns: [B, K, Hq, Dh].
    """
    num_rows, siblings, heads, dim = query.shape
    kv_heads = prefix_keys.shape[1]
    wide = jnp.promote_types(query.dtype, jnp.float32)

    def group(x: jax.Array) -> jax.Array:
        """[B, K, Hkv, G, ...] -> [B, Hkv, K * G, ...]: all queries that meet the same keys of the prefix."""
        return x.swapaxes(1, 2).reshape(num_rows, kv_heads, -1, *x.shape[4:])

    def ungroup(x: jax.Array) -> jax.Array:
        return x.reshape(num_rows, kv_heads, siblings, -1, *x.shape[3:]).swapaxes(1, 2)

    query = (query * jnp.asarray(dim**-0.5, query.dtype)).reshape(num_rows, siblings, kv_heads, -1, dim)
    over_prefix = jnp.einsum("bhqd,bhtd->bhqt", group(query), prefix_keys, preferred_element_type=wide)
    over_prefix = jnp.where(prefix_mask[:, None, None], over_prefix, -jnp.inf)
    over_own = jnp.einsum("bkhgd,bkhsd->bkhgs", query, own_keys, preferred_element_type=wide)
    over_own = jnp.where(own_mask[None, None, None, None], over_own, -jnp.inf)
    # Finite: the new token always attends to itself.
    top = jnp.maximum(over_prefix.max(axis=-1, initial=-jnp.inf), group(over_own.max(axis=-1)))
    weight_prefix = jnp.exp(over_prefix - top[..., None])
    weight_own = jnp.exp(over_own - ungroup(top)[..., None])
    total = weight_prefix.sum(axis=-1) + group(weight_own.sum(axis=-1))
    from_prefix = jnp.einsum(
        "bhqt,bhtd->bhqd", weight_prefix.astype(prefix_values.dtype), prefix_values, preferred_element_type=wide
    )
    from_own = jnp.einsum(
        "bkhgs,bkhsd->bkhgd", weight_own.astype(own_values.dtype), own_values, preferred_element_type=wide
    )
    merged = ungroup(from_prefix) + from_own
    return (merged / ungroup(total)[..., None]).reshape(num_rows, siblings, heads, dim).astype(query.dtype)


def chunk_attention(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    positions: jax.Array,
    key_positions: jax.Array,
    window: jax.Array | None = None,
) -> jax.Array:
    """Causal attention of a chunk of tokens over the cache that already holds them.

    Args:
      query: [C, Hq, Dh].
      keys, values: [Hkv, T, Dh].
      positions: [C] int32 of the queries.
      key_positions: [T] int32 of the keys; a huge number where there is none.
      window: [] int32 tokens that a query attends back to, its own included; None for all.
    Returns: [C, Hq, Dh].
    """
    length, heads, dim = query.shape
    kv_heads = keys.shape[0]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    # Queries of a key/value head side by side: a plain matrix product (the CPU backend has no other one in bfloat16).
    grouped = (query * jnp.asarray(dim**-0.5, query.dtype)).reshape(length, kv_heads, -1, dim)
    grouped = grouped.transpose(1, 2, 0, 3).reshape(kv_heads, -1, dim)  # [Hkv, G * C, Dh]
    scores = jnp.einsum("hqd,htd->hqt", grouped, keys, preferred_element_type=wide)
    scores = scores.reshape(kv_heads, -1, length, keys.shape[1])
    behind = positions[:, None] - key_positions[None]
    seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
    scores = jnp.where(seen[None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype).reshape(kv_heads, -1, keys.shape[1])
    attended = jnp.einsum("hqt,htd->hqd", weights, values, preferred_element_type=wide)
    attended = attended.reshape(kv_heads, -1, length, dim).transpose(2, 0, 1, 3)
    return attended.reshape(length, heads, dim).astype(query.dtype)
