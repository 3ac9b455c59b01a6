"""Matrices stored for the small matrix products of decoding on CPU: [out, in], or as tiles that fit the cache."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

# Where one form of the product overtakes the other on the CPU backend (AVX-512, jaxlib 0.10, widths 896 to 8960).
LONG_ROW = 2048  # a dot product per output streams weights at 24-30 GB/s below this, at 1 GB/s from 4096 on
MANY_ROWS = 96  # from here on the activations fill the kernel's tiles and the plain order is as fast
TILED_ROWS = 16  # up to here tiles win: 1.3-1.9x at 1 to 8 rows, level at 16


@struct.dataclass
class Transposed:
    """A matrix [in, out] stored as its transpose; takes the place of a float array in the parameters.

    Eigen copies the operand on the right of a product into tiles. With few rows of activations that copy costs as much
    as the product, so here the weights stand on the left: y^T = W^T x^T, 1.3-1.6x faster at 8 to 64 rows in float32.

    Attributes:
      rows: [out, in].
      columns: [in, out] the same once more, for a single row of activations: it streams 1.5x faster; or None.
      tiles: the same once more as `Tiled` for a few rows, or None.
    """

    rows: jax.Array
    columns: jax.Array | None = None
    tiles: "Tiled | None" = None

    def __getitem__(self, index: Any) -> "Transposed":
        return jax.tree.map(lambda leaf: leaf[index], self)

    def matmul(self, x: jax.Array, preferred: Any = None) -> jax.Array:
        """x [..., in] -> [..., out], in the dtype of x; summed and returned in `preferred` where given."""
        weights = self.rows.astype(x.dtype)
        size_out, size_in = weights.shape
        count = math.prod(x.shape[:-1])
        flat = x.reshape(count, size_in)
        if self.tiles is not None and count <= TILED_ROWS:
            return self.tiles.matmul(x, preferred)
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


@struct.dataclass
class Tiled:
    """A matrix [in, out] stored as tiles of some output columns each; takes the place of a float array.

    The product is a batch over the tiles. What Eigen copies of a tile stays in the second cache, so the weights come
    from memory once: 26-30 GB/s up to four rows of activations, 17 at eight, where the other forms reach 16 and 13.

    Attributes:
      tiles: [out / T, C, in / C, T]; the inputs are cut into C pieces.
    """

    tiles: jax.Array

    def __getitem__(self, index: Any) -> "Tiled":
        return Tiled(self.tiles[index])

    def matmul(self, x: jax.Array, preferred: Any = None) -> jax.Array:
        """x [..., in] -> [..., out], in the dtype of x; summed and returned in `preferred` where given."""
        weights = self.tiles.astype(x.dtype)
        count, (num_tiles, pieces, piece, width) = math.prod(x.shape[:-1]), weights.shape
        flat = x.reshape(count, pieces * piece)
        if count > TILED_ROWS:
            # One tile after the other, or each would get a copy of the many activations.
            def multiply(tile: jax.Array, y: jax.Array) -> jax.Array:
                part = jnp.matmul(flat, weights[tile].reshape(-1, width), preferred_element_type=preferred)
                return jax.lax.dynamic_update_slice(y, part, (0, tile * width))

            y = jnp.zeros_like(flat, shape=(count, num_tiles * width), dtype=preferred)
            y = jax.lax.fori_loop(0, num_tiles, multiply, y)
        else:
            flat = jax.lax.optimization_barrier(flat.reshape(count, pieces, piece).swapaxes(0, 1))
            flat = jnp.broadcast_to(flat[None], (num_tiles, pieces, count, piece))
            y = jnp.einsum("tcri,tcio->tcro", flat, weights, preferred_element_type=preferred)
            y = jax.lax.optimization_barrier(y).sum(axis=1, dtype=y.dtype).swapaxes(0, 1)
        return y.reshape(*x.shape[:-1], num_tiles * width)


def tile_shape(size_in: int, size_out: int, rows: int) -> tuple[int, int]:
    """(inputs of a piece, columns) of a tile for so many rows of activations; (0, 0) where the sizes do not divide."""
    if rows == 1:
        longest, widths = size_in, (32, 64)
    else:
        longest, widths = 512, (64, 32)
    width = next((width for width in widths if size_out % width == 0), 0)
    piece = next((n for n in range(min(longest, size_in), 0, -1) if size_in % n == 0), 0)
    return (piece, width) if width and piece >= 16 else (0, 0)


def _tiled(kernel: jax.Array, shape: tuple[int, int]) -> Tiled:
    (size_in, size_out), (piece, width) = kernel.shape, shape
    return Tiled(kernel.reshape(size_in // piece, piece, size_out // width, width).transpose(2, 0, 1, 3))


def arrange_kernels(params: dict[str, Any], *, rows: int, copy_head: bool = False) -> dict[str, Any]:
    """Stores every unstacked float kernel of the decoder as the CPU backend multiplies it fastest.

    Tiles up to `TILED_ROWS` rows, [out, in] for more; the embedding is read [out, in] by a tied head.
    Args:
      params: as `unstack_layers` gives them, without a copied head.
      rows: of activations that most products will have: continuations decoded at once.
      copy_head: for so few rows keep the head in the form that suits them beside the other one (`head_copy` where it
        is tied), a tenth of a step; costs V * E numbers of memory.
    Raises:
      ValueError: the layers are stacked.
    """
    if "attention" in params["layers"]:
        raise ValueError("arrange_kernels takes one dict per layer, but these layers are stacked; unstack_layers first")

    def copies(kernel: jax.Array) -> dict[str, Any]:
        """The head [in, out] once more, for few rows."""
        shape = tile_shape(kernel.shape[0], kernel.shape[1], rows)
        if not copy_head or rows > TILED_ROWS:
            return {}
        if rows == 1 or not all(shape):
            return {"columns": kernel}
        return {"tiles": _tiled(kernel, shape)}

    def of(path: tuple[Any, ...], leaf: jax.Array) -> Any:
        if getattr(path[-1], "key", None) != "kernel":
            return leaf
        if getattr(path[0], "key", None) == "head":
            return Transposed(leaf.T, **copies(leaf))
        shape = tile_shape(leaf.shape[0], leaf.shape[1], rows)
        return _tiled(leaf, shape) if all(shape) and rows <= TILED_ROWS else Transposed(leaf.T)

    arranged = jax.tree_util.tree_map_with_path(of, params)
    if "head" not in params:
        copy = copies(params["embed"]["embedding"].T)
        if copy:
            arranged["head_copy"] = copy
    return arranged
