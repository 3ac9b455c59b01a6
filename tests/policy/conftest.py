"""The four recorded models, one of each family."""

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from deepsearch_jax import policy

DATA = pathlib.Path(__file__).parent.parent / "data"
FAMILIES = ("qwen2", "qwen3", "llama3", "gemma3")


@dataclasses.dataclass(frozen=True)
class Recorded:
    path: pathlib.Path
    config: policy.ModelConfig
    params: policy.Params
    golden: dict[str, Any]


def load_recorded(name: str) -> Recorded:
    path = DATA / f"tiny_{name}"
    return Recorded(path, *policy.load_pretrained(path), json.loads((path / "golden.json").read_text()))


@pytest.fixture(scope="module", params=FAMILIES)
def recorded(request) -> Recorded:
    """Every test that takes it runs once for each family."""
    return load_recorded(request.param)


@pytest.fixture(scope="module")
def gemma() -> Recorded:
    """Two layers, the first with a window of 8 tokens."""
    return load_recorded("gemma3")
