"""What a task says of one response."""

from typing import NamedTuple

CORRECT_FROM = 1.0  # a response with this score or more counts as correct


class Verdict(NamedTuple):
    """What a task says of one response.

    Attributes:
      score: in [0, 1]; 1 is correct.
      is_answered: whether the response holds an answer at all.
    """

    score: float
    is_answered: bool
