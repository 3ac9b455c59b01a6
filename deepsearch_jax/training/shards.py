"""The rows of a batch in micro-batches and over the devices of a mesh, and where the leaves of a train state lie."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepsearch_jax.training.optimizer import UpdateSettings
from deepsearch_jax.training.placement import put
from deepsearch_jax.training.rows import check_rows

DATA_AXIS, FSDP_AXIS = "data", "fsdp"

Tree = TypeVar("Tree")
# Where the leaves of the state lie, in the order of jax.tree.leaves (parameters first); None where that needs no care.
Placement = tuple[Any, ...] | None


def num_row_shards(mesh: Mesh | None) -> int:
    """Parts that the rows of a batch are cut into: devices along the axes "data" and "fsdp" together.

    Raises:
      ValueError: the mesh has no axis "data".
    """
    return num_data_shards(mesh) * (1 if mesh is None else mesh.shape.get(FSDP_AXIS, 1))


def num_data_shards(mesh: Mesh | None) -> int:
    """Devices along the mesh axis "data"; 1 without a mesh.

    Raises:
      ValueError: the mesh has no such axis.
    """
    if mesh is None:
        return 1
    if DATA_AXIS not in mesh.shape:
        raise ValueError(f"the mesh has axes {tuple(mesh.shape)}; rows are shared along an axis named {DATA_AXIS!r}")
    return mesh.shape[DATA_AXIS]


def is_mapped(mesh: Mesh | None) -> bool:
    """Whether the axis "data" is all of the mesh and shards are mapped by hand."""
    return num_data_shards(mesh) > 1 and mesh is not None and mesh.size == mesh.shape[DATA_AXIS]


def over_shards(function: Callable, mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable:
    """`function` of one shard's rows, mapped over the mesh axis "data".

    Where parameters are spread over other axes too, the compiler cuts the whole batch up along the layouts of its
    arguments (mapping one axis by hand and leaving the others to it ends XLA's partitioner in jaxlib 0.10).
    """
    if not is_mapped(mesh):
        return function
    # Varying-manual-axes checks are off: the policy comes in as a function and need not know that it is mapped.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names={DATA_AXIS}, check_vma=False
    )


def micro_batches(batch: Tree, settings: UpdateSettings, mesh: Mesh | None) -> Tree:
    """[R, ...] leaves to [R / rows, rows, ...], the rows of a micro-batch spread over the devices that share them."""
    parts = 1 if is_mapped(mesh) else num_row_shards(mesh)

    def split(x: jax.Array) -> jax.Array:
        rows = settings.micro_batch_rows * parts or x.shape[0]
        # Every device keeps its rows: they are cut within its own block, which is a row of the first axis.
        x = x.reshape(parts, -1, rows // parts, *x.shape[1:]).swapaxes(0, 1)
        x = x.reshape(-1, rows, *x.shape[3:])
        if parts == 1 or mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, _row_axes(mesh))))

    return jax.tree.map(split, batch)


def whole_batch(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """[R / rows, rows, ...] back to [R, ...] in the order of `micro_batches`."""
    parts = 1 if is_mapped(mesh) else num_row_shards(mesh)
    return x.reshape(len(x), parts, -1, *x.shape[2:]).swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _row_axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(axis for axis in (DATA_AXIS, FSDP_AXIS) if axis in mesh.shape)


def place_rows(batch: Tree, num_rows: int, settings: UpdateSettings, mesh: Mesh | None) -> Tree:
    """Checks that the rows divide and spreads them over the mesh axes "data" and "fsdp"."""
    check_rows(num_rows, num_row_shards(mesh), settings.micro_batch_rows)
    return put(batch, None if mesh is None else NamedSharding(mesh, PartitionSpec(_row_axes(mesh))))


def placement_of(state: Any, mesh: Mesh | None) -> Placement:
    """The layouts of a train state that the compiler is held to."""
    if mesh is None or is_mapped(mesh):
        return None  # everything is everywhere
    return tuple(leaf.sharding for leaf in jax.tree.leaves(state))


def placed(tree: Tree, structure: Any, placement: Placement) -> Tree:
    """The leaves laid out like the state's first ones: the parameters, or all of it."""
    if placement is None:
        return tree
    shardings = jax.tree.unflatten(structure, placement[: structure.num_leaves])
    return jax.lax.with_sharding_constraint(tree, shardings)
