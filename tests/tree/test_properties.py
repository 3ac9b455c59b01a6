"""What must hold in every search: invariants over random searches after every step."""

import dataclasses
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from deepsearch_jax import tree as search
from deepsearch_jax.tree import NO_NODE, ROOT, SearchSettings, SearchStatus
from deepsearch_jax.types import Outcome
from tests.tree.scripted import SMALL, grown_trees, pick, quick_jit

CONFIGURATIONS = [
    SearchSettings(**SMALL),
    SearchSettings(**{**SMALL, "backtrace": "uct", "num_trajectories": 12}),
    SearchSettings(**{**SMALL, "force_to_frontier": False, "min_width": 1, "num_trajectories": 12}),
    SearchSettings(**{**SMALL, "expansion": "lazy", "picks_per_step": 4, "num_trajectories": 12, "node_budget": 30}),
    SearchSettings(**{**SMALL, "picks_per_step": 2, "frontier_entropy_weight": -1.0, "num_trajectories": 12}),
]
NUM_TREES, NUM_STEPS = 4, 12
jitted_backup = quick_jit(search.backup)
jitted_priority = quick_jit(search.page_priority)
jitted_slots = quick_jit(search.child_slots)
quick = hypothesis.settings(deadline=None, max_examples=25, derandomize=True)
thorough = hypothesis.settings(quick, max_examples=80)


def ancestors(tree, node):
    """Slots from `node` to the root."""
    line = []
    while node != NO_NODE:
        line.append(node)
        node = int(tree.parent[node])
    return line


@st.composite
def searches(draw):
    """Settings and a host copy of one tree somewhere in a random search."""
    settings = draw(st.sampled_from(CONFIGURATIONS))
    state = grown_trees(settings, NUM_TREES, NUM_STEPS)[draw(st.integers(0, NUM_STEPS))]
    return settings, jax.device_get(pick(state, draw(st.integers(0, NUM_TREES - 1))))


@quick
@hypothesis.given(searches())
def test_the_tree_is_one_tree(drawn):
    settings, tree = drawn
    count = int(tree.num_nodes)
    assert (tree.parent[1:count] < np.arange(1, count)).all()
    assert (tree.depth[1:count] == tree.depth[tree.parent[1:count]] + 1).all()
    assert sorted(tree.preorder[:count].tolist()) == list(range(count))
    for node in range(count):
        children = [slot for slot in tree.children[node].tolist() if slot != NO_NODE]
        assert children == np.flatnonzero(tree.parent == node).tolist()
        assert tree.num_children[node] == len(children)
        assert tree.child_rank[children].tolist() == list(range(len(children)))
        assert not (children and tree.is_terminal[node])
    assert (tree.parent[count:] == NO_NODE).all()
    assert not tree.visit_count[count:].any()
    assert not tree.tokens[count:].any()
    assert int(tree.num_tokens) == tree.segment_lengths.sum()


@quick
@hypothesis.given(searches())
def test_a_node_seen_on_a_correct_path_never_falls_below_zero(drawn):
    _, tree = drawn
    for leaf in tree.credited[: int(tree.num_credited)]:
        if tree.outcome[leaf] == Outcome.CORRECT:
            assert (tree.value[ancestors(tree, int(leaf))] >= 0).all()


@quick
@hypothesis.given(searches())
def test_counts_and_status_agree(drawn):
    settings, tree = drawn
    credited = tree.credited[: int(tree.num_credited)]
    assert tree.is_credited.sum() == len(credited) == len(set(credited.tolist()))
    assert tree.is_terminal[credited].all()
    assert tree.visit_count[ROOT] == len(credited)
    assert (tree.credited[len(credited) :] == NO_NODE).all()
    assert (tree.visit_count[tree.is_terminal] == tree.is_credited[tree.is_terminal]).all()
    status = SearchStatus(int(tree.status))
    assert (status == SearchStatus.FINISHED) == (len(credited) == settings.num_trajectories)
    assert (status == SearchStatus.RUNNING) == (tree.cursors != NO_NODE).any()


def free_places(settings, tree):
    """Per node: children that it may still get, less those that cursors wait for."""
    widths = np.asarray(search.width_at_depth(jnp.asarray(tree.depth), settings))
    waiting = np.bincount(tree.cursors[tree.cursors != NO_NODE], minlength=widths.size)
    one = 1 if settings.is_lazy else np.maximum(widths - tree.num_children, 1)
    is_node = np.arange(widths.size) < tree.num_nodes
    return np.where(is_node & ~tree.is_terminal, widths - tree.num_children - waiting * one, 0)


