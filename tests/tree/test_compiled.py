"""The batched step as it is compiled: traced once, spread over devices, key handling."""

import functools

import chex
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deepsearch_jax.tree import (
    SearchSettings,
    batched_search_step,
    extract_trajectories,
    init_tree,
    page_priority,
    search_step,
)
from tests.tree.scripted import SMALL, grown_trees, new_trees, stacked_draws

MODES = {
    "frontier": {},
    "uct": {"backtrace": "uct"},
    "lazy": {"expansion": "lazy", "picks_per_step": 2, "frontier_entropy": "children", "frontier_entropy_weight": -1.0},
}


@pytest.mark.parametrize(
    ("mode", "axis_type"),
    [
        pytest.param(
            mode, axis_type, marks=pytest.mark.slow if (mode == "lazy") == (axis_type is AxisType.Auto) else ()
        )
        for mode in MODES
        for axis_type in (AxisType.Auto, AxisType.Explicit)
    ],
)
def test_eight_devices_give_the_trees_of_one(mode, axis_type):
    settings = SearchSettings(**{**SMALL, **MODES[mode]})
    wanted = grown_trees(settings, 8, 6)[-1]
    mesh = jax.make_mesh((8,), ("problem",), axis_types=(axis_type,))
    spread = functools.partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec("problem")))
    step = jax.jit(batched_search_step, static_argnames="settings", donate_argnames="trees")
    with jax.set_mesh(mesh):  # explicit axes are resolved against the mesh in force
        trees, keys = spread(new_trees(settings, 8)), spread(jax.random.split(jax.random.key(0), 8))
        for number in range(6):
            trees = step(trees, *spread(stacked_draws(settings, range(8), number)), keys, settings=settings)
        got = jax.jit(jax.vmap(functools.partial(extract_trajectories, settings=settings)))(trees)
        priorities = jax.jit(jax.vmap(functools.partial(page_priority, settings=settings)))(trees)
    for field in (trees.value, trees.tokens, got.tokens, priorities):
        assert len(field.sharding.device_set) == 8
    chex.assert_trees_all_close(jax.device_get(trees), jax.device_get(wanted), rtol=1e-6)


@pytest.mark.parametrize("mode", ["frontier", "uct", pytest.param("lazy", marks=pytest.mark.slow)])
def test_a_search_is_traced_once(mode):
    settings = SearchSettings(**{**SMALL, **MODES[mode]})
    # A weakly typed field would come back strongly typed, and the second step would compile anew.
    assert not any(field.weak_type for field in jax.tree.leaves(init_tree(settings)))
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(n=1)(batched_search_step)
    step = jax.jit(counted, static_argnames="settings", donate_argnames="trees")
    trees, keys = new_trees(settings, 2), jax.random.split(jax.random.key(0), 2)
    for number in range(4):
        trees = step(trees, *stacked_draws(settings, range(2), number), keys, settings=settings)


def test_a_batch_of_one_equals_a_row_of_many_and_one_tree_alone():
    settings = SearchSettings(**{**SMALL, "backtrace": "uct"})
    many = grown_trees(settings, 8, 6)[-1]
    alone = jax.jit(search_step, static_argnames="settings")
    keys = jax.random.split(jax.random.key(0), 8)
    tree = jax.tree.map(lambda field: field[0], new_trees(settings, 1))
    for number in range(6):
        drawn = jax.tree.map(lambda rows: rows[0], stacked_draws(settings, range(5, 6), number))
        tree = alone(tree, *drawn, keys[5], settings=settings)
    chex.assert_trees_all_close(jax.device_get(tree), jax.tree.map(lambda rows: np.asarray(rows[5]), many), rtol=1e-6)


def test_keys_are_used_once_and_only_where_choice_is_random():
    settings = SearchSettings(**{**SMALL, "negative_choice": "random", "force_to_frontier": False})
    trees = new_trees(settings, 4)
    step = jax.jit(batched_search_step, static_argnames="settings")
    ends = []
    for seed in (0, 0, 1):
        state = trees
        for number in range(10):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), 4)
            state = step(state, *stacked_draws(settings, range(4), number), keys, settings=settings)
        ends.append(jax.device_get(state))
    chex.assert_trees_all_equal(ends[0], ends[1])
    assert (ends[0].credited != ends[2].credited).any()
    with jax.debug_key_reuse(True):
        jax.jit(search_step, static_argnames="settings").lower(
            jax.tree.map(lambda field: field[0], trees),
            *jax.tree.map(lambda rows: rows[0], stacked_draws(settings, range(1), 0)),
            jax.random.key(0),
            settings=settings,
        )
