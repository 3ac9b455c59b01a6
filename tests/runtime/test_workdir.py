"""The working directory: one run at a time, one config."""

import errno
import json
import os
import pathlib

import pytest

from deepsearch_jax.config import setting_names
from deepsearch_jax.runtime import RunSettings
from deepsearch_jax.runtime.workdir import FREE_KEYS, Workdir, WorkdirError, explain_unwritable, write_json


def test_a_second_run_in_the_same_workdir_is_refused(tmp_path):
    first = Workdir(tmp_path / "run")
    with pytest.raises(ValueError, match="in use by another run"):
        Workdir(tmp_path / "run")
    first.close()
    Workdir(tmp_path / "run").close()


def test_a_file_system_without_locks_is_a_clear_error(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(ValueError, match=r"cannot be locked .* choose one on a file system with locks"):
        Workdir(tmp_path / "run")


def test_config_and_versions_are_written_down(tmp_path):
    place = Workdir(tmp_path)
    place.record_config({"seed": 1, "search": {"max_depth": 3, "names": ("a",)}})
    place.close()
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 1, "search": {"max_depth": 3, "names": ["a"]}}
    assert "jax" in json.loads((tmp_path / "versions.json").read_text())


def test_another_config_is_refused_by_its_keys(tmp_path):
    place = Workdir(tmp_path)
    place.check_config({"seed": 1})  # nothing to differ from yet
    place.record_config({"seed": 1, "search": {"max_depth": 3}, "rounds": {"num_rounds": 2}})
    with pytest.raises(ValueError, match=r"search\.max_depth: 3 -> 4") as error:
        place.check_config({"seed": 1, "search": {"max_depth": 4}, "rounds": {"num_rounds": 2}})
    assert "seed" not in str(error.value)
    place.close()


def test_a_run_may_be_made_longer(tmp_path):
    place = Workdir(tmp_path)
    place.record_config({"rounds": {"num_rounds": 2}, "checkpoint": {"keep": 1}, "mesh": {"fsdp": 2}, "num_devices": 8})
    place.check_config({"rounds": {"num_rounds": 4}, "checkpoint": {"keep": 2}, "mesh": {"fsdp": 1}, "num_devices": 0})
    place.close()


def test_what_may_change_is_the_name_of_a_setting():
    names = setting_names(RunSettings)
    for key in FREE_KEYS:
        assert any(name.startswith(key) for name in names), key


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 1, "sea')
    place = Workdir(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json is damaged .* restore it"):
        place.check_config({"seed": 1})
    place.close()


def test_a_workdir_without_the_right_to_write_is_a_clear_error(tmp_path):
    place = tmp_path / "run"
    place.mkdir(mode=0o555)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(parent.stat().st_mode | 0o555)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may write everything
    try:
        with pytest.raises(ValueError, match=r"cannot be used \(Permission denied\); give a writable one"):
            Workdir(place)
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_file_system_that_takes_nothing_more_is_explained(number):
    with (
        pytest.raises(WorkdirError, match=rf"workdir run .*{os.strerror(number)}.*start the same command again"),
        explain_unwritable(pathlib.Path("run")),
    ):
        raise OSError(number, os.strerror(number))
    with pytest.raises(FileNotFoundError), explain_unwritable(pathlib.Path("run")):
        raise FileNotFoundError(errno.ENOENT, "nothing to do with space")


def test_a_workdir_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be used"):
        Workdir(tmp_path / "file" / "run")


def test_two_processes_may_write_one_file(tmp_path, monkeypatch):
    path, replace = tmp_path / "a.json", os.replace

    def after_another_process(*names):
        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        write_json(path, "theirs")
        assert json.loads(path.read_text()) == "theirs"
        replace(*names)

    monkeypatch.setattr(os, "replace", after_another_process)
    write_json(path, "ours")
    assert json.loads(path.read_text()) == "ours"
    assert list(tmp_path.iterdir()) == [path]
