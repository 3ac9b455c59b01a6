"""Checkpoints: complete or not there, and never what came after the save."""

import functools
import os
import resource

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


@pytest.mark.parametrize("bad", [{"every_steps": 0}, {"keep": 0}])
def test_settings_are_checked(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}=0"):
        CheckpointSettings(**bad)
