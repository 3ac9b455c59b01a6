"""Keys and values of prompts and tree nodes: a page of segment_length tokens for each node that is worth one."""

import jax
import jax.numpy as jnp
from flax import struct

from deepsearch_jax.policy import ModelConfig


@struct.dataclass
class KVPages:
    """The KV cache of B trees. Keys are stored with their rotary embedding applied.

    Attributes:
      keys, values: [L, num_pages, Hkv, S, Dh] one pool for all trees; a page holds the S tokens of one node's segment.
        Its last token is written when the node is expanded. Who holds which page is the caller's book-keeping (see
        `assign_pages`).
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


def init_pages(config: ModelConfig, num_slots: int, num_pages: int, segment_length: int, prompt_length: int) -> KVPages:
    """Empty pages for `num_slots` prompts (B) in the compute dtype; num_pages may be any number, also 0.

    Bytes: 2 * L * Hkv * Dh * itemsize * (num_pages * segment_length + B * prompt_length).
    """
    heads, dtype = config.num_kv_heads, config.dtypes[1]
    pool = (config.num_layers, num_pages, heads, segment_length, config.head_dim)
    prompt = (config.num_layers, num_slots, heads, prompt_length, config.head_dim)
    return KVPages(jnp.zeros(pool, dtype), jnp.zeros(pool, dtype), jnp.zeros(prompt, dtype), jnp.zeros(prompt, dtype))
