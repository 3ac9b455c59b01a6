"""Questions and answers as verl's parquet files keep them: chat messages, and lists of one."""

from collections.abc import Mapping, Sequence
from typing import Any


def question_of(value: Any, place: str) -> Any:
    """The text of the one user message where `value` is a list of chat messages; any other value as it is.

    Raises:
      ValueError: messages of other roles, or not exactly one of the user's.
    """
    if not _is_messages(value):
        return value
    roles = [message.get("role") for message in value]
    if "system" in roles:
        raise ValueError(
            f"{place}: the prompt has a system message; take it out of the file and give it once, with "
            "--config.task.math.prompt.system_prompt=TEXT"
        )
    if roles != ["user"]:
        raise ValueError(f"{place}: the prompt has messages of roles {roles}; expected one message, of the user")
    return value[0].get("content")


def answer_of(value: Any) -> Any:
    """The text in a list of one text; any other value as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) else value


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(message, Mapping) and "role" in message for message in value)
    )
