"""How much memory a device has and what the KV pages of a search take of it."""

import os

import jax

from deepsearch_jax.policy import ModelConfig
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
      pool_gib: memory for all pages of a device; 0 derives it from the device's own memory and the model's size, not
        from what happens to be free at the moment, so that a resumed run gets the same pool.
    """
    budget = pool_gib * _GIB or max(device_bytes() - training_bytes(model), 0) * _POOL_SHARE
    return min(num_slots * search.capacity, int(budget / num_batches) // page_bytes(model, search.segment_length))


def training_bytes(model: ModelConfig) -> int:
    """Bytes of weights, gradients and two moments at the master dtype, and of the decoding copy."""
    master, compute = (dtype.itemsize for dtype in model.dtypes)
    return model.num_parameters * (4 * master + compute)


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
