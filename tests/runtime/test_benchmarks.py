"""Evaluation on whole sets: files by name, rows, going on after a stop, the table."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from deepsearch_jax.data.benchmarks import BENCHMARKS, benchmark_paths, label
from deepsearch_jax.data.problems import load_problems
from deepsearch_jax.policy import ModelConfig, init_params, load_pretrained, save_pretrained
from deepsearch_jax.runtime import BenchmarkSettings, evaluate_benchmarks
from deepsearch_jax.runtime.benchmark_report import PAPER, print_results, summarise, write_results
from deepsearch_jax.runtime.metrics import read_rows
from deepsearch_jax.runtime.progress import Reporter
from deepsearch_jax.runtime.rollout_settings import RolloutSettings
from deepsearch_jax.runtime.settings import ModelSettings
from deepsearch_jax.tree import SearchSettings
from tests.data_module.conftest import byte_directory  # noqa: F401 (a fixture)


@pytest.fixture
def policy_directory(byte_directory):  # noqa: F811
    """A random decoder over bytes, with its tokenizer."""
    model = ModelConfig.tiny(
        259, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=32,
        max_position_embeddings=4096, eos_ids=(257,), pad_id=258,
    )  # fmt: skip
    save_pretrained(byte_directory, model, init_params(model, jax.random.key(0)))
    return byte_directory


def settings_for(policy_directory, sets, **changes):
    settings = BenchmarkSettings(
        model=ModelSettings(path=str(policy_directory)), benchmarks=tuple(map(str, sets)), num_samples=3, max_length=12,
        rollout=RolloutSettings(num_slots=1, temperature=1.0, prompt_multiple=64), compile_cache="off", num_devices=1,
        search=SearchSettings(
            segment_length=4, max_depth=3, expansion_width=2, num_trajectories=4, capacity=25, token_budget=64
        ),
    )  # fmt: skip
    return dataclasses.replace(settings, **changes)


def evaluate(settings, workdir):
    output = io.StringIO()
    config = dataclasses.asdict(settings)
    return evaluate_benchmarks(settings, config, workdir, Reporter(Console(file=output, width=200))), output.getvalue()


@pytest.fixture
def problem_file(tmp_path):
    path = tmp_path / "sums.jsonl"
    rows = [{"id": f"p{i}", "question": f"{i}+{i}", "answer": str(2 * i), "source": "sums"} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_evaluation_goes_on_where_it_was_killed(policy_directory, problem_file, tmp_path):
    settings = settings_for(policy_directory, [problem_file])
    whole, _ = evaluate(settings, tmp_path / "whole")
    expected = [row for row in read_rows(tmp_path / "whole/samples/sums.jsonl") if row["kind"] == "problem"]
    assert [row["id"] for row in expected] == [f"p{i}" for i in range(6)]
    assert all(len(row["lengths"]) == 3 and len(row["texts"]) == 1 for row in expected)
    assert len({tuple(row["lengths"]) + tuple(row["texts"]) for row in expected}) > 1

    evaluate(settings, tmp_path / "killed")
    path = tmp_path / "killed/samples/sums.jsonl"
    content = path.read_text().splitlines(keepends=True)
    third = [number for number, line in enumerate(content) if '"problem"' in line][2]
    path.write_text("".join(content[:third]) + content[third][:20])  # killed while its row was written
    again, told = evaluate(settings, tmp_path / "killed")
    found = [row for row in read_rows(path) if row["kind"] == "problem"]
    assert "6 problems, 2 of them done" in told
    assert sorted(found, key=lambda row: row["id"]) == expected
    without = [{k: v for k, v in results["sums"].items() if k != "generated_tokens"} for results in (whole, again)]
    assert without[0] == without[1]


def test_samples_do_not_depend_on_the_slots(policy_directory, problem_file, tmp_path):
    settings = settings_for(policy_directory, [problem_file])
    wider = dataclasses.replace(settings, rollout=dataclasses.replace(settings.rollout, num_slots=4))
    rows = []
    for name, each in (("one", settings), ("four", wider)):
        evaluate(each, tmp_path / name)
        rows.append([r for r in read_rows(tmp_path / name / "samples/sums.jsonl") if r["kind"] == "problem"])
    assert rows[0] == rows[1]


def test_another_temperature_needs_another_workdir(policy_directory, problem_file, tmp_path):
    settings = settings_for(policy_directory, [problem_file], num_problems=1)
    evaluate(settings, tmp_path / "run")
    changed = dataclasses.replace(settings, rollout=dataclasses.replace(settings.rollout, temperature=0.5))
    with pytest.raises(ValueError, match=r"rollout\.temperature: 1.0 -> 0.5"):
        evaluate(changed, tmp_path / "run")


def sums(path, numbers, **changes):
    """A problem file of sums without ids, as many files are: ids then are FILE-ROW."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"question": f"{i}+1", "answer": str(i + 1)} | changes) + "\n" for i in numbers))
    return path


