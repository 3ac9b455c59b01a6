"""Answer extraction, equivalence of answers, and the worker pool that bounds what a check may cost. No jax."""

from deepsearch_jax.verify.boxed import BoxedScore, score_boxed
from deepsearch_jax.verify.equivalence import final_answer, same_answer
from deepsearch_jax.verify.gym import GymItem, GymPool, draw_items
from deepsearch_jax.verify.pool import Scorer, VerifierPool, WorkersUnavailable, make_scorer, score_math
from deepsearch_jax.verify.verdict import ScorerStats, Status, Verdict, VerifySettings

__all__ = [
    "BoxedScore",
    "GymItem",
    "GymPool",
    "Scorer",
    "ScorerStats",
    "Status",
    "Verdict",
    "VerifierPool",
    "VerifySettings",
    "WorkersUnavailable",
    "draw_items",
    "final_answer",
    "make_scorer",
    "same_answer",
    "score_boxed",
    "score_math",
]
