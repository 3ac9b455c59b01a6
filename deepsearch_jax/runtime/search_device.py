"""The compiled iteration of a search over many trees: back up, let finished trees leave, admit problems, decode.

One call does all that a search needs of the device between two verdicts of the host. It runs per shard of the mesh axis
`data`: a shard owns its tree slots, their prompts and its pool of KV pages, so page ids are local to it.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from deepsearch_jax.decode import (
    DecodeRequest,
    DecodeSettings,
    KVPages,
    StopTable,
    assign_pages,
    decode_in_lots,
    init_pages,
    make_siblings,
    prefill,
)
from deepsearch_jax.policy import ModelConfig
from deepsearch_jax.runtime.device import PAGES, ROWS, Prompts, per_shard
from deepsearch_jax.tree import (
    NO_NODE,
    ROOT,
    Samples,
    SearchSettings,
    SearchStatus,
    Trajectories,
    Tree,
    batched_search_step,
    child_is_terminal,
    child_slots,
    extract_trajectories,
    graft_samples,
    init_tree,
    page_priority,
    path_nodes,
    path_tokens,
)
from deepsearch_jax.types import Segments

# Pages of children that are about to be sampled: below the paths in use (infinite), above every frontier score.
_NEWBORN = float(jnp.finfo(jnp.float32).max)


class Problems(NamedTuple):
    """Problems in slots, or waiting for one.

    Attributes:
      number: [B] int32 number of the problem in the caller's list, -1 where there is none.
      prompts: of the problems; length 0 where there is none.
      entropy_weight: [B] float32 lambda2 of each tree; read where search.confidence is "adaptive".
      samples: [B, ...] direct samples that the trees of waiting problems start from; None where they start from the
        prompt, and of problems that are in a slot already.
    """

    number: jax.Array
    prompts: Prompts
    entropy_weight: jax.Array
    samples: Samples | None = None


@struct.dataclass
class SearchState:
    """B slots with a tree each, and the KV pages of their nodes.

    Attributes:
      trees: [B, ...]; trees of empty slots are not RUNNING.
      problems: what the slots hold.
      segments: [B, F, C, ...] sampled in the last call, waiting for their verdicts.
      pages: the pool and the prompts' keys and values.
      page_of: [B, N] int32 page of each node, -1 where it has none.
    """

    trees: Tree
    problems: Problems
    segments: Segments
    pages: KVPages
    page_of: jax.Array


class FinishedTrees(NamedTuple):
    """What remains of trees that leave; rows of other slots hold zeros.

    Attributes:
      trajectories: [B, M, ...] credited.
      status, num_nodes, num_tokens, depth: [B] int32; depth of the deepest node.
      outcomes: [B, N] int32 Outcome of every node.
      path_entropies: [B, N] float32 mean negative log-prob per token from the root to the end of every node (nats).
      num_grafted: [B] int32 nodes that came from direct samples; they are the first behind the root.
    """

    trajectories: Trajectories
    status: jax.Array
    num_nodes: jax.Array
    num_tokens: jax.Array
    depth: jax.Array
    outcomes: jax.Array
    path_entropies: jax.Array
    num_grafted: jax.Array


class View(NamedTuple):
    """What the host reads after an iteration.

    Attributes:
      problem: [B] int32 problem in the slot, -1 where there is none. Its tree was expanded, but for one that started
        from samples and has nothing left to expand: it leaves with the next call.
      left: [B] int32 problem whose tree left the slot before that, -1 where none did.
      finished: the trees that left.
      is_terminal: [B, F, C] bool new children to verify.
      tokens: [B, F, C, S] int32 the new children's own tokens.
      lengths: [B, F, C] int32.
      is_eos: [B, F, C] bool children that ended by themselves, at an end of sequence or a stop string.
      path_tokens: [B, F, D * S] int32 tokens from the root (prompt excluded) to the expanded nodes, D the bucket.
      path_lengths: [B, F] int32.
      counters: [shards, 8] float32, the fields of Counters: one array, since each one read costs the host time. Whole
        numbers below 2^24 are exact.
    """

    problem: jax.Array
    left: jax.Array
    finished: FinishedTrees
    is_terminal: jax.Array
    tokens: jax.Array
    lengths: jax.Array
    is_eos: jax.Array
    path_tokens: jax.Array
    path_lengths: jax.Array
    counters: jax.Array


class Counters(NamedTuple):
    """Scalars of one iteration of one shard.

    Attributes:
      expansions: nodes expanded.
      deepest: depth of the deepest node that may still be expanded; bounds the next call's paths.
      fed_tokens: sampled tokens that went through the decoder: all of a segment but its last one while it was sampled,
        the last one when its node is expanded.
      recomputed_tokens: tokens encoded again because their page was gone.
      evictions: pages taken from nodes that could still have used them.
      resident_pages: pages in use after the call.
      prompt_tokens: tokens of prompts that went through the decoder.
      entropy: sum of the sampled tokens' exact entropies; 0 where they are not computed.
    """

    expansions: jax.Array
    deepest: jax.Array
    fed_tokens: jax.Array
    recomputed_tokens: jax.Array
    evictions: jax.Array
    resident_pages: jax.Array
    prompt_tokens: jax.Array
    entropy: jax.Array


class Program(NamedTuple):
    """The static part of an iteration: hashable, one compilation each.

    Attributes:
      num_pages: pages of the pool of one shard.
      path_bucket: longest path to an expanded node that this compilation serves, in nodes.
      lot_size: nodes of one shard that are expanded together; 0 = all cursors, idle or not.
    """

    model: ModelConfig
    search: SearchSettings
    decode: DecodeSettings
    mesh: Mesh | None
    num_pages: int
    path_bucket: int
    lot_size: int = 0


STATE = SearchState(ROWS, ROWS, ROWS, PAGES, ROWS)  # type: ignore[arg-type]  # how a state is laid out over shards


@functools.partial(jax.jit, static_argnames=("program", "num_slots", "prompt_length"))
def empty_state(run_key: jax.Array, *, program: Program, num_slots: int, prompt_length: int) -> SearchState:
    """Slots without problems and an empty pool.

    Args:
      run_key: [] typed key; gives the keys of empty slots their type.
      num_slots: B, over all shards.
      prompt_length: P, tokens of room for a prompt.
    """
    search, shards = program.search, 1 if program.mesh is None else program.mesh.size

    def body() -> SearchState:
        size = num_slots // shards
        trees = jax.vmap(lambda _: init_tree(search))(jnp.arange(size))
        trees = dataclasses.replace(trees, status=jnp.full(size, int(SearchStatus.EXHAUSTED), jnp.int32))
        shape = (size, search.picks_per_step, search.children_per_expansion)
        segments = Segments(
            tokens=jnp.zeros((*shape, search.segment_length), jnp.int32),
            lengths=jnp.zeros(shape, jnp.int32),
            log_probs=jnp.zeros((*shape, search.segment_length)),
            sampling_log_probs=jnp.zeros((*shape, search.segment_length)),
            is_eos=jnp.zeros(shape, bool),
        )
        prompts = Prompts(
            jnp.zeros((size, prompt_length), jnp.int32), jnp.zeros(size, jnp.int32), jnp.repeat(run_key[None], size)
        )
        pages = init_pages(program.model, size, program.num_pages, search.segment_length, prompt_length)
        problems = Problems(jnp.full(size, -1, jnp.int32), prompts, jnp.zeros(size))
        return SearchState(trees, problems, segments, pages, jnp.full((size, search.capacity), -1, jnp.int32))

    return per_shard(body, program.mesh, (), STATE)()


@functools.partial(jax.jit, static_argnames=("program",), donate_argnames=("state",))
def search_iteration(
    params: Any, state: SearchState, outcomes: jax.Array, waiting: Problems, stop_table: StopTable | None, *,
    program: Program,
) -> tuple[SearchState, View]:  # fmt: skip
    """One iteration of all trees.

    In this order: the children sampled last get their verdicts and the trees move on; trees that have ended leave;
    waiting problems take the free slots, their prompts are encoded; the nodes at the trees' cursors are expanded.

    Args:
      outcomes: [B, F, C] int32 Outcome of the children that the last View named terminal, NONE elsewhere.
      waiting: up to B problems, their keys as uint32 data; of each shard's rows the first ones are taken first.
    """
    keys = jax.random.wrap_key_data(waiting.prompts.keys, impl=jax.random.key_impl(state.problems.prompts.keys))
    waiting = waiting._replace(prompts=waiting.prompts._replace(keys=keys))
    run = functools.partial(_iteration, program=program)
    everywhere = PartitionSpec()
    specs = (everywhere, STATE, ROWS, ROWS, everywhere)
    return per_shard(run, program.mesh, specs, (STATE, ROWS))(params, state, outcomes, waiting, stop_table)


def _iteration(
    params: Any, state: SearchState, outcomes: jax.Array, waiting: Problems, stop_table: StopTable | None, *,
    program: Program,
) -> tuple[SearchState, View]:  # fmt: skip
    search, model = program.search, program.model
    trees, left, finished = _advance(state, outcomes, search)
    trees, problems, page_of, is_new = _admit(trees, state.problems, state.page_of, waiting, search)
    prompts = problems.prompts
    pages = prefill(model, params, state.pages, prompts.tokens, prompts.lengths, is_new)
    prompt_tokens = jnp.where(is_new, prompts.lengths - 1, 0).sum()

    request, page_of, evictions = _request(trees, prompts, page_of, program)
    pages, segments, recomputed = decode_in_lots(
        model, params, pages, request, program.decode, program.lot_size, stop_table
    )
    entropies, segments = segments.entropies, dataclasses.replace(segments, entropies=None)  # no tree keeps them
    grid = (prompts.lengths.shape[0], search.picks_per_step)
    segments = jax.tree.map(lambda field: field.reshape(*grid, *field.shape[1:]), segments)
    is_terminal = jax.vmap(functools.partial(child_is_terminal, settings=search))(trees, segments)
    active = request.active.reshape(grid)
    lengths = jnp.where(active[..., None], segments.lengths, 0)
    depth = request.depth.reshape(grid)
    # A node whose children are all there is no place to go to, but bounds the depth well enough.
    open_depth = jnp.where(trees.is_terminal | ~_is_running(trees)[:, None], 0, trees.depth).max(initial=0)
    new_depth = jnp.where(active & (~is_terminal & (lengths > 0)).any(axis=-1), depth + 1, 0).max(initial=0)
    counters = Counters(
        expansions=active.sum(),
        deepest=jnp.maximum(open_depth, new_depth),
        fed_tokens=jnp.maximum(lengths - 1, 0).sum() + (active & (depth > 0)).sum(),
        recomputed_tokens=recomputed.sum(),
        evictions=evictions,
        resident_pages=(page_of >= 0).sum(),
        prompt_tokens=prompt_tokens + (active & (depth == 0)).sum(),
        entropy=jnp.float32(0) if entropies is None else entropies.sum(),
    )
    view = View(
        problem=problems.number,
        left=left,
        finished=finished,
        is_terminal=is_terminal & active[..., None],
        tokens=segments.tokens,
        lengths=lengths,
        is_eos=segments.is_eos,
        path_tokens=jnp.asarray(request.path_tokens).reshape(*grid, program.path_bucket * search.segment_length),
        path_lengths=jnp.where(active, depth * search.segment_length, 0),
        counters=jnp.stack([value.astype(jnp.float32) for value in counters])[None],
    )
    return SearchState(trees, problems, segments, pages, page_of), view


def _is_running(trees: Tree) -> jax.Array:
    return trees.status == int(SearchStatus.RUNNING)


def _advance(state: SearchState, outcomes: jax.Array, search: SearchSettings) -> tuple[Tree, jax.Array, FinishedTrees]:
    """The search step of every tree; which problems' trees have ended by it, and what remains of them."""
    # Children use the counters below the capacity, so this key is nobody else's.
    keys = jax.vmap(jax.random.fold_in)(state.problems.prompts.keys, search.capacity + state.trees.num_nodes)
    trees = batched_search_step(state.trees, state.segments, outcomes, keys, search)
    has_ended = (state.problems.number >= 0) & ~_is_running(trees)

    def read(trees: Tree) -> FinishedTrees:
        return FinishedTrees(
            trajectories=jax.vmap(functools.partial(extract_trajectories, settings=search))(trees),
            status=trees.status, num_nodes=trees.num_nodes, num_tokens=trees.num_tokens,
            depth=trees.depth.max(axis=1), outcomes=trees.outcome,
            path_entropies=trees.path_entropy.astype(jnp.float32),
            num_grafted=trees.num_grafted.sum(axis=1, dtype=jnp.int32),
        )  # fmt: skip

    def nothing(trees: Tree) -> FinishedTrees:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(read, trees))

    finished = lax.cond(has_ended.any(), read, nothing, trees)
    return trees, jnp.where(has_ended, state.problems.number, -1), finished


