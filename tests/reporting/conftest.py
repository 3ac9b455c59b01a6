"""Two recorded runs: DeepSearch and GRPO on short arithmetic chains, three rounds of eight steps."""

import pathlib

import pytest

RECORDED = pathlib.Path(__file__).resolve().parents[1] / "data" / "recorded_runs"


@pytest.fixture(scope="session")
def recorded():
    return [RECORDED / "deepsearch", RECORDED / "grpo"]
