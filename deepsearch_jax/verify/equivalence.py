"""Whether two untrusted answers say the same, for votes; decided at once, without a worker."""

from deepsearch_jax.verify.extract import last_complete_box
from deepsearch_jax.verify.judge import judge


def final_answer(response_text: str) -> str | None:
    """The content of the last complete box; None without one or with an empty one."""
    answer = last_complete_box(response_text)
    return answer if answer and answer.strip() else None


def same_answer(one: str, other: str) -> bool:
    """Equal as texts, structures or fractions; what only a symbolic check could tell counts as different."""
    return judge(one, other) is True
