"""From groups of responses to the padded rows of an update: drop what teaches nothing, compute advantages, pack."""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from deepsearch_jax.data.degenerate import DegenerateSettings, is_degenerate
from deepsearch_jax.objective import AdvantageSettings, LossSettings, sibling_advantages, tree_advantages
from deepsearch_jax.policy import ModelConfig
from deepsearch_jax.runtime.layout import Layout, choose_layout, has_few_operations
from deepsearch_jax.runtime.rollouts import Group, bucket
from deepsearch_jax.training import (
    Batch,
    Paths,
    TokenTree,
    cut_by_tokens,
    pack_rows,
    take_rows,
    token_tree,
    update_cost,
    without_idle_ends,
)
from deepsearch_jax.types import Outcome, PackedBatch, TokenBatch

TREES = ("auto", "always", "never")
# Trees must promise this much less work before "auto" takes them: gathering parents and laying out trees is not in the
# count. With it no case of `benchmarks.update` at 2,048 and 8,192 tokens was slower than with rows of one response.
MARGIN = 0.92


@dataclasses.dataclass(frozen=True)
class PackSettings:
    """Shapes of the training rows.

    Attributes:
      row_multiple: rows are padded to a multiple of this many tokens; each length compiles once.
      min_rows: the number of rows is padded to this times a power of two, so that few shapes are compiled; a multiple
        of optimizer.micro_batch_rows times the number of devices. Rows of trees, which are fewer and longer, keep to
        the tokens of a micro-batch instead (one tree at least) and to a multiple of the devices; there is room for the
        trees of rounds.update_problems, and where an update is little work all batches have one of few shapes
        (`runtime.layout`). Rows that only fill a batch up cost nothing where optimizer.micro_batch_tokens cuts it, and
        next to nothing in batches of trees.
      trees: whether what responses to a problem have in common is computed once: "always", "never", or "auto", which
        compares the work (`training.update_cost`); the update is the same but for rounding. Trees leave out ends of
        responses that have no advantage, unless the loss asks for entropy or a reference there; metrics of tokens are
        then over those that are left.
      max_tree_tokens: a batch with a longer tree than this goes in rows of one response, so that no row takes more
        memory than was planned: all trajectories of a tree may share next to nothing; 0 = no limit.
    """

    row_multiple: int = 64
    min_rows: int = 8
    trees: str = "auto"
    max_tree_tokens: int = 0

    def __post_init__(self) -> None:
        if self.max_tree_tokens < 0:
            raise ValueError(f"max_tree_tokens={self.max_tree_tokens} must be at least 0; 0 is no limit")
        if self.trees not in TREES:
            raise ValueError(f"trees={self.trees!r} is not known; choose one of {', '.join(TREES)}")
        if self.row_multiple < 1 or self.min_rows < 1:
            raise ValueError(f"row_multiple={self.row_multiple} and min_rows={self.min_rows} must be at least 1")


@dataclasses.dataclass
class DropCounts:
    """What was left out of an update, by cause."""

    degenerate: int = 0
    uniform_groups: int = 0
    empty_groups: int = 0


def drop_unteachable(
    groups: Sequence[Group], advantage: AdvantageSettings, degenerate: DegenerateSettings
) -> tuple[list[Group], DropCounts]:
    """Leaves out garbled or endlessly repeating wrong responses, then groups whose rewards are all equal."""
    counts, kept = DropCounts(), []
    for group in groups:
        responses = []
        for response in group.responses:
            if response.outcome != Outcome.CORRECT and is_degenerate(response.text, degenerate):
                counts.degenerate += 1
            else:
                responses.append(response)
        if not responses:
            counts.empty_groups += 1
        elif advantage.drop_uniform and len({response.reward for response in responses}) == 1:
            counts.uniform_groups += 1
        else:
            kept.append(dataclasses.replace(group, responses=responses))
    return kept, counts


@functools.partial(jax.jit, static_argnames=("settings",))
def _batched_advantages(
    values: jax.Array, nodes: jax.Array, scores: jax.Array, lengths: jax.Array, terminals: jax.Array,
    is_terminal: jax.Array, *, settings: AdvantageSettings,
) -> jax.Array:  # fmt: skip
    def one(
        values: jax.Array, nodes: jax.Array, scores: jax.Array, lengths: jax.Array, terminals: jax.Array,
        is_terminal: jax.Array,
    ) -> jax.Array:  # fmt: skip
        return tree_advantages(
            values, nodes > 0, scores, lengths, lengths > 0, settings,
            segment_lengths=nodes, terminal_rewards=terminals, is_terminal=is_terminal,
        )  # fmt: skip

    return jax.vmap(one)(values, nodes, scores, lengths, terminals, is_terminal)


