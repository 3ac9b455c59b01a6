"""Where compiled programs are kept."""

import jax
import pytest

from deepsearch_jax.runtime.compile_cache import enable_compile_cache

NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    before = {name: jax.config.values[name] for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_it_is_on_by_default_below_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert enable_compile_cache("auto") == tmp_path / "deepsearch_jax" / "xla"
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "deepsearch_jax" / "xla")


def test_what_jax_was_told_already_stays(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert enable_compile_cache("auto") == tmp_path / "mine"
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "mine")


def test_off_and_a_directory_of_ones_own(tmp_path):
    assert enable_compile_cache("off") is None
    assert jax.config.values["jax_compilation_cache_dir"] is None
    assert enable_compile_cache(str(tmp_path / "here")) == tmp_path / "here"
    assert (tmp_path / "here").is_dir()


def test_places_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be made .*; name another directory, or 'off'"):
        enable_compile_cache(str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert enable_compile_cache("auto") is None  # nobody asked for this directory


@pytest.mark.slow
def test_a_second_process_need_not_compile(tmp_path):
    import subprocess
    import sys

    program = (
        "import jax, jax.numpy as jnp\n"
        "from deepsearch_jax.runtime.compile_cache import enable_compile_cache\n"
        f"enable_compile_cache({str(tmp_path)!r})\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)\n"
        "hits = []\n"
        "jax.monitoring.register_event_listener(lambda event, **kwargs: hits.append(event))\n"
        "jax.jit(lambda x: jnp.sort(x) @ x)(jnp.arange(64.0))\n"
        "print(sum('cache_hits' in event for event in hits))\n"
    )
    counts = [
        int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
        for _ in range(2)
    ]
    assert counts[0] == 0
    assert counts[1] >= 1
