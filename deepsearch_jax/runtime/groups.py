"""From groups of responses to the padded rows of an update: drop what teaches nothing, compute advantages, pack."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from deepsearch_jax.data.degenerate import DegenerateSettings, is_degenerate
from deepsearch_jax.objective import AdvantageSettings, tree_advantages
from deepsearch_jax.runtime.rollouts import Group, bucket
from deepsearch_jax.types import Outcome, TokenBatch


@dataclasses.dataclass(frozen=True)
class PackSettings:
    """Shapes of the training rows.

    Attributes:
      row_multiple: rows are padded to a multiple of this many tokens; each length compiles once.
      min_rows: the number of rows is padded to this times a power of two, so that few shapes are compiled; a multiple
        of optimizer.micro_batch_rows times the number of devices.
    """

    row_multiple: int = 64
    min_rows: int = 8

    def __post_init__(self) -> None:
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
    # Padded to few shapes; padding is masked out, so the numbers do not depend on it.
    G = bucket(len(groups), 1)
    M = bucket(max(len(group.responses) for group in groups), 1)
    D = bucket(max(len(r.segment_lengths) for group in groups for r in group.responses), 1)
    X = bucket(max(map(len, terminal_rewards)), 1)
    values, nodes = np.zeros((G, M, D), np.float32), np.zeros((G, M, D), np.int32)
    scores, lengths = np.zeros((G, M), np.float32), np.zeros((G, M), np.int32)
    terminals, is_terminal = np.zeros((G, X), np.float32), np.zeros((G, X), bool)
    for g, group in enumerate(groups):
        terminals[g, : len(terminal_rewards[g])], is_terminal[g, : len(terminal_rewards[g])] = terminal_rewards[g], True
        for m, response in enumerate(group.responses):
            depth = len(response.segment_lengths)
            values[g, m, :depth], nodes[g, m, :depth] = response.node_values, response.segment_lengths
            scores[g, m], lengths[g, m] = response.reward, len(response.tokens)
    advantages = np.asarray(
        _batched_advantages(values, nodes, scores, lengths, terminals, is_terminal, settings=settings)
    )
    return [
        [advantages[g, m, : len(response.segment_lengths)] for m, response in enumerate(group.responses)]
        for g, group in enumerate(groups)
    ]


def pack(
    groups: Sequence[Group], advantages: Sequence[Sequence[np.ndarray]], settings: PackSettings
) -> tuple[TokenBatch, bool]:
    """Rows of prompt and response, padded on the right.

    Returns:
      the batch, in host arrays, and whether all old log-probs are known (cached paths have none).
    """
    rows = [
        (group.prompt, response, np.repeat(advantage, response.segment_lengths))
        for group, group_advantages in zip(groups, advantages, strict=True)
        for response, advantage in zip(group.responses, group_advantages, strict=True)
    ]
    R = settings.min_rows
    while len(rows) > R:
        R *= 2
    T = bucket(max(len(prompt) + len(response.tokens) for prompt, response, _ in rows), settings.row_multiple)
    tokens, segment_ids = np.zeros((R, T), np.int32), np.zeros((R, T), np.int32)
    loss_mask = np.zeros((R, T), bool)
    token_advantages, old_log_probs = np.zeros((R, T), np.float32), np.zeros((R, T), np.float32)
    is_known = True
    for r, (prompt, response, advantage) in enumerate(rows):
        start, end = len(prompt), len(prompt) + len(response.tokens)
        tokens[r, :start], tokens[r, start:end] = prompt, response.tokens
        segment_ids[r, :end] = 1
        loss_mask[r, start:end] = True
        token_advantages[r, start:end] = advantage
        if response.log_probs is None:
            is_known = False
        else:
            old_log_probs[r, start:end] = response.log_probs
    # Host arrays on purpose: the update places them.
    return TokenBatch(tokens, segment_ids, loss_mask, token_advantages, old_log_probs), is_known  # type: ignore[arg-type]