def node_advantages(groups: Sequence[Group], settings: AdvantageSettings) -> list[list[np.ndarray]]:
    """Advantage of every node on every path, [D] float32 a response (Eq. 13, 15); a direct rollout is one node."""
    if not groups:
        return []
    terminal_rewards = [
        np.array([r.reward for r in group.responses], np.float32)
        if group.terminal_rewards is None
        else group.terminal_rewards
        for group in groups
    ]
    # Padded to few shapes, most often to one; padding is masked out, so the numbers do not depend on it.
    G = bucket(len(groups), 64)
    M = bucket(max(len(group.responses) for group in groups), 16)
    D = bucket(max(len(r.segment_lengths) for group in groups for r in group.responses), 16)
    X = bucket(max(map(len, terminal_rewards)), 64)
    values, nodes = np.zeros((G, M, D), np.float32), np.zeros((G, M, D), np.int32)
    scores, lengths = np.zeros((G, M), np.float32), np.zeros((G, M), np.int32)
    terminals, is_terminal = np.zeros((G, X), np.float32), np.zeros((G, X), bool)
    for g, group in enumerate(groups):
        terminals[g, : len(terminal_rewards[g])], is_terminal[g, : len(terminal_rewards[g])] = terminal_rewards[g], True
        for m, response in enumerate(group.responses):
            depth = len(response.segment_lengths)
            values[g, m, :depth], nodes[g, m, :depth] = response.node_values, response.segment_lengths
            scores[g, m], lengths[g, m] = response.reward, len(response.tokens)
    arrays = jax.device_put((values, nodes, scores, lengths, terminals, is_terminal))
    advantages = jax.device_get(_batched_advantages(*arrays, settings=settings))
    return [
        _against_siblings(group)
        if settings.level == "siblings" and group.terminal_rewards is not None
        else [advantages[g, m, : len(response.segment_lengths)] for m, response in enumerate(group.responses)]
        for g, group in enumerate(groups)
    ]


def _against_siblings(group: Group) -> list[np.ndarray]:
    """`sibling_advantages` of a tree; nodes are told by the tokens up to their ends."""
    depths = [len(response.segment_lengths) for response in group.responses]
    shape = len(depths), max(depths)
    nodes, log_probs, numbers = np.full(shape, -1), np.zeros(shape), dict[bytes, int]()
    for m, response in enumerate(group.responses):
        ends = np.cumsum(response.segment_lengths)
        for d, (begin, end) in enumerate(zip(ends - response.segment_lengths, ends)):
            nodes[m, d] = numbers.setdefault(response.tokens[:end].tobytes(), len(numbers))
            assert response.log_probs is not None  # paths of a tree were sampled
            log_probs[m, d] = response.log_probs[begin:end].sum()
    scores = np.array([response.reward for response in group.responses])
    assert group.terminal_rewards is not None  # a tree
    advantages = sibling_advantages(nodes, log_probs, scores, float(group.terminal_rewards.min()))
    return [row[:depth] for row, depth in zip(advantages, depths, strict=True)]


class Packed(NamedTuple):
    """The batch of one update.

    Attributes:
      batch: host arrays; the update places them.
      is_known: whether the sampler's log-probs are known of all tokens that are trained on (cached paths have none).
      micro_batch_rows: rows of the batch that take the place of the micro-batch asked for; 0 = all at once, or cut by
        tokens.
    """

    batch: Batch
    is_known: bool
    micro_batch_rows: int


