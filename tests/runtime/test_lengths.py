"""Lengths of responses by hand."""

import numpy as np

from deepsearch_jax.data.problems import Problem
from deepsearch_jax.runtime.lengths import is_truncated, length_metrics
from deepsearch_jax.runtime.responses import Group, Response
from deepsearch_jax.types import Outcome

EOS, PROBLEM = 9, Problem(key=1, id="a", question="q", answer="1")


def response(segments, outcome, ends=True, origin="search", text=""):
    tokens = np.ones(sum(segments), np.int32)
    tokens[-1] = EOS if ends else 1
    values = np.zeros(len(segments), np.float32)
    return Response(tokens, np.array(segments, np.int32), values, None, 1.0, outcome, text, origin)


def test_lengths_of_right_and_wrong_responses_by_hand():
    first = Group(
        PROBLEM, [5], [response((4, 2), Outcome.CORRECT), response((4, 4, 4), Outcome.INCOMPLETE, ends=False)]
    )
    second = Group(PROBLEM, [5], [response((2,), Outcome.CORRECT, origin="direct"), response((4,), Outcome.INCORRECT)])
    third = Group(PROBLEM, [5], [response((1,), Outcome.CORRECT, origin="cache")])
    assert length_metrics([first, second, third], [EOS], []) == {
        "response_length": 5.0,  # 6 12 2 4 1
        "response_length_median": 4.0,
        "response_length_max": 12,
        "correct_length": 3.0,  # 6 2 1
        "correct_length_median": 2.0,
        "correct_length_max": 6,
        "wrong_length": 8.0,  # 12 4
        "wrong_length_median": 8.0,
        "wrong_length_max": 12,
        "correct_to_wrong_length": 3 / 8,
        "truncated_share": 0.2,
        "terminal_depth": 2.0,  # of the searched ones: 2 3 1
        "terminal_depth_max": 3,
    }


def test_what_is_not_there_is_none():
    metrics = length_metrics([Group(PROBLEM, [5], [response((3,), Outcome.CORRECT, origin="direct")])], [EOS], [])
    assert metrics["correct_length"] == 3
    for name in ("wrong_length", "wrong_length_max", "correct_to_wrong_length", "terminal_depth", "terminal_depth_max"):
        assert metrics[name] is None
    assert set(length_metrics([], [EOS], []).values()) == {None}


def test_a_stop_string_ends_a_response_as_an_end_of_sequence_does():
    cut = response((3,), Outcome.INCORRECT, ends=False, text="so 4 END")
    assert is_truncated(cut, [EOS], [])
    assert is_truncated(cut, [EOS], ["STOP"])
    assert not is_truncated(cut, [EOS], ["END", "STOP"])
    assert not is_truncated(response((3,), Outcome.INCORRECT), [7, EOS], [])
