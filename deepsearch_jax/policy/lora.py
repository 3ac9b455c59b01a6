"""Low-rank adapters (LoRA, arXiv 2106.09685): y = x W + (alpha / rank) x A B with W frozen and A, B trained.

The adapters of a model are a tree like its parameters, stacked over the layers:
  layers/attention/{query, key, value, output}/{a [L, in, rank], b [L, rank, out]};  layers/mlp/{gate, up, down}/{a, b}.
B starts at 0, so an untrained adapter changes nothing.
"""

import dataclasses
import functools
import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from deepsearch_jax.policy.config import ModelConfig

# Projection -> its place in a layer.
PROJECTIONS = {
    "query": ("attention", "query"),
    "key": ("attention", "key"),
    "value": ("attention", "value"),
    "output": ("attention", "output"),
    "gate": ("mlp", "gate"),
    "up": ("mlp", "up"),
    "down": ("mlp", "down"),
}


@dataclasses.dataclass(frozen=True)
class LoraSettings:
    """Which matrices get adapters, and how large.

    Attributes:
      rank: of the adapters; 0 trains all parameters instead.
      alpha: adapters are multiplied by alpha / rank.
      targets: projections of every layer, of query, key, value, output, gate, up, down.
    """

    rank: int = 0
    alpha: float = 32.0
    targets: tuple[str, ...] = tuple(PROJECTIONS)

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"rank={self.rank} must be at least 1, or 0 to train all parameters")
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha} must be positive: adapters are multiplied by alpha / rank")
        unknown = [name for name in self.targets if name not in PROJECTIONS]
        if unknown or not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets={self.targets} must be some of {', '.join(PROJECTIONS)}, each once")

    @property
    def scale(self) -> float:
        """What A B is multiplied by; 0 where there are no adapters."""
        return self.alpha / self.rank if self.rank else 0.0


@struct.dataclass
class Adapted:
    """A frozen matrix with its adapter; takes the place of a float array in the parameters.

    Attributes:
      kernel: [..., in, out].
      a, b: [..., in, rank] and [..., rank, out].
      scale: alpha / rank.
    """

    kernel: jax.Array
    a: jax.Array
    b: jax.Array
    scale: float = struct.field(pytree_node=False)

    def __getitem__(self, index: Any) -> "Adapted":
        return jax.tree.map(lambda leaf: leaf[index], self)

    def matmul(self, x: jax.Array, preferred: Any = None) -> jax.Array:
        """x [..., in] -> [..., out], in the dtype of x; summed and returned in `preferred` where given."""
        y = jnp.matmul(x, self.kernel.astype(x.dtype), preferred_element_type=preferred)
        low = jnp.matmul(x, self.a.astype(x.dtype))
        added = jnp.matmul(low, self.b.astype(x.dtype), preferred_element_type=preferred)
        return y + added * jnp.asarray(self.scale, added.dtype)


def init_adapters(config: ModelConfig, settings: LoraSettings, key: jax.Array, dtype: str = "float32") -> Any:
    """Fresh adapters: A uniform in +-1 / sqrt(in), as in published implementations, B zero."""
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    size, inner = config.hidden_size, config.intermediate_size
    shapes = {
        "query": (size, heads), "key": (size, kv_heads), "value": (size, kv_heads), "output": (heads, size),
        "gate": (size, inner), "up": (size, inner), "down": (inner, size),
    }  # fmt: skip
    layers: dict[str, dict[str, Any]] = {}
    for number, (name, (block, module)) in enumerate(PROJECTIONS.items()):
        if name not in settings.targets:
            continue
        (size_in, size_out), bound = shapes[name], 1 / math.sqrt(shapes[name][0])
        a_key = jax.random.fold_in(key, number)  # of the projection, whatever the other targets
        a = jax.random.uniform(a_key, (config.num_layers, size_in, settings.rank), dtype, -bound, bound)
        b = jnp.zeros((config.num_layers, settings.rank, size_out), dtype)
        layers.setdefault(block, {})[module] = {"a": a, "b": b}
    return {"layers": layers}


def freeze(config: ModelConfig, params: Any) -> Any:
    """Parameters that are not trained: matrices in the compute dtype, which they are cast to anyway."""

    def of(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf.astype(config.dtypes[1]) if path[-1].key in ("kernel", "embedding") else leaf

    return jax.tree_util.tree_map_with_path(of, params)


def _with_kernels(base: Any, adapters: Any, join: Any) -> Any:
    """`base` with join(kernel, a, b) in the place of every kernel that has an adapter."""
    layers = dict(base["layers"])
    for block, modules in adapters["layers"].items():
        changed = {
            name: layers[block][name] | {"kernel": join(layers[block][name]["kernel"], pair["a"], pair["b"])}
            for name, pair in modules.items()
        }
        layers[block] = layers[block] | changed
    return base | {"layers": layers}


def adapt(base: Any, adapters: Any, scale: float) -> Any:
    """Parameters for a forward pass through the base and, where there are any, its adapters (stacked layers)."""
    return _with_kernels(base, adapters, lambda kernel, a, b: Adapted(kernel, a, b, scale))


@functools.partial(jax.jit, static_argnames=("scale", "dtype"))
def merge(base: Any, adapters: Any, *, scale: float, dtype: str | None = None) -> Any:
    """Plain parameters W + scale A B, added in float32 at least.

    Args:
      dtype: of the matrices that have adapters; default: their own.
    """

    def join(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        wide = jnp.promote_types(kernel.dtype, jnp.float32)
        product = jnp.matmul(a.astype(wide), b.astype(wide), precision=jax.lax.Precision.HIGHEST)
        return (kernel.astype(wide) + scale * product).astype(dtype or kernel.dtype)

    return _with_kernels(base, adapters, join)


@jax.jit
def _checksums(params: Any) -> Any:
    """[] uint32 of every parameter; whole numbers, so the same on any mesh."""

    def of(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
        place, stride = jnp.ones(leaf.shape, jnp.uint32), 2  # odd, so that no bit of a value is lost in the product
        for axis in reversed(range(leaf.ndim)):
            place = place + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(stride % 2**32)
            stride *= leaf.shape[axis]
        return jnp.sum(bits * place, dtype=jnp.uint32)

    return jax.tree.map(of, params)


def weights_fingerprint(params: Any) -> str:
    """A short name of these weights as bfloat16: the same for any layout and for the frozen copy of the same model."""
    found = jax.tree_util.tree_leaves_with_path(jax.device_get(_checksums(params)))
    text = ";".join(f"{jax.tree_util.keystr(path)}={int(np.asarray(value))}" for path, value in found)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
