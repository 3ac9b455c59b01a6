"""Parameters over the axes data, fsdp and tensor: the rules, and updates equal to those of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from deepsearch_jax import training
from deepsearch_jax.objective import LossSettings
from deepsearch_jax.policy import (
    ModelConfig,
    bytes_per_device,
    init_params,
    param_shardings,
    param_specs,
    token_log_probs,
)
from deepsearch_jax.training import UpdateSettings
from deepsearch_jax.types import TokenBatch

CONFIG = ModelConfig.tiny(
    32, hidden_size=64, num_layers=2, num_heads=8, num_kv_heads=8, head_dim=8, intermediate_size=64, qkv_bias=True
)
SETTINGS = UpdateSettings(learning_rate=1e-3, warmup_steps=0, max_grad_norm=0, micro_batch_rows=1)
# One mesh runs always, the others compile for long.
MESHES = [(2, 2, 2), *(pytest.param(shape, marks=pytest.mark.slow) for shape in [(8, 1, 1), (1, 8, 1), (1, 1, 8)])]


@functools.cache
def log_prob_fn(mesh):
    return functools.partial(token_log_probs, CONFIG, chunk_size=16, mesh=mesh)


def make_mesh(shape):
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def make_batch(num_rows=16, num_tokens=12):
    rng = np.random.default_rng(0)
    segment_ids = (np.arange(num_tokens) < rng.integers(4, num_tokens + 1, num_rows)[:, None]).astype(np.int32)
    mask = (segment_ids != 0) & (np.arange(num_tokens) > 1)
    tokens = rng.integers(0, 32, mask.shape).astype(np.int32)
    old = np.where(mask, rng.normal(size=mask.shape) - 3.5, 0).astype(np.float32)
    return TokenBatch(tokens, segment_ids, mask, rng.normal(size=mask.shape).astype(np.float32), old)


def shard_params(config, params, mesh):
    return params if mesh is None else jax.device_put(params, param_shardings(config, params, mesh))


@functools.cache
def run(shape):
    """State, metrics and old log-probs after two updates on a mesh; None: one device."""
    mesh, params = None if shape is None else make_mesh(shape), init_params(CONFIG, jax.random.key(0))
    state = training.init_train_state(shard_params(CONFIG, params, mesh), SETTINGS, mesh)
    batch = make_batch()
    # Where all devices are on the axis data, the update maps over them by hand.
    of = log_prob_fn(None if shape in (None, (8, 1, 1)) else mesh)
    old = training.compute_log_probs(state.params, batch, of, SETTINGS, mesh)
    for _ in range(2):
        state, metrics = training.update(state, batch, of, LossSettings(), SETTINGS, mesh)
    return state, metrics, old


@pytest.mark.parametrize("shape", MESHES)
def test_updates_equal_those_of_one_device(shape):
    (state, metrics, old), (expected_state, expected_metrics, expected_old) = run(shape), run(None)
    np.testing.assert_allclose(old, expected_old, atol=1e-5)
    for name in ("loss", "grad_norm", "entropy", "num_tokens", "max_abs_log_ratio"):
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-5, err_msg=name)
    # The first moments are the gradients, up to a factor.
    means, expected = (jax.tree.leaves(s.opt_state[1][0].mu) for s in (state, expected_state))
    for mean, other in zip(means, expected, strict=True):
        np.testing.assert_allclose(mean, other, atol=1e-5 * float(jnp.abs(other).max()), rtol=1e-4)


@pytest.mark.parametrize("shape", [MESHES[0], *MESHES[2:]])
def test_parameters_and_moments_stay_in_pieces(shape):
    state = run(shape)[0]
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    norms = sum(leaf.nbytes for path, leaf in jax.tree.leaves_with_path(state.params) if path[-1].key == "scale")
    pieces = shape[1] * shape[2]
    moments = state.opt_state[1][0]
    for tree in (state.params, moments.mu, moments.nu):
        assert bytes_per_device(tree) <= (whole - norms) / pieces + norms + biases_of(tree, shape)
    for leaf, moment in zip(jax.tree.leaves(state.params), jax.tree.leaves(moments.mu), strict=True):
        assert moment.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


def biases_of(params, shape):
    """Biases are cut along `tensor` alone: what of them lies on a device beyond an even share."""
    size = sum(leaf.nbytes for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key == "bias")
    return size / shape[2] - size / (shape[1] * shape[2])


def test_rules():
    shapes = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))
    specs = param_specs(CONFIG, shapes, make_mesh((2, 2, 2)))
    layers = specs["layers"]
    assert specs["embed"]["embedding"] == PartitionSpec("tensor", "fsdp")
    assert layers["attention"]["query"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert layers["attention"]["output"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert layers["attention"]["key"]["bias"] == PartitionSpec(None, "tensor")
    assert layers["mlp"]["down"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert layers["mlp_norm"]["scale"] == PartitionSpec(None, None)


def test_heads_and_odd_sizes_stay_whole():
    config = ModelConfig.tiny(31, hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=16)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    specs = param_specs(config, shapes, make_mesh((1, 2, 4)))
    assert specs["embed"]["embedding"] == PartitionSpec(None, "fsdp")  # 31 tokens
    assert specs["layers"]["attention"]["query"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert specs["layers"]["attention"]["key"]["kernel"] == PartitionSpec(None, "fsdp", None)  # 2 heads over 4 devices


def test_an_unknown_matrix_is_named():
    with pytest.raises(ValueError, match="mlp/router/kernel"):
        param_specs(CONFIG, {"mlp": {"router": {"kernel": jnp.zeros((2, 2))}}}, make_mesh((1, 8, 1)))


def test_rows_must_divide_among_data_and_fsdp():
    mesh = make_mesh((2, 2, 2))
    state = training.init_train_state(
        shard_params(CONFIG, init_params(CONFIG, jax.random.key(0)), mesh), SETTINGS, mesh
    )
    with pytest.raises(ValueError, match="the next size that fits is 16"):
        training.update(state, make_batch(14), log_prob_fn(mesh), LossSettings(), SETTINGS, mesh)
