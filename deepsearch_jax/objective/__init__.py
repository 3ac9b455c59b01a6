"""The equations of the loss and nothing else: node values to advantages, log-probs and advantages to a loss."""

from deepsearch_jax.objective.advantages import (
    group_ids,
    has_signal,
    outcome_advantages,
    overlong_penalty,
    soft_clip_values,
    spread_over_tokens,
    token_advantages,
    tree_advantages,
)
from deepsearch_jax.objective.corrections import importance_weights, kl_estimate, sampler_gap
from deepsearch_jax.objective.settings import AdvantageSettings, LossSettings
from deepsearch_jax.objective.siblings import sibling_advantages
from deepsearch_jax.objective.terms import LossTerms, add_terms, divisor, reduce_loss, sum_over_axis
from deepsearch_jax.objective.tree_grpo import (
    clipped_surrogate,
    path_weights,
    shared_grpo_loss,
    supervised_loss,
    token_weights,
    tree_grpo_loss,
)

__all__ = [
    "AdvantageSettings",
    "LossSettings",
    "LossTerms",
    "add_terms",
    "clipped_surrogate",
    "divisor",
    "group_ids",
    "has_signal",
    "importance_weights",
    "kl_estimate",
    "outcome_advantages",
    "overlong_penalty",
    "path_weights",
    "reduce_loss",
    "sampler_gap",
    "shared_grpo_loss",
    "sibling_advantages",
    "soft_clip_values",
    "spread_over_tokens",
    "sum_over_axis",
    "supervised_loss",
    "token_advantages",
    "token_weights",
    "tree_advantages",
    "tree_grpo_loss",
]
