"""Test problems: what is there is taken if it is of the cell that asks, and sampled anew if it is not."""

import dataclasses
import json

import pytest

from experiments.compare import testing
from experiments.compare.suite import Cell
from tests.compare.tiny_suite import get_suite

TINY = get_suite()  # twelve held-out problems, eight of them for validation, four test samples
RATES = (1e-3, 3e-3)


def cell(rate=RATES[0], suite=TINY, **changes):
    setting = dataclasses.replace(suite.setting("tiny"), **changes)
    return Cell(suite, setting, suite.method("grpo"), (("optimizer.learning_rate", rate),), 0)


def write(workdir, of, *, before=False, samples=4, problems=4, **more):
    """A test file as versions before this one wrote it."""
    names = ("selection", "1", "0.5", "0") if before else ("1", "0.5", "0")
    counts = {n: {"samples": 1 if n == "0" else samples, "correct": [1] * problems} for n in names}
    path = testing.test_file(workdir, "tiny", testing.START if before else "grpo", 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"sources": ["1"] * problems, "point": of.point_name, "counts": counts, **more}))
    return path


class Asked(Exception):
    pass


@pytest.fixture(autouse=True)
def no_sampling(monkeypatch):
    """Whoever samples needs the start first."""

    def make_start(*arguments):
        raise Asked

    monkeypatch.setattr(testing, "make_start", make_start)


def is_sampled_anew(of, workdir, *, before=False):
    told = []
    try:
        testing.sample_test_set(of, workdir, told.append, before=before)
    except Asked:
        assert "written anew" in told[0]
        assert testing.read_test(of, workdir, before=before) is None
        return True
    assert told == []
    assert testing.read_test(of, workdir, before=before)["counts"]
    return False


@pytest.mark.parametrize("before", [False, True])
def test_files_of_earlier_versions_stay(tmp_path, before):
    write(tmp_path, cell(), before=before)
    assert not is_sampled_anew(cell(), tmp_path, before=before)


def test_another_grid_point_is_sampled_anew(tmp_path):
    write(tmp_path, cell(RATES[0]))
    assert is_sampled_anew(cell(RATES[1]), tmp_path)


def test_the_start_is_the_same_for_all_grid_points(tmp_path):
    write(tmp_path, cell(RATES[0]), before=True)
    assert not is_sampled_anew(cell(RATES[1]), tmp_path, before=True)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("changes", [{"samples": 2}, {"problems": 3}, {"problems": 5}])
def test_other_numbers_are_sampled_anew(tmp_path, before, changes):
    write(tmp_path, cell(), before=before, **changes)
    assert is_sampled_anew(cell(), tmp_path, before=before)


def test_fewer_test_problems_are_asked_for(tmp_path):
    write(tmp_path, cell())
    assert is_sampled_anew(cell(num_test=3), tmp_path)
    assert not is_sampled_anew(cell(num_test=9), tmp_path)  # there are no more than four


def of_files(num_test):
    """A cell whose task alone knows how many problems its files hold."""

    def build():
        config = TINY.setting("tiny").build()
        config.task.name = "math"
        return config

    return cell(build=build, num_test=num_test)


def test_problem_files_that_hold_fewer_than_are_asked_for(tmp_path):
    write(tmp_path, cell(), num_test=64)
    assert not is_sampled_anew(of_files(64), tmp_path)
    assert is_sampled_anew(of_files(128), tmp_path)
    write(tmp_path, cell(), problems=64)
    assert not is_sampled_anew(of_files(64), tmp_path)
    assert is_sampled_anew(of_files(128), tmp_path)
