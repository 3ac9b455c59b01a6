"""The check of determinism finds what differs, and a part of it runs here; the rest is run by hand."""

import copy
import json
import sys

import pytest

from tests import determinism

ROWS = [
    {"kind": "filter", "step": 0, "success_rate": 0.1, "machine": {"cpu_seconds": 1.0}},
    {"kind": "train", "step": 1, "loss": 0.25, "alarms": [], "machine": {"cpu_seconds": 2.0}},
]


def test_rows_that_differ_in_the_machine_alone_are_equal():
    other = copy.deepcopy(ROWS)
    other[1]["machine"]["cpu_seconds"] = 3.0
    assert determinism.differences(ROWS, other) == []


def test_the_last_bit_a_name_and_a_row_are_differences():
    other = copy.deepcopy(ROWS)
    other[1]["loss"] = 0.25 + 2**-54
    assert determinism.differences(ROWS, other) == ["row 1 (train, step 1) loss: 0.25, 0.25000000000000006"]
    other = copy.deepcopy(ROWS)
    other[0]["new"] = None
    assert determinism.differences(ROWS, other) == ["row 0 (filter, step 0) new: None, None"]
    assert determinism.differences(ROWS, ROWS[:1]) == ["2 rows against 1"]


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["determinism", *arguments])
    code = determinism.main()
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow  # searches in other slots and on other devices are also in runtime/test_slots.py
def test_trees_are_the_same_on_one_device_and_on_eight(monkeypatch, capsys):
    monkeypatch.setattr(determinism, "WAYS", ())
    monkeypatch.setattr(
        determinism, "check_trees",
        lambda check=determinism.check_trees: check([{"num_devices": 8, "num_slots": 16, "reverse": True}]),
    )  # fmt: skip
    monkeypatch.setattr(determinism, "SEARCHES", {"eager": determinism.EAGER})
    code, found = run(monkeypatch, capsys, "--parts=trees")
    assert (code, found["equal"]) == (0, True)
    assert found["parts"] == {"trees": {"checks": 2, "different": 0}}  # of searches and of direct samples


def test_a_difference_ends_with_an_error(monkeypatch, capsys):
    miss = determinism.Check("trees", "eager", "11 problems", "other responses to p3", 1.0, 1.0)
    monkeypatch.setattr(determinism, "check_trees", lambda: iter([miss]))
    code, found = run(monkeypatch, capsys, "--parts=trees")
    assert (code, found["equal"]) == (1, False)
    assert found["parts"]["trees"] == {"checks": 1, "different": 1}


def test_unknown_parts_are_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, "--parts=trees,forests")
    assert "forests is not one of repeat, debug, trees" in capsys.readouterr().err
