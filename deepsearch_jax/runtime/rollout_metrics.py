"""The numbers of a training step that come from its rollouts."""

from typing import Any

import numpy as np

from deepsearch_jax.runtime.rollout_step import StepRollouts
from deepsearch_jax.runtime.slots import SlotStatistics
from deepsearch_jax.types import Outcome


def rollout_metrics(rollouts: StepRollouts) -> dict[str, Any]:
    """What the rollouts of one step were like: rewards, trees and the use of the slots (`docs/metrics.md`)."""
    groups, statistics = rollouts.groups, rollouts.statistics
    responses = [response for group in groups for response in group.responses]
    trees = max(statistics.trees, 1)
    return {
        "solved_share": _mean([group.num_correct > 0 for group in groups]),
        "reward": _mean([response.reward for response in responses]),
        "correct_share": _mean([response.outcome == Outcome.CORRECT for response in responses]),
        "incomplete_share": _mean([response.outcome == Outcome.INCOMPLETE for response in responses]),
        "responses": len(responses),
        "cached_share": rollouts.num_cached / max(len(groups), 1),
        "trees": statistics.trees,
        "tree_solved_share": statistics.solved / trees,
        "tree_expansions": statistics.expansions / trees,
        "tree_nodes": statistics.nodes / trees,
        "tree_depth": statistics.depth / trees,
        "tree_exhausted": statistics.exhausted,
        "tree_out_of_budget": statistics.out_of_budget,
        **_slot_metrics(statistics.slots),
    }


def _slot_metrics(slots: SlotStatistics) -> dict[str, Any]:
    """How well the searches used the device; None where there was no search."""
    tokens = slots.generated_tokens
    return {
        "encoded_per_generated": (slots.fed_tokens + slots.recomputed_tokens) / tokens if tokens else None,
        "recomputed_tokens": slots.recomputed_tokens,
        "page_evictions": slots.evictions,
        "peak_pages": slots.peak_pages,
        "busy_slot_share": slots.busy_slots / slots.slot_steps if slots.slot_steps else None,
        "sampling_entropy": slots.entropy / tokens if tokens and slots.entropy else None,
    }


def _mean(values: list[Any]) -> float:
    return float(np.mean(values)) if values else 0.0
