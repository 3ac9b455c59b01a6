"""The page over several suites: from workdirs, or from the figures that an earlier page left."""

import json
import shutil

import pytest

from experiments.compare import testing
from experiments.compare.cells import is_finished
from experiments.compare.report import write_page
from experiments.compare.results import choose_points
from experiments.compare.suite import final_cells
from tests.compare.test_suite import finish, two_points


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A finished suite of two methods, one of them tuned over two points."""
    path = tmp_path / "finished"
    suite, cells = two_points(path, monkeypatch)
    monkeypatch.setattr(testing, "read_test", lambda *a, **k: None)
    monkeypatch.setattr("experiments.compare.report.suite_in", lambda _: suite)
    for cell in cells:
        finish(cell, path, [0.5])
    for cell in final_cells(suite, choose_points(suite, path)[0]):
        if not is_finished(cell, path):
            finish(cell, path, [1.0])
    return path


def test_a_page_from_figures_is_the_page_from_the_runs(tmp_path, workdir):
    write_page([workdir], tmp_path / "results.md")
    (figures,) = (tmp_path / "results").glob("*.json")
    kept = tmp_path / "kept.json"
    figures.rename(kept)
    shutil.rmtree(workdir)
    write_page([kept], tmp_path / "again" / "results.md")
    text = (tmp_path / "again" / "results.md").read_text()
    assert text == (tmp_path / "results.md").read_text()
    # One seed is at .5 after its step of 100 tokens, the other at 1: half a step.
    assert "| grpo (learning_rate 0.001) | 0.5 | 2/2 | 0.75 [0.5, 1] | 75 [50, 100] |" in text
    assert json.loads((tmp_path / "again" / "results" / figures.name).read_text()) == json.loads(kept.read_text())


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", r"is not JSON .*results\.json"), ('{"name": 1}', "holds no figures"), ("[]", "holds no figures")],
)
def test_a_file_that_holds_no_figures_is_named(tmp_path, content, message):
    (tmp_path / "wrong.json").write_text(content)
    with pytest.raises(ValueError, match=rf"wrong\.json {message}"):
        write_page([tmp_path / "wrong.json"], tmp_path / "results.md")
    assert not (tmp_path / "results.md").exists()


def test_two_sources_of_one_suite_are_refused(tmp_path, workdir):
    write_page([workdir], tmp_path / "results.md")
    (figures,) = (tmp_path / "results").glob("*.json")
    with pytest.raises(ValueError, match=r"is given twice; give one"):
        write_page([workdir, figures], tmp_path / "results.md")


def test_a_directory_without_a_suite_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no suite \(no suite\.json\)"):
        write_page([tmp_path], tmp_path / "results.md")
