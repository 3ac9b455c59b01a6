"""The train state and the jitted steps that change it."""

from deepsearch_jax.training.cost import num_pairs, update_cost
from deepsearch_jax.training.optimizer import UpdateSettings, learning_rate, make_optimizer
from deepsearch_jax.training.packing import Paths, TokenTree, first_fit, pack_rows, token_tree
from deepsearch_jax.training.placement import gather, put
from deepsearch_jax.training.rows import check_rows, num_rows_that_fit, pad_rows
from deepsearch_jax.training.updates import (
    Batch,
    LogProbFn,
    TrainState,
    compute_log_probs,
    init_train_state,
    lower_update,
    model_inputs,
    num_row_shards,
    supervised_update,
    update,
)

__all__ = [
    "Batch",
    "LogProbFn",
    "Paths",
    "TokenTree",
    "TrainState",
    "UpdateSettings",
    "check_rows",
    "compute_log_probs",
    "first_fit",
    "gather",
    "init_train_state",
    "learning_rate",
    "lower_update",
    "make_optimizer",
    "model_inputs",
    "num_pairs",
    "num_row_shards",
    "num_rows_that_fit",
    "pack_rows",
    "pad_rows",
    "put",
    "supervised_update",
    "token_tree",
    "update",
    "update_cost",
]
