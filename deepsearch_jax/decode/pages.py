"""Keys and values of prompts and tree nodes: one page of segment_length tokens per node that can still be expanded."""

import jax
import jax.numpy as jnp
from flax import struct

from deepsearch_jax.policy import ModelConfig


@struct.dataclass
class KVPages:
    """The KV cache of B trees. Keys are stored with their rotary embedding applied.

    Attributes:
      keys, values: [L, num_pages, Hkv, S, Dh] one pool for all trees; a page holds the S tokens of one node's segment.
        Its last token is written when the node is expanded.
      prompt_keys, prompt_values: [L, B, Hkv, P, Dh] the prompts, from position 0; the last prompt token is written
        when the root is expanded.
    """

    keys: jax.Array
    values: jax.Array
    prompt_keys: jax.Array
    prompt_values: jax.Array

    @property
    def num_pages(self) -> int:
        return self.keys.shape[1]


def init_pages(
    config: ModelConfig, num_slots: int, nodes_per_slot: int, segment_length: int, prompt_length: int
) -> KVPages:
    """Empty pages for `num_slots` trees (B) in the compute dtype; nodes_per_slot may be 0 for direct rollouts.

    Bytes: 2 * L * Hkv * Dh * itemsize * B * (nodes_per_slot * segment_length + prompt_length).
    """
    heads, dtype = config.num_kv_heads, config.dtypes[1]
    pool = (config.num_layers, num_slots * nodes_per_slot, heads, segment_length, config.head_dim)
    prompt = (config.num_layers, num_slots, heads, prompt_length, config.head_dim)
    return KVPages(jnp.zeros(pool, dtype), jnp.zeros(pool, dtype), jnp.zeros(prompt, dtype), jnp.zeros(prompt, dtype))
