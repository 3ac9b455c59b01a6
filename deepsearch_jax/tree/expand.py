"""Expansion: how many children the cursors ask for, and their entry into the tree."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from deepsearch_jax.tree.settings import SearchSettings
from deepsearch_jax.tree.state import NO_NODE, ROOT, Tree
from deepsearch_jax.types import Outcome, Segments


def width_at_depth(depth: jax.Array, settings: SearchSettings) -> jax.Array:
    """Children a node at this depth is to have; same shape as `depth`, int32.

    expansion_width; with dynamic width max(min_width, expansion_width - width_decay * (depth div band)) with
    band = max_depth div expansion_width, at least 1 (the authors' code divides by zero where max_depth is smaller).
    """
    if not settings.min_width:
        return jnp.full_like(depth, settings.expansion_width)
    band = max(settings.max_depth // settings.expansion_width, 1)
    return jnp.maximum(settings.expansion_width - settings.width_decay * (depth // band), settings.min_width)


def most_children(tree: Tree, nodes: jax.Array, settings: SearchSettings) -> jax.Array:
    """Children that `nodes` may have; int32 of their shape.

    That of their depth. Children from direct samples count at the root alone, which the samples have tried often
    enough; any node below may get as many more as without them, or the search could not branch off where they fail.
    """
    width = width_at_depth(tree.depth[nodes], settings)
    return width + jnp.where(nodes > ROOT, tree.num_grafted[nodes], 0) if settings.num_grafts else width


def num_children_wanted(tree: Tree, settings: SearchSettings) -> jax.Array:
    """Returns [F] int32: children to be made now for each cursor; 0 at idle cursors and once the search has ended.

    Eager: all that its node lacks. Lazy: one; no more cursors wait at a node than it has room for.
    """
    nodes = jnp.maximum(tree.cursors, ROOT)
    missing = most_children(tree, nodes, settings) - tree.num_children[nodes]
    missing = jnp.clip(missing, 0, settings.children_per_expansion)
    return jnp.where(tree.is_running & (tree.cursors >= ROOT), missing, 0)


def _is_wanted(tree: Tree, settings: SearchSettings) -> jax.Array:
    """Returns [F, C] bool: the rows of an expansion that become children; the first ones of each cursor."""
    return child_ranks(settings)[None, :] < num_children_wanted(tree, settings)[:, None]


def child_slots(tree: Tree, settings: SearchSettings) -> jax.Array:
    """Returns [F, C] int32: the node slots that the children get if they are made now; NO_NODE where none is wanted."""
    wanted = num_children_wanted(tree, settings)
    first = tree.num_nodes + jnp.cumsum(wanted, dtype=jnp.int32) - wanted
    return jnp.where(_is_wanted(tree, settings), first[:, None] + child_ranks(settings)[None, :], NO_NODE)


def child_is_terminal(tree: Tree, segments: Segments, settings: SearchSettings) -> jax.Array:
    """Returns [F, C] bool: which of the segments sampled at the cursors end a trajectory, and so are to be verified.

    A segment ends its trajectory with an end-of-sequence token, by being shorter than a full segment, or at max_depth.
    Rows past `num_children_wanted` and those of idle cursors are never terminal.

    Args:
      segments: [F, C, ...] sampled at `tree.cursors`.
    """
    chex.assert_shape([segments.lengths, segments.is_eos], (settings.picks_per_step, settings.children_per_expansion))
    ended = segments.lengths < settings.segment_length
    if not settings.reference_quirks:  # there a full segment goes on, whatever its last token is
        ended |= segments.is_eos
    at_limit = tree.depth[jnp.maximum(tree.cursors, ROOT)] + 1 >= settings.max_depth
    return (ended | at_limit[:, None]) & _is_wanted(tree, settings)


def child_ranks(settings: SearchSettings) -> jax.Array:
    """Returns [C] int32 0, 1, ..., C - 1."""
    return jnp.arange(settings.children_per_expansion, dtype=jnp.int32)


class _Entropies(NamedTuple):
    """What a child's log-probs sum up to, each [C]; meanings as in Tree."""

    mean_nll: jax.Array
    path_length: jax.Array
    path_log_prob: jax.Array
    path_entropy: jax.Array


def _entropies(
    tree: Tree, node: jax.Array, segments: Segments, is_terminal: jax.Array, settings: SearchSettings
) -> _Entropies:
    """Mean negative log-prob of each segment and of each whole trajectory; 0, never NaN, where there is no token."""
    in_segment = jnp.arange(settings.segment_length, dtype=jnp.int32)[None, :] < segments.lengths[:, None]
    log_probs = jnp.where(in_segment, segments.log_probs, 0.0)
    # Float32 on purpose: the recorded searches hold the float32 mean even where values are float64.
    lengths = jnp.maximum(segments.lengths, 1).astype(jnp.float32)
    mean_nll = -log_probs.sum(axis=1) / lengths
    path_length = tree.path_length[node] + segments.lengths
    path_log_prob = tree.path_log_prob[node] + log_probs.sum(axis=1, dtype=settings.value_dtype)
    counted, counted_sum = path_length, path_log_prob
    if settings.reference_eos_is_pad:
        last = jnp.maximum(segments.lengths - 1, 0)
        last_log_prob = jnp.take_along_axis(log_probs, last[:, None], axis=1)[:, 0].astype(settings.value_dtype)
        drop = is_terminal & segments.is_eos
        counted = counted - drop
        counted_sum = counted_sum - jnp.where(drop, last_log_prob, 0.0)
    mean = -counted_sum / jnp.maximum(counted, 1).astype(settings.value_dtype)
    return _Entropies(mean_nll, path_length, path_log_prob, jnp.where(counted > 0, mean, 0.0))


def _insert_in_preorder(
    tree: Tree, node: jax.Array, start: jax.Array, width: jax.Array, settings: SearchSettings
) -> jax.Array:
    """Returns preorder [N] with room made for `width` more children of `node` at slots start, start + 1, ...

    They follow everything that is already below `node`: the next rank whose depth is not below `node` moves back.
    """
    slots = jnp.arange(settings.capacity, dtype=jnp.int32)
    follows = (slots < tree.num_nodes) & (tree.preorder > tree.preorder[node]) & (tree.depth <= tree.depth[node])
    first = jnp.min(jnp.where(follows, tree.preorder, tree.num_nodes))
    shifted = tree.preorder + jnp.where((slots < tree.num_nodes) & (tree.preorder >= first), width, 0)
    is_new = (slots >= start) & (slots < start + width)
    return jnp.where(is_new, first + slots - start, shifted)


class _NewChildren(NamedTuple):
    """The rows of one cursor: segments [C, ...]; outcomes and is_terminal [C]; width [] how many of them are wanted."""

    node: jax.Array
    segments: Segments
    outcomes: jax.Array
    is_terminal: jax.Array
    width: jax.Array


def add_children(tree: Tree, segments: Segments, outcomes: jax.Array, settings: SearchSettings) -> Tree:
    """Adds the children that the cursors wait for, cursor by cursor. A tree that has ended is left as it is.

    Children that come late, to a node that has some already, take the ranks behind them.

    Args:
      segments: [F, C, ...] sampled at `tree.cursors`; rows past `num_children_wanted` are ignored.
      outcomes: [F, C] int32 Outcome of the rows that are terminal, others are ignored. A terminal without a verdict
        (NONE) counts as INCORRECT.
    """
    F, C = settings.picks_per_step, settings.children_per_expansion
    chex.assert_shape(outcomes, (F, C))
    chex.assert_shape(segments.tokens, (F, C, settings.segment_length))
    nodes = jnp.maximum(tree.cursors, ROOT)
    is_terminal, wanted = child_is_terminal(tree, segments, settings), num_children_wanted(tree, settings)
    rows = _NewChildren(nodes, segments, jnp.asarray(outcomes), is_terminal, wanted)
    for cursor in range(F):
        tree = _add_at(tree, jax.tree.map(lambda field: field[cursor], rows), settings)  # noqa: B023  (used at once)
    return tree


def _add_at(tree: Tree, new: _NewChildren, settings: SearchSettings) -> Tree:
    """Adds the children of one cursor."""
    node, segments, is_terminal, width = new.node, new.segments, new.is_terminal, new.width
    ranks = child_ranks(settings)
    is_new = ranks < width
    unknown = is_terminal & (new.outcomes == Outcome.NONE)
    entropies = _entropies(tree, node, segments, is_terminal, settings)
    start = jnp.where(width > 0, tree.num_nodes, settings.capacity)  # out of bounds: the write is dropped

    def write(field: jax.Array, rows: jax.Array, free: int = 0) -> jax.Array:
        """Writes [C, ...] rows at slots start, start + 1, ...; where a row is not new, what a free slot holds."""
        new = jnp.where(is_new.reshape(is_new.shape + (1,) * (rows.ndim - 1)), rows, free).astype(field.dtype)
        window = tuple(range(rows.ndim))
        return lax.scatter(
            field,
            start[None],
            new,
            lax.ScatterDimensionNumbers(window, inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)),
            indices_are_sorted=True,
            unique_indices=True,
            mode=lax.GatherScatterMode.FILL_OR_DROP,
        )

    first_rank = tree.num_children[node]
    places = jnp.where(is_new, first_rank + ranks, settings.max_children)
    children = tree.children.at[node, places].set(tree.num_nodes + ranks, mode="drop")
    return dataclasses.replace(
        tree,
        parent=write(tree.parent, jnp.broadcast_to(node, ranks.shape), free=NO_NODE),
        child_rank=write(tree.child_rank, first_rank + ranks, free=NO_NODE),
        children=children,
        num_children=tree.num_children.at[node].add(width),
        depth=write(tree.depth, jnp.broadcast_to(tree.depth[node] + 1, ranks.shape)),
        preorder=_insert_in_preorder(tree, node, start, width, settings),
        is_terminal=write(tree.is_terminal, is_terminal),
        outcome=write(
            tree.outcome, jnp.where(is_terminal, jnp.where(unknown, Outcome.INCORRECT, new.outcomes), Outcome.NONE)
        ),
        segment_lengths=write(tree.segment_lengths, segments.lengths),
        mean_nll=write(tree.mean_nll, entropies.mean_nll),
        path_length=write(tree.path_length, entropies.path_length),
        path_log_prob=write(tree.path_log_prob, entropies.path_log_prob),
        path_entropy=write(tree.path_entropy, entropies.path_entropy),
        tokens=write(tree.tokens, segments.tokens),
        log_probs=write(tree.log_probs, segments.log_probs),
        sampling_log_probs=write(tree.sampling_log_probs, segments.sampling_log_probs),
        num_nodes=tree.num_nodes + width,
        num_tokens=tree.num_tokens + jnp.where(is_new, segments.lengths, 0).sum(dtype=jnp.int32),
    )
