"""Says when a training step looks ill: limits of its metrics, and for how many steps they were crossed. All is pure."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple


class AlarmStop(RuntimeError):
    """An alarm ended the run, as alarms.stop asks for; its state is saved."""


@dataclasses.dataclass(frozen=True)
class AlarmSettings:
    """Limits of the metrics of a training step; 0 switches one off. See docs/metrics.md for the metrics.

    Attributes:
      entropy_floor: nats; `entropy` below it.
      grad_norm_ceiling: `grad_norm` (before clipping) above it.
      clip_fraction_ceiling: share of tokens; `pg_clipfrac` above it.
      dual_clip_fraction_ceiling: share of tokens; `pg_clipfrac_lower` above it.
      mean_ratio_ceiling: `mean_ratio` above it; on policy it is 1.
      log_ratio_ceiling: nats; `max_abs_log_ratio` above it: one token whose probability changed by more than e to that.
      importance_mean_ceiling: `importance_weight_mean` above it.
      importance_max_ceiling: `importance_weight_max` above it.
      decode_train_gap_ceiling: nats; `max_decode_train_gap` above it.
      truncated_share_ceiling: share of responses; `truncated_share` above it.
      patience: steps in a row beyond a limit before its alarm is raised.
      stop: whether an alarm ends the run, saved, with a status that is not 0; the same command goes on from there.
    """

    entropy_floor: float = 0.0
    grad_norm_ceiling: float = 0.0
    clip_fraction_ceiling: float = 0.0
    dual_clip_fraction_ceiling: float = 0.0
    mean_ratio_ceiling: float = 0.0
    log_ratio_ceiling: float = 0.0
    importance_mean_ceiling: float = 0.0
    importance_max_ceiling: float = 0.0
    decode_train_gap_ceiling: float = 0.0
    truncated_share_ceiling: float = 0.0
    patience: int = 3
    stop: bool = False

    def __post_init__(self) -> None:
        for limit in self.limits:
            if not limit.value >= 0:
                raise ValueError(f"{limit.name}={limit.value} must be at least 0; 0 switches the alarm off")
        for name, value in (
            ("clip_fraction_ceiling", self.clip_fraction_ceiling),
            ("dual_clip_fraction_ceiling", self.dual_clip_fraction_ceiling),
            ("truncated_share_ceiling", self.truncated_share_ceiling),
        ):
            if value >= 1:
                raise ValueError(f"{name}={value} is a share that nothing exceeds; set it below 1, or 0 for no alarm")
        if self.patience < 1:
            raise ValueError(f"patience={self.patience} must be at least 1 step")
        if self.stop and not any(limit.value for limit in self.limits):
            raise ValueError(
                "stop=True, but no limit is set that could stop the run; set one, for example entropy_floor"
            )

    @property
    def limits(self) -> tuple["Limit", ...]:
        """All limits, those that are off too."""
        return (
            Limit("entropy_floor", "entropy", self.entropy_floor, is_floor=True),
            Limit("grad_norm_ceiling", "grad_norm", self.grad_norm_ceiling),
            Limit("clip_fraction_ceiling", "pg_clipfrac", self.clip_fraction_ceiling),
            Limit("dual_clip_fraction_ceiling", "pg_clipfrac_lower", self.dual_clip_fraction_ceiling),
            Limit("mean_ratio_ceiling", "mean_ratio", self.mean_ratio_ceiling),
            Limit("log_ratio_ceiling", "max_abs_log_ratio", self.log_ratio_ceiling),
            Limit("importance_mean_ceiling", "importance_weight_mean", self.importance_mean_ceiling),
            Limit("importance_max_ceiling", "importance_weight_max", self.importance_max_ceiling),
            Limit("decode_train_gap_ceiling", "max_decode_train_gap", self.decode_train_gap_ceiling),
            Limit("truncated_share_ceiling", "truncated_share", self.truncated_share_ceiling),
        )


class Limit(NamedTuple):
    """One limit: the setting's name, the metric it is about, its value (0 = off), and which side is ill."""

    name: str
    metric: str
    value: float
    is_floor: bool = False

    def is_crossed(self, found: float) -> bool:
        """Whether a value is on the ill side; NaN always is."""
        return not (found >= self.value if self.is_floor else found <= self.value)


class Alarm(NamedTuple):
    """A limit that was crossed for `steps` steps in a row, at last by the value `found`."""

    limit: Limit
    found: float
    steps: int

    def __str__(self) -> str:
        side = "below" if self.limit.is_floor else "above"
        return (
            f"{self.limit.metric} {self.found:.4g} is {side} alarms.{self.limit.name}={self.limit.value:g} "
            f"({self.steps} steps in a row)"
        )


def check_alarms(
    counts: Mapping[str, int], row: Mapping[str, Any], settings: AlarmSettings
) -> tuple[dict[str, int], list[Alarm]]:
    """What the metrics of one more step come to.

    Args:
      counts: steps in a row beyond each limit so far, by its name; what this function returned for the step before.
      row: metrics of the step; a limit whose metric is None (no update) keeps its count and raises nothing.
    Returns: the new counts, and the alarms of limits that have been crossed for `settings.patience` steps.
    """
    after, alarms = {}, []
    for limit in settings.limits:
        found, before = row[limit.metric], counts.get(limit.name, 0)
        if not limit.value:
            continue
        if found is None:
            steps = before
        else:
            steps = before + 1 if limit.is_crossed(found) else 0
            if steps >= settings.patience:
                alarms.append(Alarm(limit, found, steps))
        if steps:
            after[limit.name] = steps
    return after, alarms
