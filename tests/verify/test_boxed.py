"""The authors' scorer, exactly: a small recorded sample always, the whole recording where the shared data is."""

import json
import pathlib

import pytest

from deepsearch_jax.verify import score_boxed
from deepsearch_jax.verify.boxed import REMOVE, REPLACE

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
SAMPLE = json.loads((DATA / "boxed_scores.json").read_text(encoding="utf-8"))["cases"]


def _check(case):
    got = score_boxed(case["solution_str"], case["ground_truth"])
    assert got == (case["score"], case["acc"], case["pred"], case["parsed_gt"])


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case["id"])
def test_recorded_sample(case):
    _check(case)


def test_whole_recording(shared_dir):
    recording = json.loads((shared_dir / "golden" / "answer_scoring.json").read_text(encoding="utf-8"))
    assert [list(pair) for pair in REPLACE] == recording["tables"]["replace"]
    assert list(REMOVE) == recording["tables"]["remove"]
    for case in recording["cases"]:
        _check(case)


def test_dollars_are_read_line_by_line():
    # By hand: on each line the first pair of dollars keeps its inside; lines are never joined.
    assert score_boxed("\\boxed{p$1$q\nr$2$s}", "12").pred == "1\n2"


def test_the_window_is_300_characters():
    box = "\\boxed{5}"
    assert score_boxed(box + "x" * (300 - len(box)), "5").acc
    assert not score_boxed(box + "x" * (301 - len(box)), "5").acc
