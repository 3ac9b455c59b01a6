"""How long the responses of a step are: right against wrong ones, how many were cut off, how deep trees ended."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from deepsearch_jax.runtime.responses import Group, Response
from deepsearch_jax.types import Outcome


def length_metrics(groups: Sequence[Group], eos_ids: Sequence[int], stop_strings: Sequence[str]) -> dict[str, Any]:
    """Lengths in tokens, end of sequence included; None where there is no such response.

    Args:
      eos_ids, stop_strings: what ends a response; see `is_truncated`.
    """
    responses = [response for group in groups for response in group.responses]
    right = [len(response.tokens) for response in responses if response.outcome == Outcome.CORRECT]
    wrong = [len(response.tokens) for response in responses if response.outcome != Outcome.CORRECT]
    depths = [len(response.segment_lengths) for response in responses if response.origin == "search"]
    cut_off = [is_truncated(response, eos_ids, stop_strings) for response in responses]
    return {
        **_summary("response_length", right + wrong),
        **_summary("correct_length", right),
        **_summary("wrong_length", wrong),
        "correct_to_wrong_length": float(np.mean(right) / np.mean(wrong)) if right and wrong else None,
        "truncated_share": float(np.mean(cut_off)) if cut_off else None,
        "terminal_depth": float(np.mean(depths)) if depths else None,
        "terminal_depth_max": max(depths, default=None),
    }


def is_truncated(response: Response, eos_ids: Sequence[int], stop_strings: Sequence[str]) -> bool:
    """Whether a response was cut off at the length or depth limit: it has no end of sequence and no stop string."""
    if len(response.tokens) and int(response.tokens[-1]) in eos_ids:
        return False
    return not any(text in response.text for text in stop_strings)


def _summary(name: str, lengths: list[int]) -> dict[str, Any]:
    """Mean under the name itself, median and maximum beside it."""
    if not lengths:
        return {name: None, f"{name}_median": None, f"{name}_max": None}
    return {name: float(np.mean(lengths)), f"{name}_median": float(np.median(lengths)), f"{name}_max": max(lengths)}
