"""Checkpoints: complete or not there, and never what came after the save."""

import functools
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax.runtime.checkpoints import CheckpointError, Checkpoints, CheckpointSettings


@functools.partial(jax.jit, donate_argnums=0)
def double(arrays):
    return jax.tree.map(lambda leaf: leaf * 2, arrays)


def test_what_is_restored_is_what_was_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointSettings())
    assert checkpoints.latest is None
    arrays = {"a": jnp.arange(4), "b": (jnp.ones((2, 3)), jnp.float32(7))}
    checkpoints.save(1, arrays, {"step": 5}, wait=True)
    checkpoints.close()
    again = Checkpoints(tmp_path, CheckpointSettings())
    assert again.latest == 1
    assert again.restore_record()["step"] == 5
    jax.tree.map(np.testing.assert_array_equal, again.restore_arrays(jax.tree.map(jnp.zeros_like, arrays)), arrays)
    again.close()


def test_a_save_in_the_background_does_not_see_later_updates(tmp_path):
    """The arrays are donated to the next update while they are still being written."""
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(keep=1))
    arrays = {"w": jnp.arange(8_000_000, dtype=jnp.float32)}
    want = np.arange(8_000_000, dtype=np.float32)
    for number in (1, 2, 3):
        checkpoints.save(number, arrays, {})
        arrays = double(arrays)
        checkpoints.wait()
        np.testing.assert_array_equal(checkpoints.restore_arrays(arrays)["w"], want)
        want = want * 2
    checkpoints.close()


def test_old_ones_are_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(keep=2))
    for number in range(1, 5):
        checkpoints.save(number, {"a": jnp.arange(number)}, {}, wait=True)
    checkpoints.close()
    assert sorted(int(name) for name in os.listdir(tmp_path / "checkpoints") if name.isdigit()) == [3, 4]


def test_a_save_that_fails_leaves_the_last_good_one_and_says_so(tmp_path):
    size = 100_000
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(keep=3))
    checkpoints.save(1, {"a": jnp.arange(size)}, {}, wait=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # to a writer, the same as a disk that is full
    try:
        with pytest.raises(CheckpointError, match="the last good one is 1"):
            checkpoints.save(2, {"a": jax.random.bits(jax.random.key(0), (size,))}, {}, wait=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = Checkpoints(tmp_path, CheckpointSettings())
    assert again.latest == 1
    np.testing.assert_array_equal(again.restore_arrays({"a": jnp.zeros(size, int)})["a"], np.arange(size))
    again.close()


def test_a_failed_save_does_not_forget_the_only_good_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(keep=1))
    checkpoints.save(1, {"a": jnp.arange(9)}, {}, wait=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(CheckpointError, match="the last good one is 1"):
            checkpoints.save(2, {"a": jax.random.bits(jax.random.key(0), (100_000,))}, {}, wait=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "checkpoints/1/manifest.json").exists()


def test_the_best_ones_stay_beside_the_newest_also_after_a_restart(tmp_path):
    settings = CheckpointSettings(keep=1, keep_best=2)
    held_out = {1: 0.2, 2: 0.9, 4: 0.5, 5: 0.5}  # the third was not evaluated
    for number in range(1, 8):
        checkpoints = Checkpoints(tmp_path, settings)
        checkpoints.save(number, {"a": jnp.arange(number)}, {}, held_out=held_out.get(number), wait=True)
        checkpoints.close()
    assert sorted(int(name) for name in os.listdir(tmp_path / "checkpoints") if name.isdigit()) == [2, 5, 7]
    # Without the newest, the best of them is where a run goes on from.
    shutil.rmtree(tmp_path / "checkpoints/7")
    again = Checkpoints(tmp_path, settings)
    assert again.latest == 5
    again.close()


def test_a_save_is_due_by_steps_and_by_the_clock(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(every_steps=10, every_minutes=30))
    assert not checkpoints.is_due(9)
    assert checkpoints.is_due(10)
    now[0] += 30 * 60
    assert checkpoints.is_due(11)
    checkpoints.save(1, {"a": jnp.arange(3)}, {}, wait=True)
    assert not checkpoints.is_due(12)
    checkpoints.close()
    by_steps = Checkpoints(tmp_path, CheckpointSettings(every_steps=10))
    now[0] += 1e9
    assert not by_steps.is_due(11)
    by_steps.close()


@pytest.mark.parametrize("bad", [{"every_steps": 0}, {"keep": 0}, {"every_minutes": -1}, {"keep_best": -1}])
def test_settings_are_checked(bad):
    with pytest.raises(ValueError, match="{}={}".format(*next(iter(bad.items())))):
        CheckpointSettings(**bad)
