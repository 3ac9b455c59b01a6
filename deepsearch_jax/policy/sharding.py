"""How the policy's parameters are laid out over a mesh with the axes data, fsdp and tensor: rules by logical axis.

Every parameter names its axes logically (what they count), a rule gives each logical axis a mesh axis. `fsdp` spreads
the storage of parameters, gradients and moments and shares out rows like `data`; `tensor` splits the matrices
themselves, a head or an inner unit staying whole (Megatron, arXiv 1909.08053). An axis that its mesh axis does not
divide stays whole, so every model runs on every mesh.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepsearch_jax.policy.config import ModelConfig

# Rows of a batch are shared along these, and so are the tokens of all rows as one list.
ROW_AXES = ("data", "fsdp")

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
    """Logical axes of the parameter at a key path of the parameter tree; norms and rotary frequencies have none.

    Raises:
      ValueError: a matrix that no rule knows.
    """
    names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    if len(names) > 2 and names[-2] == "kernel":  # a frozen matrix with its adapter
        names = [*names[:-2], names[-1]]
    axes = _AXES.get((names[-2], names[-1])) if len(names) > 1 else None
    if axes is None:
        if names[-1] not in ("scale", "frequencies"):
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


def row_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of the mesh that rows are shared along."""
    return tuple(axis for axis in ROW_AXES if axis in mesh.shape)


def num_row_parts(mesh: Mesh | None) -> int:
    """Parts that rows are cut into."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in row_axes(mesh))


def by_rows(x: jax.Array, mesh: Mesh | None, axis: int = 0) -> jax.Array:
    """x with its axis `axis` (rows, or the tokens of rows) shared like rows and the others left to the compiler."""
    if mesh is None:
        return x
    free = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec = PartitionSpec(*free[:axis], row_axes(mesh), *free[axis + 1 :])
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def gathered(
    config: ModelConfig, params: Any, mesh: Mesh | None, *, axes: tuple[str, ...] = ("fsdp",), keep_dtype: bool = False
) -> Any:
    """Parameters as every device computes with them: whole along `axes`, sent in the compute dtype.

    Left to itself the compiler keeps the weights in pieces and sums products of all rows over the devices instead, so
    that no device has less than all rows' activations. The gradient goes back in pieces (ZeRO, arXiv 1910.02054).
    Args:
      params: all or a part of the parameter tree, layers stacked or one alone.
      keep_dtype: turn back to the dtype of the parameters, so that their gradients are summed in it.
    """
    if mesh is None or all(mesh.shape.get(axis, 1) == 1 for axis in axes):
        return params

    def of(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        if not set(axes) & set(spec):
            return leaf
        whole = PartitionSpec(*(None if axis in axes else axis for axis in spec))
        places = NamedSharding(mesh, spec), NamedSharding(mesh, whole)
        return _gather(leaf, *places, config.dtypes[1], leaf.dtype if keep_dtype else config.dtypes[1])

    return jax.tree.map(of, params, param_specs(config, params, mesh))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gather(leaf: jax.Array, pieces: NamedSharding, whole: NamedSharding, sent: Any, dtype: Any) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf.astype(sent), whole).astype(dtype)


def _gather_forward(
    leaf: jax.Array, pieces: NamedSharding, whole: NamedSharding, sent: Any, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    return _gather(leaf, pieces, whole, sent, dtype), jnp.zeros((), leaf.dtype)  # the way back needs the dtype alone


def _gather_backward(
    pieces: NamedSharding, whole: NamedSharding, sent: Any, dtype: Any, like: jax.Array, gradient: jax.Array
) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, pieces).astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def looked_up(config: ModelConfig, table: jax.Array, tokens: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Rows [..., E] of the embedding [V, E] in the compute dtype; with a mesh tokens are [X], shared like rows.

    Each device reads its tokens from the whole table and adds up their gradients on its own, in the table's dtype: the
    compiler would bring the gradients of all tokens to every device.
    """
    if mesh is None:
        return table[tokens].astype(config.dtypes[1])
    whole = gathered(config, {"embed": {"embedding": table}}, mesh, axes=("fsdp", "tensor"), keep_dtype=True)
    rows = PartitionSpec(row_axes(mesh))

    def of_device(table: jax.Array, tokens: jax.Array) -> jax.Array:
        return table[tokens].astype(config.dtypes[1])

    return jax.shard_map(of_device, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows, check_vma=False)(
        whole["embed"]["embedding"], tokens
    )


def over_rows(
    function: Callable[..., jax.Array], config: ModelConfig, mesh: Mesh | None, num_heads_axes: int
) -> Callable[..., jax.Array]:
    """`function` of rows, mapped by hand over the devices that share rows and, where heads divide, over `tensor`.

    What gathers and scatters among the rows of a batch is left whole by the compiler, on every device.
    Args:
      function: its first `num_heads_axes` arguments and its result are [R, T, heads, ...], further ones [R, T] or [].
    """
    if mesh is None:
        return function
    is_split = "tensor" in mesh.shape and config.num_heads % mesh.shape["tensor"] == 0
    is_split = is_split and config.num_kv_heads % mesh.shape["tensor"] == 0
    heads = PartitionSpec(row_axes(mesh), None, "tensor" if is_split else None)

    def mapped(*arguments: jax.Array) -> jax.Array:
        others = (PartitionSpec(row_axes(mesh)) if x.ndim else PartitionSpec() for x in arguments[num_heads_axes:])
        specs = (*(heads,) * num_heads_axes, *others)
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)(*arguments)

    return mapped


def bytes_per_device(params: Any) -> int:
    """Bytes of the parameters that the fullest device holds; arrays, or shapes with shardings."""

    def of(leaf: jax.Array) -> int:
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(of(leaf) for leaf in jax.tree.leaves(params))
