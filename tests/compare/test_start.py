"""Where cells start from: a suite that begins with a pretrained model goes on with no other."""

import dataclasses

import jax
import pytest

from deepsearch_jax.policy import ModelConfig, init_params, save_pretrained
from experiments.compare import cells
from tests.compare.tiny_suite import get_suite


@pytest.fixture(autouse=True)
def as_in_a_new_process():
    cells._weights_at.cache_clear()
    yield
    cells._weights_at.cache_clear()


def model_at(path, seed):
    model = ModelConfig.tiny(
        32, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=32, eos_ids=(1,), pad_id=0
    )
    save_pretrained(path, model, init_params(model, jax.random.key(seed)))
    return path


def setting_of(path):
    """A setting without a warm start, as `gsm8k` is: its policy lies where the environment says."""

    def build():
        config = get_suite().setting("tiny").build()
        config.model.path = str(path)
        return config

    return dataclasses.replace(get_suite().setting("tiny"), build=build, average_last=0)


def test_cells_of_two_pretrained_models_are_not_mixed(tmp_path):
    one, other = model_at(tmp_path / "one", 0), model_at(tmp_path / "other", 1)
    assert cells.make_start(tmp_path / "suite", setting_of(one), 0, print) == one
    assert cells.make_start(tmp_path / "suite", setting_of(one), 1, print) == one
    with pytest.raises(ValueError, match=r"started from the model at '.*one', and that at '.*other' has other weights"):
        cells.make_start(tmp_path / "suite", setting_of(other), 1, print)
    assert cells.make_start(tmp_path / "another suite", setting_of(other), 1, print) == other


def test_the_same_weights_may_lie_elsewhere(tmp_path):
    one, copy = model_at(tmp_path / "one", 0), model_at(tmp_path / "copy", 0)
    cells.make_start(tmp_path / "suite", setting_of(one), 0, print)
    assert cells.make_start(tmp_path / "suite", setting_of(copy), 0, print) == copy
