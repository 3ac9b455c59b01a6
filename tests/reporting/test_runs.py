"""Reading runs: those that still go on, damaged files, names, and settings that differ."""

import pathlib

import pytest

from experiments.reporting.runs import (
    NOT_SET,
    changed_settings,
    differing_settings,
    load_runs,
    short_names,
    value_of,
)
from tests.reporting.rows import evaluation, train, two_rounds, write_run


def test_a_run_that_still_goes_on_is_read_up_to_its_last_whole_row(tmp_path):
    write_run(tmp_path / "run", two_rounds(), tail='{"kind": "train", "st')
    (run,) = load_runs([tmp_path / "run"])
    assert len(run.rows) == len(two_rounds())
    assert ["still being written" in note for note in run.notes] == [True]


def test_damaged_lines_are_left_out_and_named(tmp_path):
    folder = write_run(tmp_path / "run", [train(1)])
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b'not json\n[1, 2]\n{"kind": "train"}\n\xff\xfe\n')
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "eval", "step": 3, "pass_at_1": NaN}\n')
    (run,) = load_runs([folder])
    assert [row["step"] for row in run.rows] == [1, 3]
    assert value_of(run.rows[1], "pass_at_1") is None
    assert run.notes == ["4 lines of metrics.jsonl are damaged and left out: 2, 3, 4, 5"]


def test_missing_settings_are_a_note(tmp_path):
    folder = write_run(tmp_path / "run", [train(1)])
    (folder / "config.json").write_text("{")
    (folder / "versions.json").unlink()
    (run,) = load_runs([folder])
    assert run.notes == ["config.json is missing or damaged", "versions.json is missing or damaged"]
    assert run.setting("rounds.num_rounds", 5) == 5


def test_folders_without_a_run_are_refused_with_a_way_out(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        load_runs([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"holds no metrics\.jsonl; name the --workdir"):
        load_runs([tmp_path])
    write_run(tmp_path / "a", [train(1)])
    write_run(tmp_path / "b", [train(1)])
    with pytest.raises(ValueError, match="there are runs in it: a, b"):
        load_runs([tmp_path])
    with pytest.raises(ValueError, match="a is given twice"):
        load_runs([tmp_path / "a", tmp_path / "b" / ".." / "a"])
    with pytest.raises(ValueError, match="has no complete row yet"):
        load_runs([write_run(tmp_path / "c", [], tail="{")])
    with pytest.raises(ValueError, match="no run is given"):
        load_runs([])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/runs/a", "/runs/b"], ["a", "b"]),
        (["/runs/grpo/seed-0", "/runs/deepsearch/seed-0", "/x/other"], ["grpo/seed-0", "deepsearch/seed-0", "other"]),
        (["/runs/a"], ["a"]),
        (["/a", "/b/a"], ["//a", "b/a"]),
        (["/runs/x\n", "/runs/x\t"], [r"x\n", r"x\t"]),
        (["/runs/x\n", r"/runs/x\n"], [r"x\n (1)", r"x\n"]),
    ],
)
def test_names_are_short_and_different(paths, names):
    assert short_names([pathlib.Path(path) for path in paths]) == names


def test_names_cannot_turn_the_writing_or_move_the_cursor():
    assert short_names([pathlib.Path("/runs/a\x1b[2J\u202eb\ud800")]) == [r"a\x1b[2J\u202eb\ud800"]


@pytest.mark.parametrize("value", [None, True, "1", [1], float("nan"), float("inf"), 10**400, -1e300])
def test_what_is_no_finite_number_has_no_value(value):
    assert value_of({"kind": "train", "step": 1, "x": value, "machine": {"y": value}}, "x") is None
    assert value_of({"kind": "train", "step": 1, "machine": {"x": value}}, "x") is None


def test_values_come_from_the_machine_part_too():
    assert value_of({"machine": {"peak_memory_gib": 2}}, "peak_memory_gib") == 2.0
    assert value_of({"machine": 3}, "peak_memory_gib") is None


def test_settings_that_differ_are_told_by_name(tmp_path):
    one = {"seed": 1, "search": {"depth": 4, "names": ["a"]}, "same": {"x": 1}}
    other = {"seed": 2, "search": {"depth": 4, "names": ["b"]}, "same": {"x": 1}, "new": {"y": True}}
    runs = load_runs([
        write_run(tmp_path / "a", [evaluation(0, 0.1)], config=one),
        write_run(tmp_path / "b", [evaluation(0, 0.1)], config=other),
    ])  # fmt: skip
    assert differing_settings(runs) == {
        "new.y": [NOT_SET, "true"], "search.names": ['["a"]', '["b"]'], "seed": ["1", "2"],
    }  # fmt: skip
    assert changed_settings(runs[0], {"seed": 1, "search": {"depth": 3, "names": ("a",)}}) == {
        "same.x": (NOT_SET, "1"), "search.depth": ("3", "4"),
    }  # fmt: skip
