"""Correct solutions that searches found, kept on the device, and the choice of what the next round works on."""

from deepsearch_jax.cache.filtering import (
    FilterSettings,
    GroupFill,
    choose_cached,
    group_fill,
    is_hard,
    next_subset,
    subset_indices,
)
from deepsearch_jax.cache.solution_cache import (
    CachedPaths,
    SolutionCache,
    contains,
    init_cache,
    insert,
    insert_many,
    lookup,
    remove,
    shard_cache,
)

__all__ = [
    "CachedPaths",
    "FilterSettings",
    "GroupFill",
    "SolutionCache",
    "choose_cached",
    "contains",
    "group_fill",
    "init_cache",
    "insert",
    "insert_many",
    "is_hard",
    "lookup",
    "next_subset",
    "remove",
    "shard_cache",
    "subset_indices",
]
