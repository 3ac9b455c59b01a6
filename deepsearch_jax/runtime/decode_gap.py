"""How far the decode engine and the training forward are apart on the same tokens under the same policy."""

import dataclasses
from typing import Any

import numpy as np

from deepsearch_jax.training import Batch
from deepsearch_jax.types import PackedBatch


@dataclasses.dataclass
class DecodeTrainGap:
    """|log-prob by the decode engine - by the training forward| over trained tokens of which the first is known.

    Attributes:
      num_tokens: such tokens, each as often as it is trained on.
      total, largest: sum over these and maximum, nats.
    """

    num_tokens: float = 0.0
    total: float = 0.0
    largest: float = 0.0

    def add(self, log_probs: np.ndarray, batch: Batch) -> None:
        """Counts a batch [R, T] whose log-probs by the training forward are at hand."""
        count = np.asarray(batch.sums.num_paths if isinstance(batch, PackedBatch) else batch.loss_mask, np.float64)
        sampled = np.asarray(batch.sampler_log_probs)
        count = np.where(np.isnan(sampled), 0, count)
        gap = np.where(count > 0, np.abs(log_probs - sampled), 0)
        self.num_tokens += float(count.sum())
        self.total += float((gap * count).sum())
        self.largest = max(self.largest, float(gap.max(initial=0)))

    def add_measured(self, metrics: dict[str, Any]) -> None:
        """Counts what an update measured by its own forward pass; see `objective.reduce_loss`."""
        self.num_tokens += float(metrics["num_sampled"])
        self.total += float(metrics["sampler_gap_mean"]) * float(metrics["num_sampled"])
        self.largest = max(self.largest, float(metrics["sampler_gap_max"]))

    def metrics(self) -> dict[str, float | None]:
        """The largest and the mean; None where nothing is known."""
        if not self.num_tokens:
            return {"max_decode_train_gap": None, "mean_decode_train_gap": None}
        return {"max_decode_train_gap": self.largest, "mean_decode_train_gap": self.total / self.num_tokens}
