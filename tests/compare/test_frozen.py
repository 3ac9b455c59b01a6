"""Searches with a policy that stays as it is: figures from rows by hand, and a tiny suite in real processes."""

import dataclasses
import json

import jax
import pytest

from experiments.compare.frozen import collect_frozen, run_frozen
from experiments.compare.report import results_of
from experiments.compare.suite import Method, final_cells
from experiments.compare.tables import markdown
from tests.compare.tiny_suite import get_suite

FROZEN = dataclasses.replace(
    get_suite(), kind="frozen", seeds=(0, 1), methods=(Method("deepsearch"), Method("direct", {"method": "grpo",
    "advantage.level": "outcome"})),
)  # fmt: skip


def row(correct, distinct, tokens, seconds):
    return {"correct": correct, "distinct": distinct, "tokens": tokens, "cpu_seconds": seconds, "expansions": 5.0,
            "nodes": 9.0, "reward": 0.5, "depth": 2.0, "entropy": 0.1, "responses": 8}  # fmt: skip


def cells(suite):
    return final_cells(suite, {("tiny", method.name): {} for method in suite.methods})


def test_figures_by_hand(tmp_path):
    for cell in cells(FROZEN)[:1]:
        place = cell.directory(tmp_path)
        place.mkdir(parents=True)
        # Two problems, searched twice: 3 and 1 right ones in 500 and 300 tokens.
        rows = [row([2, 1], [1, 1], 500, 9.0), row([1, 0], [1, 0], 300, 0.5)]
        (place / "frozen.json").write_text(json.dumps({"rows": rows}))
    found = collect_frozen(FROZEN, tmp_path, cells(FROZEN), draws=50)["tiny"]["methods"]["deepsearch"]
    assert found["correct_per_1000"].value == pytest.approx(1000 * 4 / 800)
    assert found["distinct_per_1000"].value == pytest.approx(1000 * 3 / 800)
    assert found["solved_per_1000"].value == pytest.approx(1000 * 3 / 800)  # both of two problems, then one
    assert found["solved"].value == pytest.approx(3 / 4)  # of two problems, twice
    # Of the second search, which found its programs compiled: .5 seconds for two problems of five expansions.
    assert found["cpu_ms_per_problem"] == pytest.approx(250)
    assert found["cpu_ms_per_expansion"] == pytest.approx(50)


@pytest.mark.slow
def test_a_frozen_suite_runs(tmp_path):
    before, programs = jax.config.values["jax_compilation_cache_dir"], str(tmp_path / "programs")
    cached = dataclasses.replace(FROZEN, overrides={"compile_cache": programs})
    try:
        run_frozen(cells(FROZEN)[0], tmp_path, print)
        run_frozen(cells(cached)[1], tmp_path, print)  # with the start that is there
        assert jax.config.values["jax_compilation_cache_dir"] == programs
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    results = results_of(FROZEN, tmp_path, draws=50)
    methods = results["frozen"]["tiny"]["methods"]
    assert methods["deepsearch"]["expansions"] > 0 == methods["direct"]["expansions"]
    assert methods["direct"]["tokens"] > 0
    assert "| direct | " in markdown(results)
