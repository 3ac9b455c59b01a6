"""How the policy's parameters are laid out over a mesh with the axes data, fsdp and tensor: rules by logical axis.

Every parameter names its axes logically (what they count), a rule gives each logical axis a mesh axis. `fsdp` spreads
the storage of parameters, gradients and moments and shares out rows like `data`; `tensor` splits the matrices
themselves, a head or an inner unit staying whole (Megatron, arXiv 1909.08053). An axis that its mesh axis does not
divide stays whole, so every model runs on every mesh.
"""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepsearch_jax.policy.config import ModelConfig

# Logical axis -> mesh axis.
RULES = {"embed": "fsdp", "vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "inner": "tensor"}

# (name of the module, name of the parameter) -> logical axes, the stacked layer axis left out.
_AXES: dict[tuple[str, str], tuple[str | None, ...]] = {
    ("embed", "embedding"): ("vocab", "embed"),
    ("head", "kernel"): ("embed", "vocab"),
    ("query", "kernel"): ("embed", "heads"),
    ("query", "bias"): ("heads",),
    ("key", "kernel"): ("embed", "kv_heads"),
    ("key", "bias"): ("kv_heads",),
    ("value", "kernel"): ("embed", "kv_heads"),
    ("value", "bias"): ("kv_heads",),
    ("output", "kernel"): ("heads", "embed"),
    ("gate", "kernel"): ("embed", "inner"),
    ("up", "kernel"): ("embed", "inner"),
    ("down", "kernel"): ("inner", "embed"),
}
# Adapters are cut as their matrix is; the rank is not.
_AXES |= {
    (module, name): (axes[0], None) if name == "a" else (None, axes[1])
    for (module, of), axes in list(_AXES.items())
    if of == "kernel"
    for name in ("a", "b")
}


def logical_axes(path: tuple[Any, ...], num_axes: int) -> tuple[str | None, ...]:
    """Logical axes of the parameter at a key path of the parameter tree; norms have none.

    Raises:
      ValueError: a matrix that no rule knows.
    """
    names = [str(getattr(key, "key", key)) for key in path]
    axes = _AXES.get((names[-2], names[-1])) if len(names) > 1 else None
    if axes is None:
        if names[-1] != "scale":
            raise ValueError(f"no sharding rule knows the parameter {'/'.join(names)}; add its axes to policy/sharding")
        axes = (None,)
    return (None,) * (num_axes - len(axes)) + axes


def param_specs(config: ModelConfig, params: Any, mesh: Mesh) -> Any:
    """A PartitionSpec for every parameter, stacked or unstacked.

    Args:
      params: arrays or anything with shapes.
      mesh: any of the axes data, fsdp and tensor.
    """
    # Splitting in the middle of a head would cut its attention apart.
    units = {"heads": config.num_heads, "kv_heads": config.num_kv_heads}

    def of(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        spec = []
        for axis, size in zip(logical_axes(path, leaf.ndim), leaf.shape, strict=True):
            mesh_axis = RULES.get(axis or "")
            parts = mesh.shape.get(mesh_axis, 1) if mesh_axis else 1
            spec.append(mesh_axis if parts > 1 and units.get(axis or "", size) % parts == 0 else None)
        return PartitionSpec(*spec)

    return jax.tree_util.tree_map_with_path(of, params)


def param_shardings(config: ModelConfig, params: Any, mesh: Mesh) -> Any:
    """The layout of every parameter by `param_specs`."""
    specs = param_specs(config, params, mesh)
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )


def bytes_per_device(params: Any) -> int:
    """Bytes of the parameters that the fullest device holds."""

    def of(leaf: jax.Array) -> int:
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(of(leaf) for leaf in jax.tree.leaves(params))
