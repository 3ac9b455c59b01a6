"""How much memory a device has, what training keeps of it, and what the KV pages of a search take."""

import dataclasses
import functools
import os
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepsearch_jax.policy import ModelConfig, bytes_per_device, init_params, param_shardings
from deepsearch_jax.runtime.rollout_settings import RolloutSettings
from deepsearch_jax.training import TrainState, UpdateSettings, init_train_state
from deepsearch_jax.tree import SearchSettings

_GIB = 1024**3
_POOL_SHARE = 0.5  # of what a device has beside the training state; the rest is for decoding and the update


def page_bytes(model: ModelConfig, segment_length: int) -> int:
    """Bytes of one KV page: keys and values of segment_length tokens in every layer."""
    heads = model.num_kv_heads * model.head_dim
    return 2 * model.num_layers * heads * segment_length * model.dtypes[1].itemsize


def pool_pages(
    model: ModelConfig, search: SearchSettings, num_slots: int, *, num_batches: int = 1, pool_gib: float = 0.0
) -> int:
    """Pages of the pool of one device and batch of slots: one a node, or fewer if memory ends before.

    Args:
      num_slots: trees of one device and batch.
      num_batches: batches that share the device.
      pool_gib: as of `_pool_bytes`.
    """
    budget = _pool_bytes(model, pool_gib) / num_batches
    return min(num_slots * search.capacity, int(budget) // page_bytes(model, search.segment_length))


def samples_at_once(
    model: ModelConfig, num_slots: int, num_samples: int, length: int, *, pool_gib: float = 0.0
) -> int:  # fmt: skip
    """Direct samples of each problem that decode together: all, or equal parts of which one fits the pool's memory.

    No pool exists while direct samples are drawn. One sample of each problem is the least, whatever it takes.
    Args:
      num_slots: problems of one device.
      num_samples: wanted of each, K.
      length: tokens of the longest response.
      pool_gib: as of `_pool_bytes`.
    """
    fitting = max(int(_pool_bytes(model, pool_gib)) // (num_slots * page_bytes(model, length)), 1)
    num_parts = -(-num_samples // fitting)
    return -(-num_samples // num_parts)


def _pool_bytes(model: ModelConfig, pool_gib: float) -> float:
    """Bytes of a device for keys and values of what it samples.

    Args:
      pool_gib: what it should be; 0 derives it from the device's own memory and the model's size, not from what happens
        to be free at the moment, so that a resumed run gets the same pool.
    """
    return pool_gib * _GIB or max(device_bytes() - training_bytes(model), 0) * _POOL_SHARE


def abstract_state(model: ModelConfig, optimizer: UpdateSettings, mesh: Mesh | None) -> TrainState:
    """The train state of a run as shapes, laid out over the update's mesh as the state itself is; nothing is allocated.

    Args:
      mesh: of the update; None = one device.
    """
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    state = jax.eval_shape(functools.partial(init_train_state, settings=optimizer), params)
    if mesh is None:
        return state
    everywhere = NamedSharding(mesh, PartitionSpec())
    layout = {_names(path): x for path, x in jax.tree.leaves_with_path(param_shardings(model, params, mesh))}

    def placed(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # Moments stand at the path of their parameter, behind something and perhaps before something.
        names = _names(path)
        spans = (names[i:j] for i in range(len(names)) for j in range(len(names), i, -1))
        sharding = next((layout[span] for span in spans if span in layout), everywhere)
        if len(sharding.spec) > leaf.ndim or any(
            axis and size % mesh.shape[axis] for axis, size in zip(sharding.spec, leaf.shape, strict=False)
        ):
            sharding = everywhere
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map_with_path(placed, state)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def state_bytes(tree: Any) -> int:
    """Bytes of shapes on one device; those without a sharding lie there whole."""
    leaves = jax.tree.leaves(tree)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.sharding is None)
    return whole + bytes_per_device([leaf for leaf in leaves if leaf.sharding is not None])


def training_bytes(model: ModelConfig, optimizer: UpdateSettings | None = None, mesh: Mesh | None = None) -> int:
    """Bytes on each device of weights, gradients and optimizer state, and of the whole copy that decodes.

    Args:
      mesh: of the update, which spreads all but the copy; None = one device.
    """
    state = abstract_state(model, optimizer or UpdateSettings(), mesh)
    return state_bytes(state) + state_bytes(state.params) + _copy_bytes(model)


def frozen_bytes(model: ModelConfig) -> int:
    """Bytes on each device of weights that are not trained, whole, and of the copy that decodes."""
    return state_bytes(abstract_state(model, UpdateSettings(), None).params) + _copy_bytes(model)


def _copy_bytes(model: ModelConfig) -> int:
    return model.num_parameters * model.dtypes[1].itemsize


def settle_pool(
    rollout: RolloutSettings, model: ModelConfig, optimizer: UpdateSettings, mesh: Mesh | None,
    memory: float | None = None, *, is_frozen: bool = False,
) -> RolloutSettings:  # fmt: skip
    """The settings with a size for the page pool, where they leave it to be found.

    Args:
      mesh: of the update.
      memory: bytes of a device; by default those of the first one.
      is_frozen: the model's weights have no gradients and moments: adapters are trained, or nothing.
    """
    if rollout.page_pool_gib:
        return rollout
    held = frozen_bytes(model) if is_frozen else training_bytes(model, optimizer, mesh)
    free = (device_bytes() if memory is None else memory) - held
    return dataclasses.replace(rollout, page_pool_gib=max(free, 0) * _POOL_SHARE / _GIB)


def device_bytes() -> int:
    """Memory of the first device that this process may use; for CPU devices the machine's, shared by all of them."""
    device = jax.local_devices()[0]
    statistics = device.memory_stats() if device.platform != "cpu" else None
    if statistics and "bytes_limit" in statistics:
        return int(statistics["bytes_limit"])
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine // (len(jax.local_devices()) if device.platform == "cpu" else 1)


def decode_bytes(
    model: ModelConfig, *, num_slots: int, num_rows: int, num_samples: int, segment_length: int, prompt_length: int,
    path_bucket: int, num_pages: int,
) -> dict[str, int]:  # fmt: skip
    """What one expansion holds in device memory, by part, in bytes.

    Args:
      num_slots: prompts, B.
      num_rows: nodes expanded together, R.
      num_samples: children of each, K.
      path_bucket: D, nodes of the longest path.
    """
    token = page_bytes(model, 1)
    return {
        "weights": model.num_parameters * model.dtypes[1].itemsize,
        "pool": num_pages * segment_length * token,
        "prompts": num_slots * prompt_length * token,
        "gathered_paths": num_rows * (prompt_length + path_bucket * segment_length) * token if path_bucket else 0,
        "own_tokens": num_rows * num_samples * segment_length * token,
        "logits": 2 * num_rows * num_samples * model.vocab_size * 4,  # and one array of their size for the draw
    }
