"""Weights as int8 numbers with one scale per output channel, for decoding: a quarter of the bytes of float32."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from deepsearch_jax.policy.config import ModelConfig
from deepsearch_jax.policy.layout import Tiled, Transposed
from deepsearch_jax.policy.lora import Adapted


@struct.dataclass
class Int8:
    """A matrix whose entries are values * scale; takes the place of a float array in the parameters.

    Attributes:
      values: int8, the matrix's own shape; -127..127.
      scale: float32, the same shape but 1 along the axis that a matrix product sums over.
    """

    values: jax.Array
    scale: jax.Array

    @property
    def T(self) -> "Int8":
        return Int8(self.values.T, self.scale.T)

    def __getitem__(self, index: Any) -> "Int8":
        return Int8(self.values[index], self.scale[index])

    def astype(self, dtype: Any) -> jax.Array:
        """The matrix as floats again."""
        return (self.values.astype(jnp.float32) * self.scale).astype(dtype)


Matrix = jax.Array | Int8 | Transposed | Tiled | Adapted
_FEW_ROWS = 64  # rows of a decode step; with more (prefill) the product outweighs the conversion
_BLOCK = 1 << 19  # matrix entries converted at a time, 2 MB of float32
_WIDE = 1 << 14  # output channels beyond which sums of all rows no longer stay in cache


def matmul(x: jax.Array, kernel: Matrix, preferred: Any = None) -> jax.Array:
    """x [..., in] @ kernel [in, out], in the dtype of x; summed and returned in `preferred` where given.

    The scale belongs to the output channel, so it is applied behind the product.
    """
    if isinstance(kernel, Transposed | Tiled | Adapted):
        return kernel.matmul(x, preferred)
    if not isinstance(kernel, Int8):
        return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=preferred)
    wide = preferred or jnp.promote_types(x.dtype, jnp.float32)
    rows = x.reshape(-1, x.shape[-1])
    plain, blocked = (functools.partial(product, wide=wide) for product in (_plain_product, _blocked_product))
    if len(rows) <= _FEW_ROWS:
        y = jax.lax.platform_dependent(rows, kernel.values, cpu=blocked, default=plain)
    else:
        y = plain(rows, kernel.values)
    return (y * kernel.scale.reshape(1, -1)).astype(preferred or x.dtype).reshape(*x.shape[:-1], -1)


def _plain_product(x: jax.Array, values: jax.Array, wide: Any) -> jax.Array:
    return jnp.matmul(x, values.astype(x.dtype), preferred_element_type=wide)


def _blocked_product(x: jax.Array, values: jax.Array, wide: Any) -> jax.Array:
    """The plain product, block by block: the CPU backend writes the converted matrix to memory, a block stays in cache.

    Matrices that are wider than long (the head) are walked by columns, the others by rows, which lie together.
    """
    size_in, size_out = values.shape
    by_columns = size_out > _WIDE
    length, other = (size_out, size_in) if by_columns else (size_in, size_out)
    step = max(n for n in range(1, max(1, _BLOCK // other) + 1) if length % n == 0)
    if step < 8 or step == length:
        return _plain_product(x, values, wide)

    def columns(index: jax.Array, y: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(values, index * step, step, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(y, _plain_product(x, part, wide), index * step, axis=1)

    def rows(index: jax.Array, y: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(values, index * step, step)
        return y + _plain_product(jax.lax.dynamic_slice_in_dim(x, index * step, step, axis=1), part, wide)

    zeros = jnp.zeros((len(x), size_out), wide)
    return jax.lax.fori_loop(0, length // step, columns if by_columns else rows, zeros)


def quantize_int8(config: ModelConfig, params: dict[str, Any]) -> dict[str, Any]:
    """All matrices of the decoder as int8, embedding and head too; norms and biases stay as they are.

    Each output channel (a token, for the embedding) is scaled by its largest entry / 127 and rounded to nearest, so an
    entry is off by half its channel's scale at most. Gradients do not reach int8 weights: decode with the result, train
    with `params`. Pure, so it may run under jit after each update.
    Args:
      params: stacked, or as `unstack_layers` gives them.
    """
    del config  # every family has the same matrices

    def of(path: tuple[Any, ...], leaf: jax.Array) -> Matrix:
        name = path[-1].key
        if name not in ("kernel", "embedding"):
            return leaf
        wide = leaf.astype(jnp.float32)
        largest = jnp.max(jnp.abs(wide), axis=-2 if name == "kernel" else -1, keepdims=True)
        scale = jnp.where(largest > 0, largest, 1) / 127
        return Int8(jnp.round(wide / scale).astype(jnp.int8), scale)

    return jax.tree_util.tree_map_with_path(of, params)
