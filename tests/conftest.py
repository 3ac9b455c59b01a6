"""Settings of every test: 8 virtual CPU devices, rank promotion is an error, warnings are errors (pyproject.toml)."""

import os
import pathlib

from tests.flags import QUICK_TO_COMPILE

# Both must be set before jax is imported for the first time.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {QUICK_TO_COMPILE}"
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# Every program compiled for CPU keeps some mappings of memory; past the system's limit (65,530 by default on Linux) the
# next compilation ends the process.
_MANY_MAPPINGS = 25_000


@pytest.fixture(scope="module", autouse=True)
def _drop_programs():
    """Forgets compiled programs between test files once there are very many."""
    yield
    mappings = pathlib.Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > _MANY_MAPPINGS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
    """Folder with golden data, problem sets and checkpoints; tests that need it are skipped where it is missing."""
    path = pathlib.Path(os.environ.get("DEEPSEARCH_SHARED", REPOSITORY.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}; set DEEPSEARCH_SHARED")
    return path


@pytest.fixture(scope="session")
def model_dir() -> pathlib.Path:
    """A real Hugging Face Qwen2.5 directory; tests that need it are skipped without DEEPSEARCH_MODEL_DIR."""
    path = os.environ.get("DEEPSEARCH_MODEL_DIR")
    if not path:
        pytest.skip("set DEEPSEARCH_MODEL_DIR to a Hugging Face directory of a Qwen2.5 model")
    return pathlib.Path(path)
