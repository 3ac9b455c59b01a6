"""Metric rows: what is written can be read, a resumed run drops what its checkpoint does not know."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax.runtime.metrics import MACHINE_KEY, MetricsWriter, plain, read_rows


def test_rows_come_back_in_order_with_machine_values_apart(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    writer.write("train", 1, {"loss": jnp.float32(0.5), "count": np.int64(3)}, {"seconds": 1.5})
    writer.write("eval", 1, {"pass_at_1": 0.25, "by_source": {"x": np.float32(1)}}, {})
    writer.close()
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert rows[0] == {"kind": "train", "step": 1, "loss": 0.5, "count": 3, MACHINE_KEY: {"seconds": 1.5}}
    assert rows[1]["by_source"] == {"x": 1.0}
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_keeps_only_the_rows_of_its_checkpoint(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    for step in range(5):
        writer.write("train", step, {"loss": float(step)}, {})
    writer.close()
    again = MetricsWriter(tmp_path, 3)
    again.write("train", 3, {"loss": 30.0}, {})
    again.close()
    assert [row["loss"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0.0, 1.0, 2.0, 30.0]


def test_a_line_cut_by_a_kill_is_not_a_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 0}\n{"kind": "tra')
    assert len(read_rows(path)) == 1
    writer = MetricsWriter(tmp_path, 1)
    writer.write("train", 1, {}, {})
    writer.close()
    assert [row["step"] for row in read_rows(path)] == [0, 1]


def test_missing_rows_are_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="0 rows but the checkpoint was written after 2"):
        MetricsWriter(tmp_path, 2)


@pytest.mark.parametrize("byte", [b"\x00", b"\xff", b"\x0c", b"{"])
def test_a_damaged_row_is_named_and_the_file_left_as_it_is(tmp_path, byte):
    writer = MetricsWriter(tmp_path, 0)
    for step in range(3):
        writer.write("train", step, {}, {})
    writer.close()
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:7] + byte + lines[1][8:] + lines[2])
    before = path.read_bytes()
    for read in (lambda: read_rows(path), lambda: MetricsWriter(tmp_path, 3)):
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is damaged"):
            read()
    assert path.read_bytes() == before
    MetricsWriter(tmp_path, 1).close()  # rows that are dropped may be anything
    assert len(read_rows(path)) == 1


def test_numbers_json_has_no_word_for_become_null():
    assert plain({"a": float("nan"), "b": np.float32("inf"), "c": None, "d": "x", "e": True}) == {
        "a": None, "b": None, "c": None, "d": "x", "e": True,
    }  # fmt: skip
    assert json.dumps(plain([np.arange(3), (jnp.float32(2),)])) == "[[0, 1, 2], [2.0]]"