def test_samples_of_another_file_of_the_same_name_are_not_taken_for_ones_own(policy_directory, tmp_path):
    one, other = sums(tmp_path / "a/test.jsonl", range(3)), sums(tmp_path / "b/test.jsonl", range(100, 103))
    evaluate(settings_for(policy_directory, [one]), tmp_path / "run")
    with pytest.raises(ValueError, match=r"test\.jsonl .*other problems.*'test-0' \(the first of 3\).*another workdir"):
        evaluate(settings_for(policy_directory, [other]), tmp_path / "run")
    assert "3 of them done" in evaluate(settings_for(policy_directory, [one]), tmp_path / "run")[1]
    (tmp_path / "run/samples/test.jsonl").unlink()  # the way out
    found, _ = evaluate(settings_for(policy_directory, [other]), tmp_path / "run")
    fresh, _ = evaluate(settings_for(policy_directory, [other]), tmp_path / "new")
    assert found == fresh


def test_samples_are_refused_before_the_first_set_is_sampled(policy_directory, problem_file, tmp_path):
    path = sums(tmp_path / "a/test.jsonl", range(2))
    evaluate(settings_for(policy_directory, [path]), tmp_path / "run")
    sums(path, range(2), answer="7")
    with pytest.raises(ValueError, match="question or answer of 'test-0'"):
        evaluate(settings_for(policy_directory, [problem_file, path]), tmp_path / "run")
    assert not (tmp_path / "run/samples/sums.jsonl").exists()


def test_samples_of_other_weights_are_refused(policy_directory, problem_file, tmp_path):
    settings = settings_for(policy_directory, [problem_file], num_problems=2)
    evaluate(settings, tmp_path / "run")
    model, params = load_pretrained(policy_directory)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[3].mul(1.5)
    save_pretrained(policy_directory, model, params)
    with pytest.raises(ValueError, match=r"sums\.jsonl holds samples of other weights .* another workdir, or remove"):
        evaluate(settings, tmp_path / "run")


