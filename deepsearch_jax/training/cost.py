"""What an update costs, in the work of its matrix products; tells whether packing a batch pays."""

import numpy as np

from deepsearch_jax.policy import ModelConfig, blocks_for

# Time of a floating point operation in attention relative to one in the layers' large products, by
# `python -m benchmarks.update --prices` on one CPU core: dense at 64 to 256 tokens (longer rows
# are cut into blocks), blocks from 512 tokens on.
DENSE_PRICE = 1.8
BLOCK_PRICE = 1.3


def update_cost(config: ModelConfig, ends: np.ndarray, positions: np.ndarray) -> float:
    """Operations of forward and backward pass of rows, padding included, those of attention at their price.

    Args:
      ends, positions: [R, T] int, see `policy.attention`.
    """
    R, T = ends.shape
    heads, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = config.hidden_size * (2 * heads + 2 * kv + 3 * config.intermediate_size)
    cost = 6.0 * R * T * (config.num_layers * layer + config.vocab_size * config.hidden_size)
    blocks = blocks_for(T)
    windows = [config.window(index) for index in range(config.num_layers)]
    for window in set(windows):
        if blocks is None:  # four products of a pair of tokens and a head forward, eight backward
            attention = 12.0 * DENSE_PRICE * R * T * T
        else:
            attention = 14.0 * BLOCK_PRICE * num_pairs(ends, positions, blocks.size, window) * blocks.size**2
        cost += windows.count(window) * heads * attention
    return cost


def num_pairs(ends: np.ndarray, positions: np.ndarray, block: int, window: int = 0) -> int:
    """Pairs of a query block and a key block that attention computes, as `policy.attention.block_pairs` lists them.

    Args:
      window: tokens attended back to; 0 = all.
    """
    padding = ((0, 0), (0, -ends.shape[1] % block))
    ends, positions = (np.pad(x, padding).reshape(len(x), -1, block) for x in (ends, positions))
    real = ends > 0
    last = ends.max(axis=2)
    number = np.arange(last.shape[1])
    seen = (number[:, None] >= number) & (last[:, None, :] > (number * block)[:, None])
    if window:
        shallowest = np.where(real, positions, 1 << 30).min(axis=2)
        deepest = np.where(real, positions, -1).max(axis=2)
        near = shallowest[:, :, None] - deepest[:, None, :] < window
        seen &= near | (number[:, None] == number)
    return int(seen.sum())
