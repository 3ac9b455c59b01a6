"""Lazy expansion, several cursors and page priorities on small trees with numbers worked out by hand."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax import tree as search
from deepsearch_jax.tree import NO_NODE, SearchSettings, SearchStatus
from deepsearch_jax.types import Outcome, Segments
from tests.tree.scripted import quick_jit
from tests.tree.test_by_hand import KEY, at

LAZY = SearchSettings(
    expansion="lazy", expansion_width=2, max_depth=4, segment_length=2, num_trajectories=3, capacity=12
)
PAIR = dataclasses.replace(LAZY, picks_per_step=2)
EAGER_PAIR = dataclasses.replace(PAIR, expansion="eager")
C, W, NONE = Outcome.CORRECT, Outcome.INCORRECT, Outcome.NONE
INF = math.inf

jitted_add = quick_jit(search.add_children)
jitted_step = quick_jit(search.search_step)


def drawn(lengths, log_probs, settings):
    """Segments [F, C, ...] of the given lengths whose tokens have the log-prob given per segment."""
    shape = settings.picks_per_step, settings.children_per_expansion
    lengths = np.array(lengths, np.int32).reshape(shape)
    in_segment = np.arange(settings.segment_length) < lengths[..., None]
    rows = np.where(in_segment, np.array(log_probs, np.float32).reshape(*shape, 1), np.float32(0))
    ends = lengths < settings.segment_length
    return Segments(np.where(in_segment, np.int32(1), np.int32(0)), lengths, rows, rows, ends)


def step(tree, outcomes, settings):
    """One step in which a row with an outcome is a terminal of one token, and the others are full segments."""
    verdicts = np.array(outcomes, np.int32).reshape(settings.picks_per_step, settings.children_per_expansion)
    lengths = np.where(verdicts == NONE, 2, 1)
    segments = drawn(lengths, np.full(verdicts.shape, -1.0), settings)
    return jitted_step(tree, segments, verdicts, KEY, settings=settings)


def late_tree(settings=LAZY):
    """Root 0 with 1 and, made last but one, 3; below 1 there are 2 and, made last, the terminal 4."""
    tree = search.init_tree(settings)
    for node, length, log_prob in ((0, 2, -0.5), (1, 2, -0.25), (0, 2, -1.0), (1, 1, -2.0)):
        tree = jitted_add(at(tree, node), drawn([length], [log_prob], settings), jnp.full((1, 1), W), settings=settings)
    return tree


def status(tree):
    return SearchStatus(int(tree.status))


def test_late_children_come_behind_the_subtrees_of_their_older_siblings():
    tree = late_tree()
    assert tree.parent[:6].tolist() == [-1, 0, 1, 0, 1, -1]
    assert tree.children[:2].tolist() == [[1, 3], [2, 4]]
    assert tree.child_rank[:5].tolist() == [-1, 0, 0, 1, 1]
    assert tree.preorder[:5].tolist() == [0, 1, 2, 4, 3]  # 0 1 2 4 3
    assert tree.is_terminal[:5].tolist() == [False, False, False, False, True]


# Node 2 has the path mean (2 * 0.5 + 2 * 0.25) / 4. The children of the root have two tokens each, (1.0 + 2.0) / 4;
# those of node 1 two and one, (0.5 + 2.0) / 3; nodes 2 and 3 have none and are scored by their path.
ENTROPIES = {
    "own": [0.0, 0.5, 0.25, 1.0],
    "path": [0.0, 0.5, 0.375, 1.0],
    "children": [0.75, 2.5 / 3, 0.375, 1.0],
}


@pytest.mark.parametrize("kind", ENTROPIES)
def test_lazy_frontier_scores_of_hand_made_values(kind):
    settings = dataclasses.replace(
        LAZY,
        frontier_entropy=kind,
        frontier_value_weight=0.4,
        frontier_entropy_weight=-3.0,
        frontier_depth_weight=0.05,
        frontier_own_value_weight=0.2,
    )
    tree = late_tree(settings)
    np.testing.assert_allclose(search.frontier_entropies(tree, settings)[:4], ENTROPIES[kind], rtol=1e-6)
    tree = dataclasses.replace(
        tree,
        visit_count=tree.visit_count.at[jnp.array([1, 2])].set(jnp.array([4, 2])),
        value=tree.value.at[jnp.array([1, 2])].set(jnp.array([-2.0, 3.0])),
    )
    q_values, depths = [0.0, -0.5, 1.5, 0.0], [0, 1, 2, 1]
    wanted = [
        (0.4 + 0.2) * math.tanh(q) - 3.0 * entropy + 0.05 * math.sqrt(depth / 4)
        for q, entropy, depth in zip(q_values, ENTROPIES[kind], depths)
    ]
    np.testing.assert_allclose(search.frontier_scores(tree, settings)[:4], wanted, rtol=1e-6)


def test_eager_frontier_scores_read_the_same_entropies():
    tree = late_tree()
    for kind, entropies in ENTROPIES.items():
        settings = dataclasses.replace(
            LAZY, expansion="eager", frontier_entropy=kind, frontier_entropy_weight=2.0, frontier_depth_weight=0.0
        )
        np.testing.assert_allclose(search.frontier_scores(tree, settings)[1:4], 2 * np.array(entropies[1:]), rtol=1e-6)


def test_the_places_of_a_lazy_tree():
    tree = late_tree()
    # 0 and 1 have their two children, 4 is terminal: two places each at 2 and 3.
    assert np.flatnonzero(search.can_be_selected(tree, True, LAZY)).tolist() == [2, 3]
    two, three = jnp.int32(2), jnp.int32(3)
    assert int(search.select_frontier(tree, True, LAZY)) == 2  # the deeper one
    assert int(search.select_frontier(tree, True, LAZY, [two])) == 2
    assert int(search.select_frontier(tree, True, LAZY, [two, two])) == 3
    assert int(search.select_frontier(tree, True, LAZY, [two, three, two, three])) == NO_NODE
    flat = dataclasses.replace(LAZY, frontier_depth_weight=0.0)
    wide = dataclasses.replace(flat, expansion_width=3)  # all tie: depth-first order, from the root on
    assert [int(search.select_frontier(tree, True, setting)) for setting in (flat, wide)] == [2, 0]


def test_a_lazy_search_step_by_step():
    tree = search.init_tree(LAZY)
    assert (tree.cursors.tolist(), search.child_slots(tree, LAZY).tolist()) == ([0], [[1]])
    tree = step(step(tree, [NONE], LAZY), [NONE], LAZY)
    # A descent: one child a node, each visited once.
    assert (tree.parent[:3].tolist(), tree.visit_count[:3].tolist(), int(tree.current)) == ([-1, 0, 1], [0, 1, 1], 2)
    tree = step(tree, [W], LAZY)
    # Weights 1/4 .. 1. Places: root Q = -1/4; 1: Q = -1/2 / 2, the same but deeper; 2: Q = -3/4 / 2.
    np.testing.assert_allclose(tree.value[:4], [-1 / 4, -1 / 2, -3 / 4, -1], rtol=1e-6)
    assert (tree.visit_count[:4].tolist(), int(tree.current)) == ([1, 2, 2, 1], 1)
    tree = step(tree, [C], LAZY)
    # Leaf 4 at depth 2: weights 1/3, 2/3, 1, negatives forgotten. 1 is full; root Q = 1/6 is better than 2, Q = -3/8.
    np.testing.assert_allclose(tree.value[:5], [1 / 3, 2 / 3, -3 / 4, -1, 1], rtol=1e-6)
    assert (tree.visit_count[:5].tolist(), int(tree.current)) == ([2, 3, 2, 1, 1], 0)
    tree = step(tree, [NONE], LAZY)
    # 5 is the second child of the root; its older sibling gets no visit. The descent goes on below it.
    assert (tree.parent[5], tree.child_rank[5], int(tree.current)) == (0, 1, 5)
    assert tree.visit_count[:6].tolist() == [2, 3, 2, 1, 1, 1]
    tree = step(tree, [W], LAZY)
    assert (tree.credited.tolist(), status(tree), tree.cursors.tolist()) == ([3, 4, 6], SearchStatus.FINISHED, [-1])
    assert int(tree.num_passes) == 6


def test_two_cursors_share_a_node_while_it_has_room():
    tree = search.init_tree(PAIR)
    assert (tree.cursors.tolist(), search.child_slots(tree, PAIR).tolist()) == ([0, 0], [[1], [2]])
    tree = step(tree, [NONE, NONE], PAIR)
    assert (tree.cursors.tolist(), tree.child_rank[:3].tolist()) == ([1, 2], [-1, 0, 1])
    tree = step(tree, [W, NONE], PAIR)
    # Leaf 3 below 1 is wrong: 1 has Q = -1/3. Free for the first cursor: a place at 1, one at 2 (Q 0, depth 1) and two
    # at 4 (Q 0, depth 2), which the second cursor has just made. The first goes to 4, and so does the second.
    assert (tree.parent[:5].tolist(), tree.cursors.tolist()) == ([-1, 0, 0, 1, 2], [4, 4])
    assert search.child_slots(tree, PAIR).tolist() == [[5], [6]]
    last = dataclasses.replace(PAIR, num_trajectories=2)
    both = dataclasses.replace(tree, credited=tree.credited[:2])
    finished = step(both, [C, C], last)
    # The search ends with leaf 5; leaf 6, made in the same step, gets neither credit nor visit.
    assert (finished.credited.tolist(), status(finished)) == ([3, 5], SearchStatus.FINISHED)
    assert (finished.cursors.tolist(), int(finished.num_nodes), int(finished.num_passes)) == ([-1, -1], 7, 5)
    assert finished.visit_count[:7].tolist() == [2, 2, 2, 1, 2, 1, 0]
    assert search.child_slots(finished, PAIR).tolist() == [[-1], [-1]]
    # It ends with leaf 6: the first cursor has moved to 5 by then, and is taken back.
    finished = step(both, [NONE, C], last)
    assert (finished.credited.tolist(), finished.cursors.tolist()) == ([3, 6], [-1, -1])
    tree = step(tree, [NONE, W], PAIR)
    # 4 is full. The first descends to 5. The second met leaf 6: of the places left the other one at 5 is best, Q = 0.
    assert tree.cursors.tolist() == [5, 5]


def test_a_cursor_without_a_place_waits_for_one():
    settings = dataclasses.replace(PAIR, expansion_width=1)
    tree = search.init_tree(settings)
    assert tree.cursors.tolist() == [0, NO_NODE]
    # One place in the whole tree: a chain, which one cursor makes.
    tree = step(tree, [NONE, C], settings)
    assert (tree.cursors.tolist(), int(tree.num_nodes)) == ([1, NO_NODE], 2)
    assert search.child_slots(tree, settings).tolist() == [[2], [-1]]
    ends = drawn([1, 1], [-1.0, -1.0], settings)
    assert search.child_is_terminal(tree, ends, settings).tolist() == [[True], [False]]
    tree = step(tree, [W, NONE], settings)
    assert (tree.cursors.tolist(), status(tree)) == ([NO_NODE, NO_NODE], SearchStatus.EXHAUSTED)


def test_eager_cursors_expand_different_nodes():
    tree = search.init_tree(EAGER_PAIR)
    assert (tree.cursors.tolist(), search.child_slots(tree, EAGER_PAIR).tolist()) == ([0, -1], [[1, 2], [-1, -1]])
    tree = step(tree, [[NONE, NONE], [C, C]], EAGER_PAIR)
    # The idle rows are dropped. The first cursor descends to 1; the second takes the best place left, 2.
    assert (tree.cursors.tolist(), int(tree.num_nodes), int(tree.num_passes)) == ([1, 2], 3, 1)
    assert search.child_slots(tree, EAGER_PAIR).tolist() == [[3, 4], [5, 6]]
    tree = step(tree, [[W, NONE], [NONE, NONE]], EAGER_PAIR)
    # 1 and its leaf 3 turn bad. The first cursor takes 5, whose parent has Q = 0; then the second descends to 6.
    assert (tree.cursors.tolist(), tree.parent[3:7].tolist()) == ([5, 6], [1, 1, 2, 2])
    assert tree.visit_count[:7].tolist() == [1, 2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("limit", [pytest.param("node_budget", marks=pytest.mark.slow), "capacity"])
def test_expansions_of_all_cursors_fit_the_budgets_together(limit):
    settings = dataclasses.replace(PAIR, **{limit: 4})
    tree = step(search.init_tree(settings), [NONE, NONE], settings)
    # 3 nodes; one more is allowed: the first cursor has it, the second waits.
    assert (tree.cursors.tolist(), status(tree)) == ([1, NO_NODE], SearchStatus.RUNNING)
    tree = step(tree, [NONE, NONE], settings)
    assert (tree.cursors.tolist(), status(tree)) == ([NO_NODE, NO_NODE], SearchStatus.OUT_OF_NODES)
    assert int(tree.num_nodes) == 4
    least = dataclasses.replace(PAIR, **{limit: 2})
    assert search.init_tree(least).cursors.tolist() == [0, NO_NODE]


def test_page_priority_of_hand_made_places():
    # With depth as the only term: 2 at depth 2 has sqrt(2/4), 3 at depth 1 sqrt(1/4).
    settings = dataclasses.replace(LAZY, frontier_value_weight=0.0, frontier_depth_weight=1.0)
    tree = late_tree(settings)
    two, three, free = math.sqrt(0.5), 0.5, [-INF] * 7
    none = search.page_priority(at(tree, NO_NODE), settings)
    assert none.dtype == jnp.float32
    np.testing.assert_allclose(none, [-INF, two, two, three, -INF, *free], rtol=1e-6)
    waiting = search.page_priority(at(tree, 2), settings)
    np.testing.assert_allclose(waiting, [-INF, INF, INF, three, -INF, *free], rtol=1e-6)
    # A full node keeps nothing for itself, only for what is below it.
    narrow = dataclasses.replace(settings, min_width=1, width_decay=1)  # widths 2 2 1 1: one place at 2, taken
    child = jitted_add(at(tree, 2), drawn([1], [-1.0], narrow), jnp.full((1, 1), W), settings=narrow)
    np.testing.assert_allclose(
        search.page_priority(at(child, 3), narrow), [-INF, -INF, -INF, INF, -INF, -INF, *free[1:]], rtol=1e-6
    )
    over = dataclasses.replace(tree, status=jnp.int32(SearchStatus.FINISHED))
    assert (search.page_priority(over, settings) == -INF).all()


def test_lazy_passes_need_the_children_just_made():
    with pytest.raises(ValueError, match="slots as fresh"):
        search.backup_passes(search.init_tree(LAZY), KEY, LAZY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expansion": "late"}, "eager, lazy"),
        ({"frontier_entropy": "tree"}, "own, path, children"),
        ({"picks_per_step": 0}, "picks_per_step=0 must be at least 1"),
        ({"backtrace": "uct"}, "expansion='lazy' with picks_per_step=1 needs"),
        ({"force_to_frontier": False}, "force_to_frontier=False"),
        ({"expansion": "eager", "picks_per_step": 2, "backtrace": "uct"}, "with picks_per_step=2 needs"),
        ({"capacity": 1}, "least capacity is 2"),
        ({"node_budget": 1}, "raise it to 2"),
    ],
)
def test_settings_that_cannot_work_say_why(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LAZY, **changes)
