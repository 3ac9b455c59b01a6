"""Random searches give the same trees as plain Python objects do, under every switch."""

import jax
import numpy as np
import pytest

from deepsearch_jax.tree import SearchSettings, SearchStatus, extract_trajectories
from tests.tree.oracle import Search
from tests.tree.scripted import SMALL, Draw, jitted_steps, new_trees, pick, stacked_draws

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
}


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
    assert int(tree.current) == (-1 if search.current is None else search.current.number)
    order, stack = [], [nodes[0]]
    while stack:
        node = stack.pop()
        order.append(node.number)
        stack.extend(reversed(node.children))
    np.testing.assert_array_equal(np.argsort(tree.preorder[:count]), order)


# The rest of the switches is met by the recorded sample or by a combination that is not slow.
SLOW = {"dynamic_uct", "quirks", "small_capacity"}
CASES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SWITCHES]


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
                search.step(Draw(settings, seed, step).objects()[0])
            wanted = [-1 if search.current is None else search.current.number for search in searches]
            np.testing.assert_array_equal(trees.current, wanted)
        host = jax.device_get(trees)
        for number, search in enumerate(searches):
            same_search(pick(host, number), search)
        ends = {search.status for search in searches}
    assert "RUNNING" not in ends
    if name == "budgets":
        assert {"OUT_OF_NODES", "OUT_OF_TOKENS"} <= ends  # both limits were met
    if name.startswith("small_capacity"):
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
        search.step(draw.objects()[0])
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
