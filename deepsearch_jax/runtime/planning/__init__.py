"""What a run will need, before it runs: its programs are compiled ahead of time, for shapes alone."""

from deepsearch_jax.runtime.planning.architectures import ARCHITECTURES, planned_model
from deepsearch_jax.runtime.planning.chips import CHIPS, Chip, find_chip
from deepsearch_jax.runtime.planning.plan import Plan, make_plan
from deepsearch_jax.runtime.planning.report import explain, render, to_json

__all__ = [
    "ARCHITECTURES",
    "CHIPS",
    "Chip",
    "Plan",
    "explain",
    "find_chip",
    "make_plan",
    "planned_model",
    "render",
    "to_json",
]
