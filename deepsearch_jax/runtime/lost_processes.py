"""Tells errors of a run of several processes that say that another one is gone from the mistakes of this one."""

import re

import jax

# Status codes of what runs between processes. Not RESOURCE_EXHAUSTED (memory of this one) or INVALID_ARGUMENT (a bug).
_STATUS = re.compile(r"(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|UNKNOWN): ")


def tells_of_lost_process(error: BaseException) -> bool:
    """Whether an error says that another process of the run has ended or cannot be reached.

    A collective that failed has several classes, by where its result was waited for; all begin with the status.
    """
    return jax.process_count() > 1 and _STATUS.match(str(error)) is not None
