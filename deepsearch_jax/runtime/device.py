"""The compiled steps of a rollout: start trees, decode the children of every current node, advance the search.

Each function runs per shard of the mesh axis `data`: a shard owns its tree slots, their prompts and their KV pages, so
page ids are local to it and no shard reads another. With one device the same body runs without a mesh.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from deepsearch_jax.decode import DecodeRequest, DecodeSettings, KVPages, decode_children, init_pages, prefill
from deepsearch_jax.policy import ModelConfig
from deepsearch_jax.tree import (
    ROOT,
    SearchSettings,
    SearchStatus,
    Trajectories,
    Tree,
    batched_search_step,
    child_is_terminal,
    extract_trajectories,
    init_tree,
    path_nodes,
    path_tokens,
)
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


class ChildrenView(NamedTuple):
    """What the host needs of the new children: which to verify and the tokens that lead there.

    Attributes:
      is_terminal: [B, K] bool children to verify; False in finished trees.
      tokens: [B, K, S] int32 the children's own tokens.
      lengths: [B, K] int32.
      path_tokens: [B, D * S] int32 tokens from the root (prompt excluded) to the expanded node.
      path_length: [B] int32.
      num_tokens: [B] int32 tokens generated for the tree in this expansion.
    """

    is_terminal: jax.Array
    tokens: jax.Array
    lengths: jax.Array
    path_tokens: jax.Array
    path_length: jax.Array
    num_tokens: jax.Array


def problem_keys(run_key: jax.Array, purpose: int, counters: tuple[int, int], keys: jax.Array) -> jax.Array:
    """One key a problem from (seed, purpose, round, step, problem key).

    Args:
      run_key: [] typed key made from the seed.
      purpose: which sampler asks; see rollouts.Purpose.
      counters: round and step.
      keys: [B] int32 Problem.key.
    """
    base = run_key
    for counter in (purpose, *counters):
        base = jax.random.fold_in(base, counter)
    return jax.vmap(functools.partial(jax.random.fold_in, base))(keys)


def per_shard(body: Callable[..., Any], mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`body` mapped over the mesh axis `data`, or as it is without a mesh."""
    if mesh is None:
        return body
    return jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


@functools.partial(jax.jit, static_argnames=("model", "search", "mesh"))
def start_trees(
    params: Any, prompts: Prompts, *, model: ModelConfig, search: SearchSettings, mesh: Mesh | None
) -> tuple[KVPages, Tree]:
    """Empty trees for the prompts, and their KV pages with every prompt encoded (its last token excepted)."""

    def body(params: Any, prompts: Prompts) -> tuple[KVPages, Tree]:
        num_slots, prompt_length = prompts.tokens.shape
        pages = init_pages(
            model, num_slots, num_slots * search.capacity, segment_length=search.segment_length,
            prompt_length=prompt_length,
        )  # fmt: skip
        is_used = prompts.lengths > 0
        pages = prefill(model, params, pages, prompts.tokens, prompts.lengths, is_used)
        trees = jax.vmap(lambda _: init_tree(search))(prompts.lengths)
        status = jnp.where(is_used, trees.status, int(SearchStatus.EXHAUSTED))
        return pages, dataclasses.replace(trees, status=status)

    return per_shard(body, mesh, (PartitionSpec(), ROWS), (PAGES, ROWS))(params, prompts)


@functools.partial(
    jax.jit, static_argnames=("model", "search", "decode", "mesh", "path_bucket"), donate_argnames=("pages",)
)
def expand_trees(
    params: Any, pages: KVPages, trees: Tree, prompts: Prompts, *, model: ModelConfig, search: SearchSettings,
    decode: DecodeSettings, mesh: Mesh | None, path_bucket: int,
) -> tuple[KVPages, Segments, ChildrenView]:  # fmt: skip
    """Decodes the children of the current node of every running tree.

    Args:
      path_bucket: longest path to a current node that this compilation serves, in nodes; static.
    """

    def body(params: Any, pages: KVPages, trees: Tree, prompts: Prompts) -> tuple[KVPages, Segments, ChildrenView]:
        is_running = trees.status == int(SearchStatus.RUNNING)
        request = jax.vmap(functools.partial(_request, search=search, path_bucket=path_bucket))(
            trees, prompts, jnp.arange(prompts.lengths.shape[0]) * search.capacity, is_running
        )
        pages, segments, _ = decode_children(model, params, pages, request, decode)
        by_cursor = jax.tree.map(lambda rows: rows[:, None], segments)  # one cursor a tree
        is_terminal = jax.vmap(functools.partial(child_is_terminal, settings=search))(trees, by_cursor)[:, 0]
        path, path_length = jax.vmap(functools.partial(path_tokens, settings=search))(trees, trees.current)
        view = ChildrenView(
            is_terminal=is_terminal & is_running[:, None],
            tokens=segments.tokens,
            lengths=segments.lengths,
            path_tokens=path,
            path_length=path_length,
            num_tokens=jnp.where(is_running, segments.lengths.sum(axis=1), 0),
        )
        return pages, segments, view

    return per_shard(body, mesh, (PartitionSpec(), PAGES, ROWS, ROWS), (PAGES, ROWS, ROWS))(
        params, pages, trees, prompts
    )


