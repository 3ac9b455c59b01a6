"""Suites say what they mean: names are checked, shipped ones build, choices are made on validation problems alone."""

import dataclasses
import json
import math

import pytest

from deepsearch_jax.config import differing_keys
from experiments.compare import results, testing
from experiments.compare.__main__ import main
from experiments.compare.cells import FINISHED, comparable, is_finished
from experiments.compare.results import choose_points, tuning_score
from experiments.compare.suite import (
    Method,
    Suite,
    final_cells,
    grid_cells,
    load_suite,
    seeded,
    settings_of,
    suite_in,
    write_suite,
)
from experiments.configs import quickstart
from experiments.presets import set_adaptive, set_best_first
from experiments.settings import all_settings
from experiments.suites.methods import ADAPTIVE, BEST_FIRST
from tests.compare.test_measure import eval_row, train_row, write_run
from tests.compare.tiny_suite import get_suite
from tests.conftest import REPOSITORY

TINY = get_suite()


@pytest.mark.parametrize("name", ["demo", "full", "ablations", "search", "costs"])
def test_every_cell_of_a_shipped_suite_has_valid_settings(name):
    suite = load_suite(name)
    chosen = {(s, m.name): point for s in suite.settings for m in suite.methods for point in suite.points(m)}
    names = set()
    for cell in [*grid_cells(suite), *final_cells(suite, chosen)]:
        if cell.seed == suite.seeds[0]:
            settings = settings_of(cell.config(None))
            assert settings.seed == settings.task.arithmetic.seed == cell.seed
            assert not settings.task.has_warm_start
            assert 0 < settings.evaluation.num_problems < settings.task.arithmetic.num_heldout_problems
            names.add(cell.name)
    assert len(names) >= len(suite.settings) * len(suite.methods)


def test_the_suite_of_costs_runs_the_points_that_the_full_suite_chose():
    figures = json.loads((REPOSITORY / "docs/results/full.json").read_text())["settings"]
    costs, full = load_suite("costs"), load_suite("full")
    assert costs.seeds == full.seeds
    assert [method.name for method in costs.methods] == [method.name for method in full.methods]
    for name in costs.settings:
        points = {method.name: figures[name]["methods"][method.name]["point"] for method in full.methods}
        there = final_cells(full, {(name, method): point for method, point in points.items()})
        here = final_cells(costs, {(name, method): {} for method in points})
        assert [cell.config(None).to_dict() for cell in here if cell.setting.name == name] == [
            cell.config(None).to_dict() for cell in there
        ]


@pytest.mark.parametrize("name", ["gym", "gsm8k"])
def test_long_suites_have_valid_settings(name, monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPSEARCH_MODEL_DIR", str(tmp_path))
    suite = load_suite(name)
    chosen = {(s, m.name): point for s in suite.settings for m in suite.methods for point in suite.points(m)}
    for cell in final_cells(suite, chosen):
        settings = settings_of(cell.config(None))
        assert settings.seed == cell.seed
        # A path as long as it may get fits several times.
        assert settings.search.max_nodes > 4 * settings.search.max_depth


def test_modules_beside_the_suites_are_none(tmp_path):
    with pytest.raises(ValueError, match="one of ablations, costs, demo, full, gsm8k, gym, search, starts, or give"):
        load_suite("methods")


@pytest.mark.parametrize("name", [name for name, setting in all_settings().items() if not setting.is_long])
def test_a_setting_starts_from_a_warm_start_of_its_own(name):
    setting = all_settings()[name]
    settings = settings_of(seeded(setting, 3))
    assert settings.task.has_warm_start
    # The cosine of the warm start ends where the warm start does.
    stages = settings.task.arithmetic.warm_start_stages
    steps = (
        settings.task.countdown.warm_start_steps
        if settings.task.name == "countdown"
        else sum(stage.num_steps for stage in stages)
    )
    assert settings.warm_start.decay_steps == steps > setting.average_last > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": ("sparsely",)}, "setting 'sparsely' of suite 'tiny' is not known; choose of sparse, "),
        ({"ours": "nobody"}, "ours='nobody' must be one of the distinct methods"),
        ({"overrides": {"optimizer.learning_rat": 1.0}}, "did you mean optimizer.learning_rate"),
        ({"levels": (0.5, 0.3)}, "must rise"),
        ({"test_samples": 3}, "test_samples=3 must be even"),
        ({"kind": "thawed"}, "kind='thawed' is not known"),
        ({"seeds": ()}, "must each hold a seed"),
        ({"methods": (Method("deepsearch", by_setting={"tiny": {"search.width": 1}}),)}, "'search.width' of suite"),
    ],
)
def test_mistakes_in_a_suite_are_told(changes, words):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(TINY, **changes)
    assert words in str(error.value)


def test_the_command_tells_mistakes_without_a_traceback(capsys, tmp_path):
    assert main(["--suite=nothing", f"--workdir={tmp_path}"]) == 2
    assert "suite 'nothing' is not known; choose one of ablations, costs, demo" in capsys.readouterr().err
    assert main(["--suite=demo", f"--workdir={tmp_path}", "--jobs=0"]) == 2
    assert "--jobs=0 must be at least 1" in capsys.readouterr().err
    assert main(["--report", str(tmp_path / "nowhere")]) == 2
    assert "holds no suite" in capsys.readouterr().err


