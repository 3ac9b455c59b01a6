"""AdamW with warm-up, global-norm clipping and the settings of an update (DeepSearch, arXiv 2509.25454, appendix A)."""

import dataclasses

import optax

from deepsearch_jax.training.moments import STATE_DTYPES, scale_by_small_adam

SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
class UpdateSettings:
    """The optimizer, and how a batch is cut into pieces that fit."""

    learning_rate: float = 1e-6  # after the warm-up
    warmup_steps: int = 10  # update n of the first warmup_steps uses n / warmup_steps of the rate; 0 = none
    schedule: str = "constant"  # "constant" or "cosine" after the warm-up
    decay_steps: int = 0  # updates after the warm-up in which "cosine" falls; only read by it
    final_rate_share: float = 0.1  # where "cosine" ends, as a share of learning_rate
    weight_decay: float = 0.1  # decoupled, on every parameter; per update the rate times this of a weight is lost
    b1: float = 0.9  # decay of the mean of gradients
    b2: float = 0.999  # decay of the mean of squared gradients
    eps: float = 1e-8  # added to the root of that mean
    max_grad_norm: float = 1.0  # longer gradients are scaled down to this global norm; 0 = never
    # Of the two moments: "int8" takes 2 bytes a weight instead of 8, "bfloat16" 4; see `training.moments`.
    state_dtype: str = "float32"
    micro_batch_rows: int = 0  # rows of one forward and backward pass on one device (memory); 0 = all at once
    # Tokens of one pass on one device, padding included: rows are sorted by length, short ones go many at a time. In
    # place of micro_batch_rows; 0 = off.
    micro_batch_tokens: int = 0
    on_policy: bool = False  # True: ratios against the current policy itself, exactly 1; old_log_probs are not read

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} is not known; choose one of {', '.join(SCHEDULES)}")
        if self.schedule == "cosine" and self.decay_steps < 1:
            raise ValueError(f"decay_steps={self.decay_steps} must be the number of updates the cosine falls over")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm", "final_rate_share", "micro_batch_rows",
                     "micro_batch_tokens"):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if self.micro_batch_rows and self.micro_batch_tokens:
            raise ValueError(
                f"micro_batch_rows={self.micro_batch_rows} and micro_batch_tokens={self.micro_batch_tokens} cut a "
                "batch in two ways; set one of them to 0"
            )
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps} must be positive")
        if self.state_dtype not in STATE_DTYPES:
            raise ValueError(f"state_dtype={self.state_dtype!r} is not known; choose one of {', '.join(STATE_DTYPES)}")


def learning_rate(settings: UpdateSettings) -> optax.Schedule:
    """The rate of the next update as a function of the number of updates done."""
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if settings.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, settings.decay_steps, settings.final_rate_share)
    else:
        after = optax.constant_schedule(peak)
    if warmup == 0:
        return after
    # From peak / warmup and not from 0: an update at rate 0 would cost a batch and change nothing.
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(settings: UpdateSettings) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW; "float32" moments have the dtype of the parameters."""
    rate, moments = learning_rate(settings), {"b1": settings.b1, "b2": settings.b2, "eps": settings.eps}
    if settings.state_dtype == "float32":
        adamw = optax.adamw(rate, **moments, weight_decay=settings.weight_decay)
    else:
        adamw = optax.chain(
            scale_by_small_adam(**moments, state_dtype=settings.state_dtype),
            optax.add_decayed_weights(settings.weight_decay),
            optax.scale_by_learning_rate(rate),
        )
    # Without clipping the state keeps its form: a run may go on with another norm, and a warm start has its own.
    clip = optax.clip_by_global_norm(settings.max_grad_norm) if settings.max_grad_norm else optax.identity()
    return optax.chain(clip, adamw)