def _request(
    tree: Tree, prompts: Prompts, first_page: jax.Array, is_running: jax.Array, *, search: SearchSettings,
    path_bucket: int,
) -> DecodeRequest:  # fmt: skip
    """The decode request of one tree: node slot s of tree b lives in page b * capacity + s of its shard."""
    current = jnp.maximum(tree.current, ROOT)
    depth = tree.depth[current]
    path = path_nodes(tree, tree.current, search)[:path_bucket]
    prompt_last = prompts.tokens[jnp.maximum(prompts.lengths - 1, 0)]
    slots = tree.num_nodes + jnp.arange(search.expansion_width)
    # Children at the depth limit are never expanded, so nobody will read their pages.
    is_kept = (depth + 1 < search.max_depth) & (slots < search.capacity)
    return DecodeRequest(
        prompt_lengths=prompts.lengths,
        path_pages=jnp.where(path >= 0, first_page + path, -1),
        depth=depth,
        last_token=jnp.where(depth == 0, prompt_last, tree.tokens[current, -1]),
        child_pages=jnp.where(is_kept, first_page + slots, -1),
        row_keys=jax.vmap(functools.partial(jax.random.fold_in, prompts.keys))(slots),
        active=is_running,
    )


@functools.partial(jax.jit, static_argnames=("search", "mesh"), donate_argnames=("trees",))
def advance_trees(
    trees: Tree, segments: Segments, outcomes: jax.Array, prompts: Prompts, *, search: SearchSettings,
    mesh: Mesh | None,
) -> tuple[Tree, jax.Array, jax.Array]:  # fmt: skip
    """Adds the decoded children with their verdicts, backs up and chooses the next node of every running tree.

    Args:
      outcomes: [B, K] int32 Outcome of the terminal children, NONE elsewhere.

    Returns:
      trees, status [B] and the depth of the current nodes [B].
    """

    def body(trees: Tree, segments: Segments, outcomes: jax.Array, prompts: Prompts) -> tuple[Tree, Any, Any]:
        # Children use the counters below the capacity, so this key is nobody else's.
        keys = jax.vmap(jax.random.fold_in)(prompts.keys, search.capacity + trees.num_nodes)
        segments, outcomes = jax.tree.map(lambda rows: rows[:, None], (segments, outcomes))  # one cursor a tree
        trees = batched_search_step(trees, segments, outcomes, keys, search)
        current = jnp.maximum(trees.current, ROOT)
        depth = jnp.take_along_axis(trees.depth, current[:, None], axis=1)[:, 0]
        return trees, trees.status, depth

    return per_shard(body, mesh, (ROWS, ROWS, ROWS, ROWS), (ROWS, ROWS, ROWS))(trees, segments, outcomes, prompts)


@functools.partial(jax.jit, static_argnames=("search",))
def finished_trajectories(trees: Tree, *, search: SearchSettings) -> Trajectories:
    """The credited trajectories of every tree, padded to [B, M, ...]."""
    return jax.vmap(functools.partial(extract_trajectories, settings=search))(trees)


@functools.partial(jax.jit, static_argnames=("model", "decode", "mesh"))
def sample_direct(
    params: Any, prompts: Prompts, *, model: ModelConfig, decode: DecodeSettings, mesh: Mesh | None
) -> Segments:
    """K whole responses a prompt: one expansion of the root with a segment as long as a response.

    Response k of a problem uses key fold_in(problem key, k).
    """

    def body(params: Any, prompts: Prompts) -> Segments:
        num_slots, prompt_length = prompts.tokens.shape
        is_used = prompts.lengths > 0
        pages = init_pages(model, num_slots, 0, segment_length=decode.segment_length, prompt_length=prompt_length)
        pages = prefill(model, params, pages, prompts.tokens, prompts.lengths, is_used)
        ranks = jnp.arange(decode.num_samples)
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
        return decode_children(model, params, pages, request, decode)[1]

    return per_shard(body, mesh, (PartitionSpec(), ROWS), ROWS)(params, prompts)
