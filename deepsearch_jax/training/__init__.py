"""The train state and the jitted steps that change it."""

from deepsearch_jax.training.optimizer import UpdateSettings, learning_rate, make_optimizer
from deepsearch_jax.training.placement import gather, put
from deepsearch_jax.training.rows import check_rows, num_rows_that_fit, pad_rows
from deepsearch_jax.training.updates import (
    LogProbFn,
    TrainState,
    compute_log_probs,
    init_train_state,
    num_row_shards,
    supervised_update,
    update,
)

__all__ = [
    "LogProbFn",
    "TrainState",
    "UpdateSettings",
    "check_rows",
    "compute_log_probs",
    "gather",
    "init_train_state",
    "learning_rate",
    "make_optimizer",
    "num_row_shards",
    "num_rows_that_fit",
    "pad_rows",
    "put",
    "supervised_update",
    "update",
]
