"""Files that change under a checkpoint: the one before it or a clear error, never other weights."""

import errno
import hashlib
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax.runtime.checkpoints import CheckpointError, Checkpoints, CheckpointSettings

SETTINGS = CheckpointSettings(keep=3)
# Orbax writes these after the manifest; a change that leaves them readable changes nothing that is restored.
WITHOUT_STATE = ("commit_success.txt", "_CHECKPOINT_METADATA")


def state(number):
    """Arrays of several files and kinds, others for every number."""
    weights = jax.random.normal(jax.random.key(number), (50, 40))
    return {
        "weights": weights,
        "moments": {"m": weights * 2, "count": jnp.int32(number)},
        "ids": jnp.arange(9) + number,
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with the checkpoints 1 and 2."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir, SETTINGS)
    for number in (1, 2):
        checkpoints.save(number, state(number), {"position": number}, wait=True)
    checkpoints.close()
    return workdir


def files_of(workdir, number):
    directory = workdir / "checkpoints" / str(number)
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def delete(path):
    path.unlink()


def restored(workdir, settings=SETTINGS):
    """Number and arrays of the checkpoint that a start takes, and the lines it tells."""
    told = []
    checkpoints = Checkpoints(workdir, settings, told.append)
    try:
        number = checkpoints.latest
        assert checkpoints.restore_record()["position"] == number
        return number, checkpoints.restore_arrays(jax.eval_shape(lambda: state(0))), told
    finally:
        checkpoints.close()


def assert_state(arrays, number):
    jax.tree.map(np.testing.assert_array_equal, arrays, state(number))


@pytest.mark.parametrize(
    "damage", [truncate, *(pytest.param(how, marks=pytest.mark.slow) for how in (empty, delete)), flip_a_bit]
)
def test_whatever_file_is_damaged_the_checkpoint_before_is_taken_and_said(saved, tmp_path, damage):
    names = files_of(saved, 2)
    assert len(names) > 10
    assert "manifest.json" in names
    for name in names:
        workdir = tmp_path / name.replace("/", "_")
        shutil.copytree(saved, workdir)
        damage(workdir / "checkpoints/2" / name)
        if name == "commit_success.txt" and damage is not delete:
            number, arrays, told = restored(workdir)
            assert (number, told) == (2, [])
            assert_state(arrays, 2)
            continue
        number, arrays, told = restored(workdir)
        assert number == 1, name
        assert_state(arrays, 1)
        (line,) = told
        assert "checkpoint 2 is damaged" in line
        assert name in line
        assert "going on from 1" in line
        assert (workdir / "checkpoints/damaged/2").is_dir()  # nothing is lost to whoever wants to look
        # The run goes on, under the number that is free again.
        checkpoints = Checkpoints(workdir, SETTINGS)
        checkpoints.save(2, state(7), {"position": 2}, wait=True)
        checkpoints.close()
        number, arrays, told = restored(workdir)
        assert (number, told) == (2, [])
        assert_state(arrays, 7)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, delete])
def test_where_none_is_good_the_error_names_every_file_and_nothing_is_moved(saved, tmp_path, damage):
    names = [name for name in files_of(saved, 1) if name not in WITHOUT_STATE]
    for name in names:
        workdir = tmp_path / name.replace("/", "_")
        shutil.copytree(saved, workdir)
        shutil.rmtree(workdir / "checkpoints/2")
        damage(workdir / "checkpoints/1" / name)
        for _ in range(2):  # a second try finds the same; it does not start anew
            with pytest.raises(CheckpointError, match="none of the checkpoints") as error:
                Checkpoints(workdir, SETTINGS)
            assert f"checkpoint 1: {name}" in str(error.value)
            assert "start in a new workdir" in str(error.value)
        assert (workdir / "checkpoints/1").is_dir()