def test_a_workdir_holds_one_suite(tmp_path):
    write_suite(tmp_path, "demo")
    write_suite(tmp_path, "demo")
    assert suite_in(tmp_path).name == "demo"
    with pytest.raises(ValueError, match="holds suite 'demo', not 'full'"):
        write_suite(tmp_path, "full")


def finish(cell, workdir, accuracies, tokens=100):
    """A finished run of a cell in which all eight validation problems have these accuracies after each step."""
    place = cell.directory(workdir)
    rows = [eval_row(0, [0] * 8)]
    for step, accuracy in enumerate(accuracies, start=1):
        rows += [train_row(step, tokens * step), eval_row(step, [round(4 * accuracy)] * 8)]
    write_run(place, rows)
    config = comparable(cell.config(None))
    config["evaluation"]["num_samples"] = 4
    (place / FINISHED).write_text(json.dumps({"config": config, "prompt_length": 6.0}))


def two_points(tmp_path, monkeypatch):
    grid = {"optimizer.learning_rate": (1e-3, 3e-3)}
    methods = (Method("deepsearch"), Method("grpo", grid=grid, is_baseline=True))
    suite = dataclasses.replace(TINY, methods=methods, levels=(0.5,), overrides={"evaluation.num_samples": 4})
    monkeypatch.setattr(testing, "read_test", lambda *a, **k: pytest.fail("a choice must not look at test problems"))
    return suite, grid_cells(suite)


def test_the_point_that_is_cheaper_on_validation_problems_is_chosen(tmp_path, monkeypatch):
    suite, cells = two_points(tmp_path, monkeypatch)
    assert [cell.point_name for cell in cells] == ["learning_rate=0.001", "learning_rate=0.003"]
    finish(cells[0], tmp_path, [0.25, 0.25, 1.0])  # ends higher, but is at .5 only after 200 + 100/3
    assert "grpo" not in [name for _, name in choose_points(suite, tmp_path)[0]]  # half a grid chooses nothing
    finish(cells[1], tmp_path, [0.5, 0.75, 0.75])
    chosen, table = choose_points(suite, tmp_path)
    assert chosen == {("tiny", "deepsearch"): {}, ("tiny", "grpo"): {"optimizer.learning_rate": 3e-3}}
    scores = {row["point"]["optimizer.learning_rate"]: row["score"] for row in table}
    assert scores[1e-3] == pytest.approx(math.log(200 + 100 / 3) - 1e-3 * 1.0)
    assert scores[3e-3] == pytest.approx(math.log(100) - 1e-3 * 0.75)


def test_what_never_gets_there_counts_twice_the_budget(tmp_path, monkeypatch):
    suite, cells = two_points(tmp_path, monkeypatch)
    finish(cells[0], tmp_path, [0.25, 0.25])
    run = results.read_run(cells[0].directory(tmp_path))
    assert tuning_score([run], suite, 250) == pytest.approx(math.log(500) - 1e-3 * 0.25)


def test_among_points_that_never_get_there_accuracy_decides(tmp_path, monkeypatch):
    suite, cells = two_points(tmp_path, monkeypatch)
    finish(cells[0], tmp_path, [0.0, 0.0])
    finish(cells[1], tmp_path, [0.25, 0.25], tokens=104)  # by chance a little more over its limit
    chosen, _ = choose_points(suite, tmp_path)
    assert chosen["tiny", "grpo"] == {"optimizer.learning_rate": 3e-3}


def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(tmp_path, monkeypatch):
    suite, (cell, _) = two_points(tmp_path, monkeypatch)
    assert not is_finished(cell, tmp_path)
    finish(cell, tmp_path, [0.25])
    assert is_finished(cell, tmp_path)
    other = Suite(**{**vars(suite), "overrides": {**suite.overrides, "optimizer.b2": 0.5}})
    with pytest.raises(ValueError, match=r"was run with other settings.*optimizer.b2: 0.99 -> 0.5"):
        is_finished(dataclasses.replace(cell, suite=other), tmp_path)


def test_report_of_unfinished_runs_says_what_is_missing(tmp_path, monkeypatch):
    suite, cells = two_points(tmp_path, monkeypatch)
    monkeypatch.setattr(testing, "read_test", lambda *a, **k: None)
    suite = dataclasses.replace(suite, seeds=(0, 1))
    for cell in cells:
        finish(cell, tmp_path, [0.5])
    chosen, _ = choose_points(suite, tmp_path)
    finish(final_cells(suite, chosen)[0], tmp_path, [1.0])
    found = results.collect(suite, tmp_path, draws=50)
    assert found["missing"] == ["tiny/deepsearch/default/seed-1", "tiny/grpo/learning_rate=0.001/seed-1"]
    # 50 tokens against 100: .5 of 1.0 after half a step of 100.
    (ratio,) = found["settings"]["tiny"]["ratios"]["generated_tokens"]
    assert ratio == {"level": 0.5, "baseline": "grpo", "ratio": (2.0, 2.0, 2.0)}


@pytest.mark.parametrize(("set_values", "of_suites"), [(set_adaptive, ADAPTIVE), (set_best_first, BEST_FIRST)])
def test_methods_of_the_suites_are_the_presets(set_values, of_suites):
    plain, preset, method = (quickstart.get_config("deepsearch") for _ in range(3))
    set_values(preset)
    method.update_from_flattened_dict(of_suites.overrides)
    assert differing_keys(preset.to_dict(), plain.to_dict())
    assert differing_keys(preset.to_dict(), method.to_dict()) == []
