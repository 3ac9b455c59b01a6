"""Weights as int8 numbers with one scale per output channel, for decoding: a quarter of the bytes of float32."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from deepsearch_jax.policy.config import ModelConfig


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


Matrix = jax.Array | Int8


def matmul(x: jax.Array, kernel: Matrix, preferred: Any = None) -> jax.Array:
    """x [..., in] @ kernel [in, out], in the dtype of x; summed and returned in `preferred` where given.

    The scale belongs to the output channel, so it is applied behind the product.
    """
    if not isinstance(kernel, Int8):
        return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=preferred)
    wide = preferred or jnp.promote_types(x.dtype, jnp.float32)
    y = jnp.matmul(x, kernel.values.astype(x.dtype), preferred_element_type=wide)
    return (y * kernel.scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(preferred or x.dtype)


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
