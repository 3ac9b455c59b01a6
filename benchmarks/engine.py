"""The decode engine as benchmarks run it: a real model in float32 in the layout that runs use on CPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from deepsearch_jax import decode, policy

prefill = jax.jit(decode.prefill, static_argnames=("config", "chunk_size"), donate_argnames="pages")
decode_children = jax.jit(decode.decode_children, static_argnames=("config", "settings"), donate_argnames="pages")


@functools.partial(jax.jit, static_argnames=("config", "rows"))
def arranged(config: policy.ModelConfig, params: policy.Params, rows: int) -> policy.Params:
    return policy.arrange_kernels(policy.unstack_layers(config, params), rows=rows, copy_head=True)


def load(directory: str) -> tuple[policy.ModelConfig, policy.Params]:
    """Config and parameters of a Hugging Face directory, float32; decode with what `arranged` gives."""
    config, params = policy.load_pretrained(directory)
    config = dataclasses.replace(config, param_dtype="float32", compute_dtype="float32")
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return config, params


def weight_bytes(config: policy.ModelConfig, params: policy.Params) -> int:
    """Bytes that one decode step reads: every matrix once; the embedding as the head, or of a separate one few rows."""
    skipped = () if config.tie_word_embeddings else ("embed",)
    return sum(leaf.nbytes for name, part in params.items() if name not in skipped for leaf in jax.tree.leaves(part))
