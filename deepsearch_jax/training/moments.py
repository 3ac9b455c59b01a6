"""AdamW whose two moments take 1 or 2 bytes a weight each: tiles of 8-bit numbers with one scale, or bfloat16.

After 8-bit optimizers (arXiv 2110.02861): 256 weights share a scale, the map of the 8 bits is not linear, the step is
taken from the moments before they are rounded, and what is small or a vector stays float32. Two things differ:
- 256 weights are a tile of 16 x 16, not a run: tiles end where the shards of a matrix end, whichever axis is cut.
- Values are rounded up or down at random, right on average. Rounded to nearest, a mean of squares that changes by a
  thousandth a step would never leave its level (levels are a twentieth apart). The random bits are a hash of update,
  parameter and place, so that a run repeats itself, on any mesh.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

STATE_DTYPES = ("float32", "bfloat16", "int8")
TILE = 16  # weights along each of the last two axes that share a scale
MIN_TILE, MIN_SIZE = 64, 4096  # entries of a tile, of a parameter; what has fewer stays float32
PIECE = 1 << 22  # entries of a parameter from which on it is updated piece by piece: the rest never is float32 at once

# 8 bits hold 0 and levels that each are the same factor above the one before, the largest of the tile on top:
# 127 levels and a sign for the mean, down to 2^-10 of the largest; 255 for the mean of squares, down to 2^-20.
_MEAN_LEVELS, _MEAN_OCTAVES = 127, 10.0
_SQUARE_LEVELS, _SQUARE_OCTAVES = 255, 20.0


@struct.dataclass
class Tiles:
    """A moment of one parameter in 8 bits.

    Attributes:
      codes: the parameter's shape; int8 (sign and level) for the mean, uint8 (level) for the mean of squares.
      scales: [..., rows of tiles, columns of tiles] float32 the largest magnitude of each tile.
    """

    codes: jax.Array
    scales: jax.Array


Moment = jax.Array | Tiles


class SmallAdamState(NamedTuple):
    """State of `scale_by_small_adam`: updates done, and the moments of each parameter."""

    num_updates: jax.Array
    mu: Any
    nu: Any


def tile_shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Rows and columns of a tile over the last two axes; None for a matrix that stays float32."""
    tile = _tile(shape) if len(shape) >= 2 and math.prod(shape) >= MIN_SIZE else (1, 1)
    return tile if math.prod(tile) >= MIN_TILE else None


