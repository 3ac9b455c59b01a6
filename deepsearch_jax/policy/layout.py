"""Matrices stored [out, in] for the small matrix products of decoding on CPU."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

# Where one form of the product overtakes the other on the CPU backend (AVX-512, jaxlib 0.10, widths 896 to 8960).
LONG_ROW = 2048  # a dot product per output streams weights at 24-30 GB/s below this, at 1 GB/s from 4096 on
MANY_ROWS = 96  # from here on the activations fill the kernel's tiles and the plain order is as fast


@struct.dataclass
class Transposed:
    """A matrix [in, out] stored as its transpose; takes the place of a float array in the parameters.

    Eigen copies the operand on the right of a product into tiles. With few rows of activations that copy costs as much
    as the product, so here the weights stand on the left: y^T = W^T x^T, 1.3-1.6x faster at 8 to 64 rows in float32.

    Attributes:
      rows: [out, in].
      columns: [in, out] the same once more, for a single row of activations: it streams 1.5x faster; or None.
    """

    rows: jax.Array
    columns: jax.Array | None = None

    def __getitem__(self, index: Any) -> "Transposed":
        return Transposed(self.rows[index], None if self.columns is None else self.columns[index])

    def matmul(self, x: jax.Array, preferred: Any = None) -> jax.Array:
        """x [..., in] -> [..., out], in the dtype of x; summed and returned in `preferred` where given."""
        weights = self.rows.astype(x.dtype)
        size_out, size_in = weights.shape
        count = math.prod(x.shape[:-1])
        flat = x.reshape(count, size_in)
        if count == 1 and self.columns is not None:
            # Between barriers, or XLA makes a fused loop of the product, which streams at half the speed.
            flat = jax.lax.optimization_barrier(flat)
            y = jnp.matmul(flat, self.columns.astype(x.dtype), preferred_element_type=preferred)
            y = jax.lax.optimization_barrier(y)
        elif count == 1 and size_in < LONG_ROW:
            # Between barriers, or XLA makes a fused loop of the product, which streams at half the speed.
            flat = jax.lax.optimization_barrier(flat)
            y = jax.lax.dot_general(flat, weights, (((1,), (1,)), ((), ())), preferred_element_type=preferred)
            y = jax.lax.optimization_barrier(y)
        elif count >= MANY_ROWS:
            y = jnp.matmul(flat, weights.T, preferred_element_type=preferred)
        else:
            y = jnp.matmul(weights, flat.T, preferred_element_type=preferred)
            y = jax.lax.optimization_barrier(y).T  # XLA would fold the transpose into the product and swap it back
        return y.reshape(*x.shape[:-1], size_out)


def transpose_kernels(params: dict[str, Any], *, copy_head: bool = False) -> dict[str, Any]:
    """Stores every unstacked float kernel of the decoder [out, in]; the embedding is read so already.

    Args:
      params: as `unstack_layers` gives them, without a copied head.
      copy_head: keep the head [in, out] too (`head_columns` where it is tied), which is a tenth of a step at one row;
        costs V * E numbers of memory.
    Raises:
      ValueError: the layers are stacked.
    """
    if "attention" in params["layers"]:
        raise ValueError(
            "transpose_kernels takes one dict per layer, but these layers are stacked; unstack_layers first"
        )

    def of(path: tuple[Any, ...], leaf: jax.Array) -> Any:
        if getattr(path[-1], "key", None) != "kernel":
            return leaf
        is_head = getattr(path[0], "key", None) == "head"
        return Transposed(leaf.T, leaf if copy_head and is_head else None)

    transposed = jax.tree_util.tree_map_with_path(of, params)
    if copy_head and "head" not in params:
        transposed["head_columns"] = params["embed"]["embedding"].T
    return transposed
