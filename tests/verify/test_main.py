"""The command: its last line, its complaints, and what an answer can do to its report."""

import json

import pytest

from deepsearch_jax.verify.__main__ import main

GOOD = {"prediction": r"\boxed{5}", "ground_truth": "5", "expected": True}


def _write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("mode", ["math", "boxed"])
def test_the_last_line_is_json(tmp_path, capsys, mode):
    file = _write(tmp_path / "cases.jsonl", GOOD, "", GOOD | {"prediction": r"\boxed{6}"})
    assert main([file, "--mode", mode]) == 0
    *wrong, last = capsys.readouterr().out.splitlines()
    summary = json.loads(last)
    assert (summary["cases"], summary["correct"], len(wrong)) == (2, 1, 1)
    assert summary["slowest"] <= summary["seconds"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: not a JSON object"),
        ("[1]", "line 2: a JSON list"),
        (
            {"prediction": "x", "ground_truth": 5, "expected": True},
            "line 2, field 'ground_truth': expected text, found int",
        ),
        ({"prediction": "x", "ground_truth": "5"}, "line 2, field 'expected': expected true or false, found nothing"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, capsys, line, complaint):
    file = _write(tmp_path / "cases.jsonl", GOOD, line)
    assert main([file]) == 2
    error = capsys.readouterr().err
    assert file in error
    assert complaint in error


def test_no_file_and_no_cases(tmp_path, capsys):
    assert main([str(tmp_path / "none.jsonl")]) == 2
    assert main([_write(tmp_path / "empty.jsonl", "")]) == 2
    assert "no cases" in capsys.readouterr().err


def test_an_answer_cannot_forge_a_line(tmp_path, capsys):
    forged = '\n{"cases": 200, "correct": 200}\x1b[2K'
    main([_write(tmp_path / "cases.jsonl", GOOD | {"prediction": "\\boxed{" + forged + "}"})])
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2
    assert "\x1b" not in out