def test_samples_of_earlier_versions_are_refused(policy_directory, problem_file, tmp_path):
    settings = settings_for(policy_directory, [problem_file], num_problems=2)
    evaluate(settings, tmp_path / "run")
    path = tmp_path / "run/samples/sums.jsonl"
    rows = [{k: v for k, v in row.items() if k not in ("problem", "weights")} for row in read_rows(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="a version that did not note which problems and weights"):
        evaluate(settings, tmp_path / "run")


def test_a_set_may_grow_and_shrink(policy_directory, tmp_path):
    path = sums(tmp_path / "a/test.jsonl", range(2))
    evaluate(settings_for(policy_directory, [path]), tmp_path / "run")
    sums(path, range(5))
    grown, told = evaluate(settings_for(policy_directory, [path]), tmp_path / "run")
    assert "5 problems, 2 of them done" in told
    rows = read_rows(tmp_path / "run/samples/test.jsonl")
    assert [row["id"] for row in rows if row["kind"] == "problem"] == [f"test-{i}" for i in range(5)]
    sums(path, range(1))
    shrunk, told = evaluate(settings_for(policy_directory, [path]), tmp_path / "run")
    assert "1 problems, 1 of them done" in told
    assert (grown["test"]["problems"], shrunk["test"]["problems"]) == (5, 1)
    first = next(row for row in rows if row["kind"] == "problem")
    assert shrunk["test"]["length"] == pytest.approx(np.mean(first["lengths"]))
    assert shrunk["test"]["generated_tokens"] == sum(first["lengths"])  # one problem a batch


@pytest.mark.parametrize("labels", [False, True])
def test_a_search_spends_its_budget_whatever_it_sees(policy_directory, problem_file, tmp_path, labels):
    settings = settings_for(
        policy_directory, [problem_file], method="search", search_labels=labels, num_problems=2,
        rollout=RolloutSettings(num_slots=2, prompt_multiple=64, path_multiple=3),
    )  # fmt: skip
    results, _ = evaluate(settings, tmp_path / "run")
    found = results["sums"]
    assert found["problems"] == 2
    assert found["samples"] > 1
    # An iteration that begins below the budget may end above it, by its children's segments.
    assert 2 * 4 <= found["generated_tokens"] <= 2 * (64 + 2 * 4)


def test_a_model_is_asked_for(problem_file, tmp_path):
    settings = settings_for("", [problem_file])
    with pytest.raises(ValueError, match=r"model\.path is empty"):
        evaluate(settings, tmp_path / "run")


def test_the_numbers_of_a_set_by_hand():
    rows = [
        {"kind": "problem", "correct": [1, 0], "answers": ["4", "5"], "lengths": [3, 5], "truncated": [0, 1]},
        {"kind": "problem", "correct": [0, 0], "answers": [None, "1"], "lengths": [8, 8], "truncated": [1, 1]},
        {"kind": "batch", "generated_tokens": 24, "timeouts": 2, "errors": 1},
    ]
    found = summarise(rows)
    assert found["avg"]["value"] == pytest.approx(0.25)  # (1/2 + 0) / 2
    assert found["pass"] == {"1": pytest.approx(0.25), "2": pytest.approx(0.5)}
    assert found["majority"]["value"] == pytest.approx(0.25)  # a tie, and a wrong one
    assert (found["length"], found["truncated"], found["unanswered"]) == (6.0, 0.75, 0.25)
    assert (found["timeouts"], found["errors"], found["generated_tokens"]) == (2, 1, 24)


def test_the_table_has_the_papers_numbers(tmp_path):
    # The published averages: 61.70 and 62.95 (the second is that of its six numbers, the first of its own).
    assert np.mean([start for start, _ in PAPER.values()]) == pytest.approx(61.70, abs=0.01)
    assert np.mean([end for _, end in PAPER.values()]) == pytest.approx(62.95, abs=0.01)
    row = {"kind": "problem", "correct": [1], "answers": ["4"], "lengths": [3], "truncated": [0]}
    batch = {"kind": "batch", "generated_tokens": 3, "timeouts": 0, "errors": 0}
    write_results(tmp_path, {"aime24": summarise([row, batch]), "mine": summarise([row, batch])}, "direct")
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[4].startswith("| aime24 | 1 | 1 | 100.00 [100.0, 100.0] | @1 100.0 |")
    assert lines[4].endswith("| 51.77 | 53.65 |")
    assert lines[5].endswith("| 0 |  |  |")


def test_the_table_fits_into_a_terminal():
    row = {
        "kind": "problem",
        "correct": [1] * 32,
        "answers": ["4"] * 32,
        "lengths": [16384] * 32,
        "truncated": [1] * 32,
    }
    batch = {"kind": "batch", "generated_tokens": 3, "timeouts": 0, "errors": 0}
    output = io.StringIO()
    print_results(Console(file=output, width=80), {"olympiadbench": summarise([row, batch])})
    (line,) = [line for line in output.getvalue().splitlines() if "olympiadbench" in line]
    cells = ["olympiadbench", "100.00", "[100.0,", "100.0]", "@32", "100.0", "100.00", "16384", "100.0", "%"]
    assert line.split() == [*cells, "64.69", "65.72"]


def test_all_named_sets_load(shared_dir):
    sizes = {name: len(load_problems(benchmark_paths(name, str(shared_dir / "data")))) for name in BENCHMARKS}
    assert sizes == {
        "aime24": 30, "aime25": 30, "amc23": 40, "math500": 500, "minerva": 272, "olympiadbench": 675, "gsm8k": 1319,
    }  # fmt: skip


def test_one_problem_of_each_set_runs_end_to_end(policy_directory, shared_dir, tmp_path):
    settings = settings_for(
        policy_directory, BENCHMARKS, data=str(shared_dir / "data"), num_problems=1, num_samples=2, max_length=6,
        rollout=RolloutSettings(num_slots=1, prompt_multiple=1024),
    )  # fmt: skip
    results, told = evaluate(settings, tmp_path / "run")
    assert list(results) == list(BENCHMARKS)
    assert all(found["problems"] == 1 and found["samples"] == 2 for found in results.values())
    assert "DeepSearch" not in told
    assert "53.65" in told
    assert json.loads((tmp_path / "run/results.json").read_text())["sets"] == results


@pytest.mark.parametrize(
    ("name", "words"), [("aime26", "aime26.*choose from aime24"), ("missing.jsonl", "missing.jsonl does not exist")]
)
def test_an_unknown_set_is_named(name, words):
    with pytest.raises(ValueError, match=words):
        load_problems(benchmark_paths(name, "."))


def test_names_of_result_files():
    assert label("hf:openai/gsm8k:main/test*") == "gsm8k"
    assert label("data/eval/aime24.jsonl.gz") == "aime24"
    with pytest.raises(ValueError, match="two sets into one file"):
        BenchmarkSettings(benchmarks=("a/x.jsonl", "b/x.jsonl"))
