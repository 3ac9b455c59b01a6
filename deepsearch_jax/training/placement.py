"""Host values onto the devices of all processes of a run, and back."""

from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

T = TypeVar("T")


def put(tree: T, sharding: Any) -> T:
    """Host values, the same in every process, as arrays over the devices of all of them.

    Args:
      sharding: one for all leaves, a tree of them, or None for the one device of a process that is alone.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def of(leaf: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    if isinstance(sharding, NamedSharding):
        return jax.tree.map(lambda leaf: of(leaf, sharding), tree)
    return jax.tree.map(of, tree, sharding)


def gather(tree: T) -> T:
    """Arrays that lie in pieces on the devices of all processes, whole on a device of each."""
    if jax.process_count() == 1:
        return tree

    def of(leaf: jax.Array) -> jax.Array:
        if leaf.is_fully_addressable:
            return leaf
        everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())  # type: ignore[attr-defined]
        return jax.jit(lambda x: x, out_shardings=everywhere)(leaf).addressable_data(0)

    return jax.tree.map(of, tree)


def committed(tree: T) -> T:
    """The same arrays, bound to the device or devices they are on; nothing is copied.

    JAX lowers programs differently for arrays that are free to move, as fresh ones are, and for those that were put
    somewhere, as restored ones are: a resumed run would find none of its compiled programs.
    """
    return jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding), tree)