def _tile(shape: tuple[int, ...]) -> tuple[int, int]:
    rows = math.gcd(shape[-2], TILE)
    columns = math.gcd(shape[-1], TILE * TILE // rows)  # an odd number of rows is made up for by longer ones
    rows = math.gcd(shape[-2], TILE * TILE // columns)
    return rows, columns


def quantise(x: jax.Array, noise: jax.Array, *, signed: bool) -> Tiles:
    """A moment in 8 bits.

    Between two levels x goes to the upper one with probability (x - lower) / (upper - lower). Below the lowest level
    the same holds between it and 0 where `signed`; a mean of squares goes up to the lowest level, since one that is
    too small would make a step too long.
    Args:
      x: [..., n, m] float32; >= 0 unless `signed`.
      noise: the same shape, in [0, 1).
    """
    levels, octaves = _levels(signed)
    tiled = _tiled(x)
    scales = jnp.max(jnp.abs(tiled), axis=(-3, -1))
    largest = jnp.where(scales > 0, scales, 1)[..., :, None, :, None]
    share = (jnp.abs(tiled) / largest).reshape(x.shape)
    # Level c stands for 2^(octaves ((c - 1) / (levels - 1) - 1)); the one below a share:
    place = 1 + (1 + jnp.log2(jnp.maximum(share, 1e-30)) / octaves) * (levels - 1)
    below = jnp.clip(jnp.floor(place), 1, levels - 1)
    lower = _level(below, levels, octaves)
    upper = _level(below + 1, levels, octaves)
    code = below + (noise < (share - lower) / (upper - lower))
    lowest = 2.0**-octaves
    tiny = (noise < share / lowest) if signed else share > 0
    code = jnp.where(share < lowest, tiny.astype(code.dtype), code)
    if signed:
        return Tiles((jnp.sign(x) * code).astype(jnp.int8), scales)
    return Tiles(code.astype(jnp.uint8), scales)


def dequantise(moment: Tiles) -> jax.Array:
    """[..., n, m] float32 values of a moment."""
    signed = moment.codes.dtype == jnp.int8
    levels, octaves = _levels(signed)
    code = jnp.abs(moment.codes.astype(jnp.float32))
    share = jnp.where(code > 0, _level(code, levels, octaves), 0)
    share = share * jnp.sign(moment.codes.astype(jnp.float32)) if signed else share
    return (_tiled(share) * moment.scales[..., :, None, :, None]).reshape(share.shape)


def _levels(signed: bool) -> tuple[int, float]:
    return (_MEAN_LEVELS, _MEAN_OCTAVES) if signed else (_SQUARE_LEVELS, _SQUARE_OCTAVES)


def _level(code: jax.Array, levels: int, octaves: float) -> jax.Array:
    return jnp.exp2(octaves * ((code - levels) / (levels - 1)))


def _tiled(x: jax.Array) -> jax.Array:
    """[..., n, m] -> [..., n / rows, rows, m / columns, columns]."""
    rows, columns = _tile(x.shape)
    return x.reshape(*x.shape[:-2], x.shape[-2] // rows, rows, x.shape[-1] // columns, columns)


def random_bits(shape: tuple[int, ...], count: jax.Array, salt: jax.Array | int) -> jax.Array:
    """[shape] uint32 hash of (count, salt, place in the array): the finaliser of MurmurHash3, twice."""

    def mixed(x: jax.Array) -> jax.Array:
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    seed = mixed(count.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + jnp.asarray(salt, jnp.uint32))
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return mixed(mixed(index + seed) ^ seed)


def round_to_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """float32 to bfloat16, up or down at random, right on average.

    Args:
      bits: uint32 of x's shape, the lower 16 of which are random.
    """
    wide = jax.lax.bitcast_convert_type(x, jnp.uint32) + (bits & jnp.uint32(0xFFFF))
    cut = jax.lax.bitcast_convert_type(wide & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)


def scale_by_small_adam(b1: float, b2: float, eps: float, state_dtype: str) -> optax.GradientTransformation:
    """optax.scale_by_adam with moments in `state_dtype`: "bfloat16" or "int8".

    The direction is mean / (1 - b1^n) / (sqrt(squares / (1 - b2^n)) + eps) of the moments with the present gradient in
    float32; only what is kept of them for the next update is rounded.
    """

    def zeros(path: tuple[Any, ...], param: jax.Array, dtype: Any) -> Moment:
        tile = None if _is_vector(path) else tile_shape(param.shape)
        if tile is None:
            return _zeros_like(param, param.shape, jnp.float32)
        if state_dtype == "bfloat16":
            return _zeros_like(param, param.shape, jnp.bfloat16)
        scales = (*param.shape[:-2], param.shape[-2] // tile[0], param.shape[-1] // tile[1])
        return Tiles(_zeros_like(param, param.shape, dtype), _zeros_like(param, scales, jnp.float32))

    def init(params: Any) -> SmallAdamState:
        mean = jax.tree_util.tree_map_with_path(lambda path, p: zeros(path, p, jnp.int8), params)
        square = jax.tree_util.tree_map_with_path(lambda path, p: zeros(path, p, jnp.uint8), params)
        return SmallAdamState(jnp.zeros((), jnp.int32), mean, square)

    def wide(moment: Moment) -> jax.Array:
        return dequantise(moment) if isinstance(moment, Tiles) else moment.astype(jnp.float32)

    def kept(value: jax.Array, before: Moment, bits: jax.Array, signed: bool) -> Moment:
        """`value` in the form of `before`; `bits`: uint32, the lower 16 random."""
        if isinstance(before, Tiles):
            return quantise(value, (bits & jnp.uint32(0xFFFF)).astype(jnp.float32) / 2**16, signed=signed)
        return value if before.dtype == jnp.float32 else round_to_bfloat16(value, bits)

    def update(gradients: Any, state: SmallAdamState, params: Any = None) -> tuple[Any, SmallAdamState]:
        del params
        count = optax.safe_increment(state.num_updates)
        leaves, structure = jax.tree.flatten(gradients)
        moments = [jax.tree.leaves(m, is_leaf=lambda leaf: isinstance(leaf, Tiles)) for m in (state.mu, state.nu)]
        found: list[tuple[jax.Array, Moment, Moment]] = []

        def of_piece(gradient: jax.Array, old_mean: Moment, old_square: Moment, salt: jax.Array | int) -> Any:
            mean = b1 * wide(old_mean) + (1 - b1) * gradient
            square = b2 * wide(old_square) + (1 - b2) * gradient**2
            step = mean / (1 - b1**count) / (jnp.sqrt(square / (1 - b2**count)) + eps)
            bits = random_bits(gradient.shape, count, salt)
            return step, kept(mean, old_mean, bits, True), kept(square, old_square, bits >> 16, False)

        for number, (gradient, *old) in enumerate(zip(leaves, *moments, strict=True)):
            found.append(_by_pieces(of_piece, (gradient.astype(jnp.float32), *old), number << 16))
        steps, mu, nu = (jax.tree.unflatten(structure, list(column)) for column in zip(*found, strict=True))
        return steps, SmallAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _by_pieces(of_piece: Callable[..., Any], leaves: tuple[jax.Array, Moment, Moment], salt: int) -> Any:
    """of_piece(gradient, mean, square, salt) of a parameter, where it is large layer by layer or by groups of columns.

    The results take the place of what they come from. A group is every n-th tile, so that each shard of the columns has
    its part of every group.
    """
    shape = leaves[0].shape
    is_tiled = isinstance(leaves[1], Tiles) and math.prod(shape) > PIECE
    groups = 0 if len(shape) != 2 or tile_shape(shape) != (TILE, TILE) else _num_groups(shape[1] // TILE)
    if not is_tiled or (len(shape) != 3 and groups < 2):
        return of_piece(*leaves, salt)
    axis, count = (0, shape[0]) if len(shape) == 3 else (2, groups)

    def grouped(x: jax.Array) -> jax.Array:
        """[n, m] numbers or [n / TILE, m / TILE] scales with an axis of groups."""
        if axis == 0:
            return x
        size = x.shape[1] * TILE // shape[1]  # columns of a tile in x
        return x.reshape(x.shape[0], -1, groups, *([size] if size > 1 else []))

    def step(index: jax.Array, parts: Any) -> Any:
        def take(x: jax.Array) -> jax.Array:
            piece = jax.lax.dynamic_index_in_dim(x, index, axis, keepdims=False)
            return piece if axis == 0 else piece.reshape(len(piece), -1)

        done = of_piece(*jax.tree.map(take, parts), salt + index)
        return jax.tree.map(
            lambda x, new: jax.lax.dynamic_update_index_in_dim(
                x, new.reshape(*x.shape[:axis], *x.shape[axis + 1 :]), index, axis
            ),
            parts,
            done,
        )

    parts = jax.lax.fori_loop(0, count, step, jax.tree.map(grouped, leaves))
    return jax.tree.map(lambda part, leaf: part.reshape(leaf.shape), parts, leaves)


def _num_groups(tiles: int) -> int:
    """Groups that columns of so many tiles are updated in: at most 16, each with a multiple of 8 tiles (shards)."""
    return max((n for n in range(1, 17) if tiles % n == 0 and tiles // n % 8 == 0), default=1)


def _is_vector(path: tuple[Any, ...]) -> bool:
    """Norms and biases, also those of all layers stacked."""
    return bool(path) and getattr(path[-1], "key", None) in ("scale", "bias")


def _zeros_like(param: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Zeros that lie where the parameter lies; an axis that its devices do not divide any more stays whole."""
    sharding = None
    if isinstance(param, jax.Array) and not isinstance(param, jax.core.Tracer):
        sharding = param.sharding
    if isinstance(sharding, NamedSharding):
        mesh, spec = sharding.mesh, list(sharding.spec) + [None] * (len(shape) - len(sharding.spec))
        for axis, names in enumerate(spec):
            parts = math.prod(mesh.shape[n] for n in ((names,) if isinstance(names, str) else names or ()))
            spec[axis] = names if shape[axis] % parts == 0 else None
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jnp.zeros(shape, dtype, device=sharding)