@thorough
@hypothesis.given(searches())
def test_no_place_is_picked_twice_and_no_node_gets_too_many_children(drawn):
    settings, tree = drawn
    places = free_places(settings, tree)
    assert (places >= 0).all()
    assert not tree.is_terminal[tree.cursors[tree.cursors != NO_NODE]].any()
    if tree.status == SearchStatus.EXHAUSTED:
        assert not places.any()
    is_idle = tree.cursors == NO_NODE
    slots = np.asarray(jitted_slots(tree, settings=settings))
    made = slots[slots != NO_NODE]
    assert made.tolist() == list(range(int(tree.num_nodes), int(tree.num_nodes) + made.size))
    assert (slots[is_idle] == NO_NODE).all()
    assert (slots[~is_idle] != NO_NODE).any(axis=1).all()
    assert int(tree.num_nodes) + made.size <= settings.max_nodes


@thorough
@hypothesis.given(searches())
def test_pages_dropped_from_the_lowest_priority_up_are_missing_at_the_ends_of_paths(drawn):
    settings, tree = drawn
    priority = np.asarray(jitted_priority(tree, settings=settings))
    count = int(tree.num_nodes)
    below_root = np.flatnonzero(tree.parent[:count] > ROOT)
    assert (priority[tree.parent[below_root]] >= priority[below_root]).all()
    read_next = {slot for cursor in tree.cursors if cursor != NO_NODE for slot in ancestors(tree, cursor)} - {ROOT}
    assert set(np.flatnonzero(priority == np.inf).tolist()) == read_next
    open_below = {slot for node in np.flatnonzero(free_places(settings, tree)) for slot in ancestors(tree, node)}
    if tree.status != SearchStatus.RUNNING:
        open_below = set()
    assert set(np.flatnonzero(priority > -np.inf).tolist()) == (open_below - {ROOT}) | read_next


@thorough
@hypothesis.given(searches())
def test_a_node_is_visited_once_when_made_and_once_per_trajectory_below_it(drawn):
    settings, tree = drawn
    hypothesis.assume(not settings.can_revisit and tree.status != SearchStatus.FINISHED)
    wanted = np.zeros(tree.parent.size, np.int32)
    wanted[1 : tree.num_nodes] = ~tree.is_terminal[1 : tree.num_nodes]
    for leaf in tree.credited[: int(tree.num_credited)]:
        wanted[ancestors(tree, int(leaf))] += 1
    np.testing.assert_array_equal(tree.visit_count, wanted)


@quick
@hypothesis.given(searches(), st.data())
def test_backup_visits_the_path_once_and_nothing_else(drawn, data):
    settings, tree = drawn
    hypothesis.assume(tree.num_nodes > 1)
    leaf = data.draw(st.integers(1, int(tree.num_nodes) - 1))
    outcome = data.draw(st.sampled_from([Outcome.CORRECT, Outcome.INCORRECT, Outcome.INCOMPLETE]))
    before = dataclasses.replace(tree, outcome=np.where(np.arange(tree.parent.size) == leaf, outcome, tree.outcome))
    before = dataclasses.replace(before, outcome=before.outcome.astype(np.int32), num_credited=np.int32(0))
    after = jax.device_get(jitted_backup(before, jnp.int32(leaf), settings=settings))
    on_path = np.isin(np.arange(tree.parent.size), ancestors(tree, leaf))
    np.testing.assert_array_equal(after.visit_count - before.visit_count, on_path)
    np.testing.assert_array_equal(after.value[~on_path], before.value[~on_path])
    reward = 1 if outcome == Outcome.CORRECT else -1
    assert (reward * (after.value - before.value) >= 0)[on_path].all()  # never against the verdict
    changing = {"visit_count", "value", "is_credited", "credited", "num_credited"}
    for name in {field.name for field in dataclasses.fields(tree)} - changing:
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)))
def test_a_search_that_has_ended_stays_as_it_is_while_others_go_on(number):
    states = grown_trees(CONFIGURATIONS[number], NUM_TREES, NUM_STEPS)
    ended = 0
    for before, after in itertools.pairwise(states):
        for tree in range(NUM_TREES):
            if int(before.status[tree]) != SearchStatus.RUNNING:
                ended += 1
                jax.tree.map(np.testing.assert_array_equal, pick(before, tree), pick(after, tree))
    assert ended
