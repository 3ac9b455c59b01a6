"""Random searches give the same trees as plain Python objects do, under every switch."""

import functools

import jax
import numpy as np
import pytest

from deepsearch_jax.tree import SearchSettings, SearchStatus, extract_trajectories, page_priority
from tests.tree.oracle import Search
from tests.tree.scripted import SMALL, Draw, jitted_steps, new_trees, pick, quick_jit, stacked_draws

NUM_TREES = 24
SWITCHES = {
    "default": {},
    "uct": {"backtrace": "uct", "num_trajectories": 12},
    "any_node": {"force_to_frontier": False, "num_trajectories": 12},
    "entropy_log_own": {
        "frontier_entropy_weight": 0.4,
        "frontier_own_value_weight": 0.3,
        "depth_bonus": "log",
        "negative_choice": "least_confident",
    },
    "constant_vanilla_paper_weight": {
        "depth_bonus": "constant",
        "backup_rule": "vanilla",
        "root_counts_in_depth_weight": False,
        "min_depth_weight": 0.3,
        "incomplete_score": 0.0,
    },
    "dynamic_width": {"min_width": 1, "max_depth": 7, "incomplete_score": -0.5, "num_trajectories": 9},
    "dynamic_uct": {"min_width": 1, "max_depth": 7, "backtrace": "uct", "exploration": 0.7, "num_trajectories": 9},
    "quirks": {"reference_quirks": True, "reference_eos_is_pad": True, "num_trajectories": 12},
    "budgets": {"node_budget": 20, "token_budget": 46},
    "small_capacity": {"capacity": 25, "num_trajectories": 20},
    "small_capacity_uct": {"capacity": 25, "num_trajectories": 40, "backtrace": "uct"},
    "eager_three_picks_children": {
        "picks_per_step": 3,
        "frontier_entropy": "children",
        "frontier_entropy_weight": -0.7,
        "min_width": 1,
        "max_depth": 7,
        "num_trajectories": 12,
        "capacity": 60,
    },
    "eager_path_budgets": {
        "picks_per_step": 2,
        "frontier_entropy": "path",
        "frontier_entropy_weight": 0.4,
        "node_budget": 24,
        "token_budget": 60,
        "num_trajectories": 20,
    },
    "lazy": {"expansion": "lazy", "num_trajectories": 12},
    "lazy_two_picks_path": {
        "expansion": "lazy",
        "picks_per_step": 2,
        "frontier_entropy": "path",
        "frontier_entropy_weight": -3.0,
        "frontier_own_value_weight": 0.3,
        "frontier_depth_weight": 0.5,
    },
    "lazy_five_picks_children": {
        "expansion": "lazy",
        "picks_per_step": 5,
        "frontier_entropy": "children",
        "frontier_entropy_weight": 0.7,
        "depth_bonus": "log",
        "min_width": 1,
        "max_depth": 5,
        "num_trajectories": 40,
        "incomplete_score": 0.0,
    },
    "lazy_budgets": {
        "expansion": "lazy",
        "picks_per_step": 3,
        "frontier_entropy_weight": -0.4,
        "node_budget": 18,
        "token_budget": 46,
        "num_trajectories": 12,
    },
    "lazy_distinct_excess": {
        "expansion": "lazy",
        "siblings": "distinct",
        "picks_per_step": 3,
        "frontier_entropy": "excess",
        "frontier_entropy_weight": -1.0,
        "num_trajectories": 14,
        "trajectories_if_solved": 4,
    },
    "enough_if_solved_uct": {"trajectories_if_solved": 3, "backtrace": "uct", "num_trajectories": 12},
    "lazy_small_capacity": {"expansion": "lazy", "picks_per_step": 4, "capacity": 18, "num_trajectories": 40},
}


def cursors_of(search: Search) -> list[int]:
    return [-1 if node is None else node.number for node in search.cursors]


def same_search(tree, search: Search) -> None:
    """Asserts that the arrays hold the tree of the objects."""
    nodes, count = search.nodes, len(search.nodes)
    assert int(tree.num_nodes) == count
    number = {id(node): node.number for node in nodes}
    np.testing.assert_array_equal(tree.parent[:count], [number.get(id(node.parent), -1) for node in nodes])
    np.testing.assert_array_equal(tree.depth[:count], [node.depth for node in nodes])
    np.testing.assert_array_equal(tree.num_children[:count], [len(node.children) for node in nodes])
    np.testing.assert_array_equal(tree.is_terminal[:count], [node.ends for node in nodes])
    np.testing.assert_array_equal(tree.is_credited[:count], [node.credited for node in nodes])
    np.testing.assert_array_equal(tree.visit_count[:count], [node.visits for node in nodes])
    np.testing.assert_allclose(tree.value[:count], [node.value for node in nodes], rtol=0, atol=1e-12)
    np.testing.assert_allclose(tree.path_entropy[:count], [node.surprise for node in nodes], rtol=0, atol=1e-12)
    np.testing.assert_allclose(tree.mean_nll[:count], [node.entropy for node in nodes], rtol=1e-6)
    np.testing.assert_array_equal(tree.credited[: len(search.credited)], [node.number for node in search.credited])
    assert int(tree.num_credited) == len(search.credited)
    assert int(tree.num_tokens) == search.sampled_tokens
    assert int(tree.num_passes) == search.backup_passes
    assert SearchStatus(int(tree.status)).name == search.status
    assert tree.cursors.tolist() == cursors_of(search)
    order, stack = [], [nodes[0]]
    while stack:
        node = stack.pop()
        order.append(node.number)
        stack.extend(reversed(node.children))
    np.testing.assert_array_equal(np.argsort(tree.preorder[:count]), order)