def _admit(
    trees: Tree, problems: Problems, page_of: jax.Array, waiting: Problems, search: SearchSettings
) -> tuple[Tree, Problems, jax.Array, jax.Array]:
    """Gives free slots to waiting problems in order. Returns also which slots are new, [B] bool."""
    is_free = ~_is_running(trees)
    rank = jnp.cumsum(is_free) - 1
    source = jnp.clip(rank, 0, is_free.size - 1)
    is_new = is_free & (waiting.number[source] >= 0)

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(is_new.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    waiting, samples = waiting._replace(samples=None), waiting.samples
    taken = jax.tree.map(lambda new, old: choose(new[source], old), waiting, problems)
    gone = is_free & ~is_new
    lengths = jnp.where(gone, 0, taken.prompts.lengths)
    taken = taken._replace(number=jnp.where(gone, -1, taken.number), prompts=taken.prompts._replace(lengths=lengths))
    fresh = init_tree(search)
    # Rows of tokens and log-probs are written when a node is made; what an earlier tree left there is never read.
    kept = {name: getattr(trees, name) for name in ("tokens", "log_probs", "sampling_log_probs")}
    trees = jax.tree.map(lambda new, old: choose(new[None], old), fresh, trees)
    trees = dataclasses.replace(trees, **kept, entropy_weight=taken.entropy_weight)
    if samples is not None:
        # Children and steps use the counters up to twice the capacity, so these keys are nobody else's.
        keys = jax.vmap(jax.random.fold_in, (0, None))(taken.prompts.keys, 2 * search.capacity + 1)
        start = jax.vmap(functools.partial(graft_samples, settings=search))

        def graft(trees: Tree) -> Tree:
            # Tokens of an earlier tree are in the way here: a graft compares nothing with them, but writes new rows.
            grafted = start(trees, jax.tree.map(lambda field: field[source], samples), keys)
            return jax.tree.map(choose, grafted, trees)

        trees = lax.cond(is_new.any(), graft, lambda trees: trees, trees)
    return trees, taken, jnp.where(is_free[:, None], -1, page_of), is_new


def _request(
    trees: Tree, prompts: Prompts, page_of: jax.Array, program: Program
) -> tuple[DecodeRequest, jax.Array, jax.Array]:
    """The decode request of all cursors; the pages as they will be after it, and how many nodes lose theirs."""
    search, bucket = program.search, program.path_bucket
    num_slots = prompts.lengths.shape[0]

    def paths_of(tree: Tree) -> jax.Array:
        return jax.vmap(lambda cursor: path_nodes(tree, cursor, search))(tree.cursors)[:, :bucket]

    paths = jax.vmap(paths_of)(trees)  # [B, F, D]
    slots = jax.vmap(functools.partial(child_slots, settings=search))(trees)  # [B, F, C]
    running = _is_running(trees)[:, None] & (trees.cursors >= ROOT)
    at = jnp.maximum(trees.cursors, ROOT)
    depth = jnp.take_along_axis(trees.depth, at, axis=1)
    # Children at the depth limit are never expanded, so nobody will read their pages.
    kept = jnp.where((running & (depth + 1 < search.max_depth))[..., None], slots, NO_NODE)
    paths = jnp.where(running[..., None], paths, NO_NODE)
    path_pages, keep_pages, page_of, evictions = _pages_for(trees, paths, kept, page_of, program)
    rows = num_slots * search.picks_per_step
    prompt_last = jnp.take_along_axis(prompts.tokens, jnp.maximum(prompts.lengths - 1, 0)[:, None], axis=1)
    node_last = jax.vmap(lambda tokens, nodes: tokens[nodes, -1])(trees.tokens, at)
    room = bucket * search.segment_length

    def tokens_of(tree: Tree) -> jax.Array:
        return jax.vmap(lambda cursor: path_tokens(tree, cursor, search)[0][:room])(tree.cursors)

    siblings = None
    if search.are_distinct:
        children = jax.vmap(lambda tree, nodes: tree.children[nodes])(trees, at).reshape(num_slots, -1)  # [B, F W]
        exists = children >= 0

        def of_children(field: jax.Array) -> jax.Array:
            found = jax.vmap(lambda table, nodes: table[nodes])(field, jnp.maximum(children, 0))
            return jnp.where(exists[..., None], found, 0).reshape(rows, search.max_children, search.segment_length)

        lengths = jax.vmap(lambda table, nodes: table[nodes])(trees.segment_lengths, jnp.maximum(children, 0))
        shape = (rows, search.max_children)
        siblings = make_siblings(
            of_children(trees.tokens), lengths.reshape(shape), of_children(trees.sampling_log_probs),
            exists.reshape(shape),
        )  # fmt: skip

    row_keys = jax.vmap(lambda key, nodes: jax.vmap(functools.partial(jax.random.fold_in, key))(nodes.reshape(-1)))
    request = DecodeRequest(
        slots=jnp.repeat(jnp.arange(num_slots), search.picks_per_step) if search.picks_per_step > 1 else None,
        prompt_lengths=prompts.lengths,
        path_pages=path_pages.reshape(rows, bucket),
        path_tokens=jax.vmap(tokens_of)(trees).reshape(rows, room),
        keep_pages=keep_pages.reshape(rows, bucket),
        depth=depth.reshape(rows),
        last_token=jnp.where(depth == 0, prompt_last, node_last).reshape(rows),
        child_pages=_lookup(page_of, kept).reshape(rows, -1),
        row_keys=row_keys(prompts.keys, jnp.maximum(slots, 0)).reshape(rows, -1),
        active=running.reshape(rows),
        siblings=siblings,
    )
    return request, page_of, evictions


def _pages_for(
    trees: Tree, paths: jax.Array, children: jax.Array, page_of: jax.Array, program: Program
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Pages to read and to fill on the paths, [B, F, D] each, the new [B, N] table and the number of evictions."""
    search = program.search
    num_slots = page_of.shape[0]
    if not program.decode.recompute:  # every node of every tree has a page of its own
        page_of = jnp.arange(num_slots * search.capacity).reshape(num_slots, -1)
        return _lookup(page_of, paths), jnp.full_like(paths, -1), page_of, jnp.int32(0)
    priority = jax.vmap(functools.partial(page_priority, settings=search))(trees)
    is_child = _mark(children, search.capacity)
    priority = jnp.where(is_child, _NEWBORN, priority)
    depth = jnp.where(is_child, search.max_depth, trees.depth)
    wanted = is_child | _mark(paths, search.capacity)
    before = page_of
    page_of, evictions = assign_pages(page_of, priority, wanted, depth, program.num_pages)
    # A page that is taken away in this very call counts as missing: somebody else's keys may go there.
    read = _lookup(jnp.where(page_of == before, before, -1), paths)
    keep = jnp.where(read < 0, _lookup(page_of, paths), -1)
    return read, keep, page_of, evictions


def _lookup(table: jax.Array, nodes: jax.Array) -> jax.Array:
    """Entries of table [B, N] at nodes [B, ...], -1 at NO_NODE."""
    found = jax.vmap(lambda row, at: row[jnp.maximum(at, 0)])(table, nodes)
    return jnp.where(nodes >= 0, found, -1)


def _mark(nodes: jax.Array, capacity: int) -> jax.Array:
    """[B, N] bool: the nodes [B, ...] that are named; NO_NODE names none."""
    return jax.vmap(
        lambda at: jnp.zeros(capacity, bool).at[jnp.where(at >= 0, at, capacity).reshape(-1)].set(True, mode="drop")
    )(nodes)