def test_every_bit_of_the_manifest_counts(saved, tmp_path):
    manifest = saved / "checkpoints/2/manifest.json"
    content = manifest.read_bytes()
    for place in range(0, len(content), 37):
        changed = bytearray(content)
        changed[place] ^= 1
        workdir = tmp_path / str(place)
        (workdir / "checkpoints").mkdir(parents=True)
        for number in (1, 2):
            (workdir / f"checkpoints/{number}").symlink_to(saved / f"checkpoints/{number}")
        (workdir / "checkpoints/2").unlink()
        shutil.copytree(saved / "checkpoints/2", workdir / "checkpoints/2")
        (workdir / "checkpoints/2/manifest.json").write_bytes(changed)
        told = []
        Checkpoints(workdir, SETTINGS, told.append).close()
        assert len(told) == 1, bytes(changed[max(place - 20, 0) : place + 20])


def test_the_manifest_lists_size_and_sum_of_every_file_that_holds_state(saved):
    manifest = json.loads((saved / "checkpoints/2/manifest.json").read_text())
    assert sorted([*manifest["files"], *WITHOUT_STATE, "manifest.json"]) == files_of(saved, 2)
    for name, facts in manifest["files"].items():
        assert facts["bytes"] == (saved / "checkpoints/2" / name).stat().st_size
        assert len(facts["sha256"]) == 64


def test_checkpoints_without_a_manifest_are_refused_with_a_reason(saved, tmp_path):
    """As an older version wrote them."""
    shutil.copytree(saved, tmp_path / "old")
    for number in (1, 2):
        (tmp_path / f"old/checkpoints/{number}/manifest.json").unlink()
    with pytest.raises(CheckpointError, match="an older version wrote"):
        Checkpoints(tmp_path / "old", SETTINGS)


def test_the_removal_of_an_old_checkpoint_is_finished(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    for name in ("record/metadata", "commit_success.txt"):
        (tmp_path / "run/checkpoints/1" / name).unlink()
    number, arrays, told = restored(tmp_path / "run", CheckpointSettings(keep=1))
    assert number == 2
    assert_state(arrays, 2)
    assert "what was left of the old checkpoint 1 was removed" in told[0]
    assert not (tmp_path / "run/checkpoints/1").exists()


def test_an_old_checkpoint_that_nobody_was_removing_is_never_deleted(saved, tmp_path):
    """With keep=3 both stay, so a file that is missing was lost in another way and the rest may be of use."""
    shutil.copytree(saved, tmp_path / "run")
    (tmp_path / "run/checkpoints/1/manifest.json").unlink()
    number, _, told = restored(tmp_path / "run")
    assert number == 2
    assert "the old checkpoint 1 is damaged: manifest.json is missing" in told[0]
    assert (tmp_path / "run/checkpoints/damaged/1/record/metadata").exists()


@pytest.mark.parametrize(("number", "is_damage"), [(errno.EIO, True), (errno.EACCES, False)])
def test_a_disk_that_lost_a_file_is_damage_and_a_missing_right_is_none(saved, tmp_path, monkeypatch, number, is_damage):
    shutil.copytree(saved, tmp_path / "run")

    def file_digest(file, kind):
        if "/checkpoints/2/" in file.name:
            raise OSError(number, os.strerror(number))
        return plain(file, kind)

    plain = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    if not is_damage:
        with pytest.raises(PermissionError, match="checkpoints/2/"):
            Checkpoints(tmp_path / "run", SETTINGS)
        assert (tmp_path / "run/checkpoints/2").is_dir()
        return
    found, _, told = restored(tmp_path / "run")
    assert found == 1
    assert "cannot be read (Input/output error)" in told[0]


def test_an_old_checkpoint_that_was_cut_is_put_aside(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    truncate(tmp_path / "run/checkpoints/1/record/metadata")
    number, _, told = restored(tmp_path / "run")
    assert number == 2
    assert "the old checkpoint 1 is damaged: record/metadata has" in told[0]
    assert (tmp_path / "run/checkpoints/damaged/1").is_dir()
