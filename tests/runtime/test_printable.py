"""What others wrote cannot pass for a line of ours: control characters, markup, turned text."""

import io
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from deepsearch_jax.runtime import printable
from deepsearch_jax.runtime.metrics import MetricsWriter, read_rows
from deepsearch_jax.runtime.panel import panel_lines
from deepsearch_jax.runtime.progress import Reporter
from deepsearch_jax.runtime.report import print_table
from experiments.command_line import complain
from tests.hostile.grammar import CONTROLS

FORGED = "x\nstep 9: reward 1.000\r\x1b[2K\x1b]0;t\x07\u202e\u2066\x85\u2028[red]q[/nothing]\ud800"


def _console():
    return Console(file=io.StringIO(), highlight=False, soft_wrap=True, width=200)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("π ≤ 五 é", "π ≤ 五 é"),
        ("a\nb\rc", r"a\nb\rc"),
        ("\x1b[2K", r"\x1b[2K"),
        ("\u202e", r"\u202e"),
        ("\u2028\x00\x9b", r"\u2028\x00\x9b"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_by_hand(text, shown):
    assert printable(text) == shown


@given(text=st.text(alphabet=st.characters()) | st.lists(st.sampled_from(CONTROLS)).map("".join))
def test_any_text_is_one_visible_line_that_can_be_encoded(text):
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


def test_a_line_of_a_run_stays_one_line():
    console = _console()
    Reporter(console).line(FORGED)
    out = console.file.getvalue()
    assert out.count("\n") == 1
    assert out[:-1].isprintable()
    assert "[red]q[/nothing]" in out


def test_the_panel_shows_what_it_is_told_as_it_is():
    reporter = Reporter(_console())
    with reporter.phase("search", total=2):
        reporter.advance(1, FORGED)
        lines = panel_lines(reporter._state, time.monotonic(), width=400, height=10)
        assert "[red]q[/nothing]" in reporter._state.detail
    assert all(line.plain.isprintable() for line in lines)


def test_a_source_of_problems_stays_in_its_row():
    numbers = {"pass_at_1": 0.5, "pass_at_1_low": 0.4, "pass_at_1_high": 0.6}
    row = {"kind": "eval", "step": 0, "num_problems": 2, "by_source": {FORGED: 0.5, "other": 0.25}, **numbers}
    console = _console()
    print_table(console, [row, row])
    lines = console.file.getvalue().splitlines()
    assert sum("step 9" in line for line in lines) == 1
    assert not any(line.lstrip().startswith("step 9") for line in lines)
    assert "\x1b" not in "".join(lines)


def test_a_mistake_cannot_forge_a_second_line(capsys):
    assert complain(f"bad id {FORGED}") == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: bad id x")
    assert second.startswith("  step 9: reward")  # indented: no line of ours is
    assert (first + second).isprintable()


def test_a_metrics_row_stays_one_row(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    writer.write("train", 1, {"by_source": {FORGED: 1.0}}, {})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert text.count("\n") == len(text.splitlines()) == 1
    assert text.isascii()
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert list(json.loads(json.dumps(row))["by_source"]) == [FORGED]
