"""The train state and the jitted steps that change it."""

from deepsearch_jax.training.cost import num_pairs, update_cost
from deepsearch_jax.training.gradients import (
    Batch,
    LogProbFn,
    compute_log_probs,
    model_inputs,
    num_computed_tokens,
)
from deepsearch_jax.training.inspection import RowReport, by_layer, inspect_row
from deepsearch_jax.training.optimizer import UpdateSettings, learning_rate, make_optimizer
from deepsearch_jax.training.packing import Paths, TokenTree, first_fit, pack_rows, token_tree, without_idle_ends
from deepsearch_jax.training.placement import committed, gather, put
from deepsearch_jax.training.rows import Cut, check_rows, cut_by_tokens, num_rows_that_fit, pad_rows, take_rows
from deepsearch_jax.training.shards import num_row_shards
from deepsearch_jax.training.updates import TrainState, init_train_state, lower_update, supervised_update, update

__all__ = [
    "Batch",
    "Cut",
    "LogProbFn",
    "Paths",
    "RowReport",
    "TokenTree",
    "TrainState",
    "UpdateSettings",
    "by_layer",
    "check_rows",
    "committed",
    "compute_log_probs",
    "cut_by_tokens",
    "first_fit",
    "gather",
    "init_train_state",
    "inspect_row",
    "learning_rate",
    "lower_update",
    "make_optimizer",
    "model_inputs",
    "num_computed_tokens",
    "num_pairs",
    "num_row_shards",
    "num_rows_that_fit",
    "pack_rows",
    "pad_rows",
    "put",
    "supervised_update",
    "take_rows",
    "token_tree",
    "update",
    "update_cost",
    "without_idle_ends",
]