def pack(
    groups: Sequence[Group],
    advantages: Sequence[Sequence[np.ndarray]],
    settings: PackSettings,
    loss: LossSettings,
    model: ModelConfig,
    *,
    max_groups: int = 0,
    num_devices: int = 1,
    micro_batch_rows: int = 0,
    micro_batch_tokens: int = 0,
) -> Packed:
    """One row a response, or trees that hold what responses have in common once, by `settings.trees`.

    Trees leave out the ends of responses whose tokens have no advantage, where nothing else in the loss asks for them.

    Args:
      advantages: of every node, by group and response; see `node_advantages`.
      loss: its aggregation is part of the sums of packed trees.
      model: what the work is counted for.
      max_groups: that an update may have; batches of trees have room for as many, so that shapes repeat.
    """
    paths = [
        Paths(
            group.prompt,
            [response.tokens for response in group.responses],
            [np.repeat(a, r.segment_lengths) for a, r in zip(group_advantages, group.responses, strict=True)],
            [response.log_probs for response in group.responses],
        )
        for group, group_advantages in zip(groups, advantages, strict=True)
    ]
    lengths = np.concatenate([some.lengths for some in paths])
    R, T = settings.min_rows, bucket(int(lengths.max()), settings.row_multiple)
    while len(lengths) > R:
        R *= 2
    trees = [token_tree(some, loss, T) for some in paths]
    is_known = not any(np.isnan(tree.sampler_log_probs[place]).any() for tree in trees for place in tree.places)
    whole = trees
    if not loss.kl_coefficient and not loss.entropy_coefficient:
        trees = [without_idle_ends(tree) for tree in trees]
    if settings.trees != "never" and max(map(len, trees)) <= (settings.max_tree_tokens or sys.maxsize):
        limit = micro_batch_tokens or micro_batch_rows * T
        sizes = [len(tree) for tree in trees]
        layout = choose_layout(
            sizes, settings.row_multiple, num_devices, limit,
            max_trees=max_groups, is_coarse=has_few_operations(model, sum(sizes)),
        )  # fmt: skip
        packed = pack_rows(trees, layout.rows, layout.num_rows, layout.length)
        if settings.trees == "always" or _pays(packed, layout, lengths, (R, T), model, num_devices, micro_batch_tokens):
            return Packed(packed, is_known, 0 if micro_batch_tokens else layout.micro_batch_rows)
    return Packed(_response_rows(paths, whole, R, T), is_known, micro_batch_rows)


def _pays(
    packed: PackedBatch, layout: Layout, lengths: np.ndarray, shape: tuple[int, int], model: ModelConfig,
    num_devices: int, micro_batch_tokens: int,
) -> bool:  # fmt: skip
    """Whether trees take less work than rows of one response each."""
    whole = np.zeros(shape[0], int)
    whole[: len(lengths)] = lengths
    index = np.broadcast_to(np.arange(shape[1]), shape)
    by_response = np.where(index < whole[:, None], whole[:, None], 0)

    def cost(ends: np.ndarray, positions: np.ndarray, lengths: np.ndarray) -> float:
        if not micro_batch_tokens:
            return update_cost(model, ends, positions)
        cuts = cut_by_tokens(lengths, ends.shape[1], micro_batch_tokens, num_devices)
        return sum(update_cost(model, *take_rows((ends, positions), cut)) for cut in cuts)

    ends, positions = np.asarray(packed.ends), np.asarray(packed.positions)
    if layout.micro_batch_rows:  # micro-batches of filling are skipped
        unit = num_devices * layout.micro_batch_rows
        is_filling = ends.max(axis=1) == 0
        computed = np.argsort(is_filling, kind="stable")[: -(-np.sum(~is_filling) // unit) * unit]
        ends, positions = ends[computed], positions[computed]
    return cost(ends, positions, ends.max(axis=1)) < MARGIN * cost(by_response, index, whole)


def _response_rows(all_paths: Sequence[Paths], trees: Sequence[TokenTree], num_rows: int, length: int) -> TokenBatch:
    """Rows of prompt and response, padded on the right; what the sampler said of a token comes from its tree."""
    shape = num_rows, length
    tokens, segment_ids, loss_mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool)
    token_advantages, sampled = np.zeros(shape, np.float32), np.full(shape, np.nan, np.float32)
    row = 0
    for paths, tree in zip(all_paths, trees, strict=True):
        start = len(paths.prompt)
        for response, advantage, place in zip(paths.responses, paths.advantages, tree.places, strict=True):
            end = start + len(response)
            tokens[row, :start], tokens[row, start:end] = paths.prompt, response
            segment_ids[row, :end] = 1
            loss_mask[row, start:end] = True
            token_advantages[row, start:end] = advantage
            sampled[row, start:end] = tree.sampler_log_probs[place]
            row += 1
    # Host arrays on purpose: the update places them.
    return TokenBatch(
        tokens, segment_ids, loss_mask, token_advantages,  # type: ignore[arg-type]
        old_log_probs=np.where(np.isnan(sampled), np.float32(0), sampled), sampler_log_probs=sampled,  # type: ignore[arg-type]
    )  # fmt: skip
