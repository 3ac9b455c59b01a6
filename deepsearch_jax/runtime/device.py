"""The compiled steps of a rollout: start trees, decode the children of every current node, advance the search.

Each function runs per shard of the mesh axis `data`: a shard owns its tree slots, their prompts and their KV pages, so
page ids are local to it and no shard reads another. With one device the same body runs without a mesh.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from deepsearch_jax.decode import DecodeRequest, DecodeSettings, StopTable, decode_children, init_pages, prefill
from deepsearch_jax.policy import ModelConfig
from deepsearch_jax.types import Segments

ROWS, PAGES = PartitionSpec("data"), PartitionSpec(None, "data")


class Prompts(NamedTuple):
    """The prompts in the slots.

    Attributes:
      tokens: [B, P] int32, padded on the right.
      lengths: [B] int32; 0 marks an empty slot.
      keys: [B] typed keys, one a problem; they say what is sampled, whatever slot the problem sits in.
    """

    tokens: jax.Array
    lengths: jax.Array
    keys: jax.Array


def problem_keys(run_key: jax.Array, purpose: int, counters: tuple[int, int], keys: np.ndarray) -> jax.Array:
    """One key a problem from (seed, purpose, round, step, problem key).

    Args:
      run_key: [] typed key made from the seed.
      purpose: which sampler asks; see rollouts.Purpose.
      counters: round and step.
      keys: [B] int32 Problem.key; a host array.
    """
    return _problem_keys(run_key, *jax.device_put((np.array([purpose, *counters], np.int32), keys)))


@jax.jit
def _problem_keys(run_key: jax.Array, counters: jax.Array, keys: jax.Array) -> jax.Array:
    for counter in counters:
        run_key = jax.random.fold_in(run_key, counter)
    return jax.vmap(functools.partial(jax.random.fold_in, run_key))(keys)


def per_shard(body: Callable[..., Any], mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`body` mapped over the mesh axis `data`, or as it is without a mesh."""
    if mesh is None:
        return body
    return jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


@functools.partial(jax.jit, static_argnames=("model", "decode", "mesh"))
def sample_direct(
    params: Any,
    prompts: Prompts,
    stop_table: StopTable | None,
    first: jax.Array | None = None,
    *,
    model: ModelConfig,
    decode: DecodeSettings,
    mesh: Mesh | None,
) -> Segments:
    """K whole responses a prompt: one expansion of the root with a segment as long as a response.

    Response k of a problem uses key fold_in(problem key, k).
    Args:
      first: [] int32 number of the first response, where others are sampled by other calls; None = 0.
    """

    def body(params: Any, prompts: Prompts, stop_table: StopTable | None, first: jax.Array | None) -> Segments:
        num_slots, prompt_length = prompts.tokens.shape
        is_used = prompts.lengths > 0
        pages = init_pages(model, num_slots, 0, segment_length=decode.segment_length, prompt_length=prompt_length)
        pages = prefill(model, params, pages, prompts.tokens, prompts.lengths, is_used)
        ranks = jnp.arange(decode.num_samples)
        if first is not None:
            ranks += first
        row_keys = jax.vmap(lambda key: jax.vmap(functools.partial(jax.random.fold_in, key))(ranks))(prompts.keys)
        last = jnp.take_along_axis(prompts.tokens, jnp.maximum(prompts.lengths - 1, 0)[:, None], axis=1)[:, 0]
        request = DecodeRequest(
            prompt_lengths=prompts.lengths,
            path_pages=jnp.zeros((num_slots, 0), jnp.int32),
            depth=jnp.zeros(num_slots, jnp.int32),
            last_token=last,
            child_pages=jnp.full((num_slots, decode.num_samples), -1, jnp.int32),
            row_keys=row_keys,
            active=is_used,
        )
        return decode_children(model, params, pages, request, decode, stop_table)[1]

    everywhere = PartitionSpec()
    specs = (everywhere, ROWS, everywhere, everywhere)
    return per_shard(body, mesh, specs, ROWS)(params, prompts, stop_table, first)
