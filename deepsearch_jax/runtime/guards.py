"""When a run stops because its updates are not finite, and which batches it keeps (`docs/guards.md`)."""

import dataclasses

FAILED_BATCH = "failed_batch"  # directory in a workdir of the batch at which a run stopped


@dataclasses.dataclass(frozen=True)
class GuardSettings:
    """What happens to updates that are not finite; each one is skipped and counted in any case.

    Attributes:
      max_skipped_updates: such updates in a row after which the run stops and keeps the last batch.
      save_batch_at: training step whose batches are kept too, whatever they are; 0 = none. A kept batch is as large as
        a checkpoint.
    """

    max_skipped_updates: int = 5
    save_batch_at: int = 0

    def __post_init__(self) -> None:
        if self.max_skipped_updates < 1:
            raise ValueError(f"max_skipped_updates={self.max_skipped_updates} must be at least 1")
        if self.save_batch_at < 0:
            raise ValueError(f"save_batch_at={self.save_batch_at} must be a step, or 0 for none")


class TooManySkipped(RuntimeError):
    """Non-finite updates followed each other; the last batch is on disk."""