# The rest of the switches is met by the recorded sample or by a combination that is not slow.
SLOW = {"dynamic_uct", "quirks", "small_capacity", "lazy", "lazy_small_capacity", "lazy_budgets", "eager_path_budgets"}
WITH_PRIORITY = {"eager_three_picks_children", "lazy_two_picks_path", "uct"}
CASES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SWITCHES]


@quick_jit
def jitted_priority(trees, settings):
    return jax.vmap(functools.partial(page_priority, settings=settings))(trees)


def same_priorities(priorities, searches: list[Search]) -> None:
    """Asserts what the pages of all nodes are worth; the root and free slots nothing."""
    wanted = np.full(priorities.shape, -np.inf)
    for row, search in zip(wanted, searches):
        row[1 : len(search.nodes)] = [search.page_worth(node) for node in search.nodes[1:]]
    np.testing.assert_allclose(priorities, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_random_searches_are_those_of_plain_objects(name):
    with jax.enable_x64(True):
        settings = SearchSettings(**{**SMALL, "value_dtype": "float64", **SWITCHES[name]})
        searches = [Search(settings) for _ in range(NUM_TREES)]
        trees = new_trees(settings, NUM_TREES)
        keys = jax.random.split(jax.random.key(1), NUM_TREES)
        for step in range(40):
            trees = jitted_steps(trees, *stacked_draws(settings, range(NUM_TREES), step), keys, settings=settings)
            for seed, search in enumerate(searches):
                search.step(Draw(settings, seed, step).objects())
            np.testing.assert_array_equal(trees.cursors, [cursors_of(search) for search in searches])
            if name in WITH_PRIORITY and step % 3 == 0:
                same_priorities(jitted_priority(trees, settings=settings), searches)
        host = jax.device_get(trees)
        for number, search in enumerate(searches):
            same_search(pick(host, number), search)
        ends = {search.status for search in searches}
    assert "RUNNING" not in ends
    if name.endswith("budgets"):
        assert {"OUT_OF_NODES", "OUT_OF_TOKENS"} <= ends  # both limits were met
    if name == "lazy_five_picks_children":
        assert ends == {"EXHAUSTED"}
    if "small_capacity" in name:
        assert ends == {"OUT_OF_NODES"} or ends == {"OUT_OF_NODES", "EXHAUSTED"}


def test_trajectories_are_the_paths_of_the_objects():
    settings = SearchSettings(**SMALL)
    search, trees, draws = Search(settings), new_trees(settings, 1), {}
    keys = jax.random.split(jax.random.key(1), 1)
    extract = jax.jit(extract_trajectories, static_argnames="settings")
    for step in range(30):
        if search.status != "RUNNING":
            break
        draw, first = Draw(settings, 5, step), len(search.nodes)
        search.step(draw.objects())
        draws.update({first + rank: (draw, rank) for rank in range(len(search.nodes) - first)})
        trees = jitted_steps(trees, *stacked_draws(settings, range(5, 6), step), keys, settings=settings)
    got = jax.device_get(extract(pick(trees, 0), settings=settings))
    assert got.valid.sum() == len(search.credited) > 2
    for number, leaf in enumerate(search.credited):
        path = [node.number for node in reversed(leaf.ancestry())][1:]
        rows = [(draw.tokens[rank], draw.log_probs[rank], draw.lengths[rank]) for draw, rank in map(draws.get, path)]
        tokens = np.concatenate([tokens[:length] for tokens, _, length in rows])
        log_probs = np.concatenate([log_probs[:length] for _, log_probs, length in rows])
        depth, length = len(path), len(tokens)
        assert list(got.path[number]) == path + [-1] * (settings.max_depth - depth)
        assert got.lengths[number] == length
        np.testing.assert_array_equal(got.tokens[number, :length], tokens)
        assert not got.tokens[number, length:].any()
        np.testing.assert_array_equal(got.log_probs[number, :length], log_probs)
        np.testing.assert_array_equal(got.sampling_log_probs[number, :length], log_probs - 1)
        np.testing.assert_array_equal(got.segment_lengths[number, :depth], [row[2] for row in rows])
        values = [node.value for node in reversed(leaf.ancestry())][1:]
        np.testing.assert_allclose(got.node_values[number, :depth], values, rtol=1e-6)
        assert got.score[number] == leaf.reward
        np.testing.assert_allclose(got.entropy[number], leaf.surprise, rtol=1e-6)
    assert not got.tokens[~got.valid].any()
    assert not got.node_values[got.path < 0].any()
    assert not got.segment_lengths[got.path < 0].any()
    assert (got.path[~got.valid] == -1).all()
