"""Memory of a compiled update: not by vocabulary times tokens, and not by the rows of other devices."""

import functools

import jax
import pytest

from deepsearch_jax.objective import LossSettings
from deepsearch_jax.policy import ModelConfig, token_log_probs, tree_log_probs
from deepsearch_jax.runtime.memory import abstract_state
from deepsearch_jax.runtime.meshes import MeshSettings, build_mesh, build_train_mesh
from deepsearch_jax.runtime.planning.plan import Rows, batch_shapes
from deepsearch_jax.training import UpdateSettings, lower_update

VOCABULARY = 150_000
NARROW = ModelConfig.tiny(VOCABULARY, hidden_size=8, num_layers=1, num_heads=1, intermediate_size=16, remat="full")
DEEP = ModelConfig.tiny(
    256, hidden_size=64, num_layers=4, num_heads=8, num_kv_heads=8, intermediate_size=512, remat="full"
)
SETTINGS = UpdateSettings(micro_batch_rows=1)


def log_probs(params, *inputs, model, chunk_size, mesh):
    of = tree_log_probs if len(inputs) > 2 else token_log_probs
    return of(model, params, *inputs, chunk_size=chunk_size, mesh=mesh)


def temporary_bytes(model, rows, chunk_size=128, mesh=None):
    of = functools.partial(log_probs, model=model, chunk_size=chunk_size, mesh=mesh)
    state, batch = abstract_state(model, SETTINGS, mesh), batch_shapes(rows, mesh)
    return lower_update(state, batch, of, LossSettings(), SETTINGS, mesh).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("is_trees", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_vocabulary_times_tokens(is_trees):
    short, long = (temporary_bytes(NARROW, Rows(is_trees, 2, tokens, 1)) for tokens in (512, 1024))
    assert long - short < 0.02 * 512 * VOCABULARY * 4
    # What there is belongs to one chunk (at most four arrays of its logits) and to the gradient of the embedding.
    assert long < 4 * 128 * VOCABULARY * 4 + 6 * VOCABULARY * NARROW.hidden_size * 4


@pytest.mark.slow
def test_a_device_of_eight_holds_its_own_rows_alone():
    """The weights are spread over eight devices, and each has one row at a time: about what one device has with one."""
    mesh = build_train_mesh(build_mesh(8), MeshSettings(fsdp=8))
    alone = temporary_bytes(DEEP, Rows(False, 2, 2048, 1))
    spread = temporary_bytes(DEEP, Rows(False, 16, 2048, 1), mesh=mesh)
    assert len(jax.devices()) == 8
    assert spread < 1.3 * alone
