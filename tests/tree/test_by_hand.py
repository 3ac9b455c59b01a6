"""Small trees with numbers worked out by hand, and the edges."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax import tree as search
from deepsearch_jax.tree import NO_NODE, SearchSettings, SearchStatus, Selection
from deepsearch_jax.types import Outcome, Segments
from tests.tree.scripted import quick_jit

SETTINGS = SearchSettings(expansion_width=2, max_depth=4, segment_length=2, num_trajectories=3, capacity=9)
KEY = jax.random.key(0)
C, W, CUT, NONE = Outcome.CORRECT, Outcome.INCORRECT, Outcome.INCOMPLETE, Outcome.NONE


def segments(lengths, log_probs=None, is_eos=None, width=2, length=2):
    """Segments [1, K, ...] whose tokens have the log-prob given per segment; short ones end with EOS."""
    lengths = np.array(lengths, np.int32)
    in_segment = np.arange(length) < lengths[:, None]
    per_token = np.zeros(width, np.float32) if log_probs is None else np.array(log_probs, np.float32)
    rows = np.where(in_segment, per_token[:, None], np.float32(0))
    ends = lengths < length if is_eos is None else np.array(is_eos)
    drawn = Segments(np.where(in_segment, np.int32(1), np.int32(0)), lengths, rows, rows, ends)
    return jax.tree.map(lambda field: field[None], drawn)


jitted_add = quick_jit(search.add_children)


def expand(tree, segment_batch, outcomes=(NONE, NONE), settings=SETTINGS):
    return jitted_add(tree, segment_batch, jnp.array([outcomes], jnp.int32), settings=settings)


def at(tree, node):
    """The tree with `node` as the one to expand next."""
    return dataclasses.replace(tree, cursors=jnp.array([node], jnp.int32))


def two_levels(**changes):
    """Root 0 with children 1, 2; 2 is expanded first (3, 4), then 1 (5, 6)."""
    settings = dataclasses.replace(SETTINGS, **changes)
    tree = expand(search.init_tree(settings), segments([2, 2], [-0.5, -1.0]), settings=settings)
    tree = expand(at(tree, 2), segments([2, 2], [-0.25, -2.0]), settings=settings)
    return expand(at(tree, 1), segments([2, 2], [-1.5, -3.0]), settings=settings), settings


def test_what_a_next_child_may_have_and_the_excess_of_a_place():
    lazy = {"expansion": "lazy", "siblings": "distinct", "frontier_entropy": "excess", "frontier_entropy_weight": -1.0}
    tree, settings = two_levels()
    settings = dataclasses.replace(settings, **lazy)
    # Children of the root: e^-1 and e^-2, of node 2: e^-.5 and e^-4, of node 1: e^-3 and e^-6; the others have none.
    mass = search.next_child_mass(tree, settings)
    np.testing.assert_allclose(mass[:4], [math.exp(-2), math.exp(-6), math.exp(-4), 1.0], rtol=1e-6)
    sure = expand(search.init_tree(SETTINGS), segments([2, 2], [-1e-9, -0.01]))
    np.testing.assert_allclose(search.next_child_mass(sure, settings)[0], 1e-6)  # no room is left, and never below that
    roomy = expand(search.init_tree(SETTINGS), segments([2, 2], [-0.25, -0.5]))
    used = math.exp(-0.5) + math.exp(-1)
    assert used < 1
    np.testing.assert_allclose(search.next_child_mass(roomy, settings)[0], 1 - used, rtol=1e-5)
    # First children are 1, 3 and 5: (1 + .5 + 3) nats on six tokens, .75 a token.
    want = [2 - 0.0, 1 + 6 - 1.5, 2 + 4 - 1.5, 2 + 0.5 + 0 - 3.0]
    np.testing.assert_allclose(search.frontier_entropies(tree, settings)[:4], want, rtol=1e-6)


def test_children_take_the_next_slots_and_their_place_in_depth_first_order():
    tree, _ = two_levels()
    assert tree.parent.tolist() == [-1, 0, 0, 2, 2, 1, 1, -1, -1]
    assert tree.child_rank[:7].tolist() == [-1, 0, 1, 0, 1, 0, 1]
    assert tree.children[:3].tolist() == [[1, 2], [5, 6], [3, 4]]
    assert tree.depth[:7].tolist() == [0, 1, 1, 2, 2, 2, 2]
    assert tree.preorder[:7].tolist() == [0, 1, 4, 5, 6, 2, 3]  # 0 1 5 6 2 3 4
    assert (int(tree.num_nodes), int(tree.num_tokens)) == (7, 12)
    assert tree.path_length[:7].tolist() == [0, 2, 2, 4, 4, 4, 4]
    # node 3: two tokens of -1 and two of -0.25, (2 + 0.5) / 4 = 0.625
    np.testing.assert_allclose(tree.path_entropy[:7], [0, 0.5, 1.0, 0.625, 1.5, 1.0, 1.75])
    np.testing.assert_allclose(tree.mean_nll[:7], [0, 0.5, 1.0, 0.25, 2.0, 1.5, 3.0])


def test_late_children_come_behind_the_subtrees_of_their_older_siblings():
    # Node 1 has one child of two, 3, which has the children 4, 5. The missing one, 6, is made last.
    settings = dataclasses.replace(SETTINGS, min_width=1, width_decay=1, max_depth=4)  # widths 2 1 1 1 by depth // 2
    tree = expand(search.init_tree(settings), segments([2, 2]), settings=settings)
    tree = dataclasses.replace(tree, num_children=tree.num_children.at[1].set(1))  # one place is taken
    tree = expand(at(tree, 1), segments([2, 2]), settings=settings)
    assert tree.children[1].tolist() == [-1, 3]
    tree = dataclasses.replace(
        tree, children=tree.children.at[1].set(jnp.array([3, -1])), child_rank=tree.child_rank.at[3].set(0)
    )
    tree = expand(at(tree, 3), segments([2, 2]), settings=settings)
    tree = expand(at(dataclasses.replace(tree, num_children=tree.num_children.at[1].set(1)), 1), segments([2, 2]))
    assert tree.children[1].tolist() == [3, 5]
    assert tree.preorder[:6].tolist() == [0, 1, 5, 2, 3, 4]  # 0 1 3 4 5 2


def test_path_runs_from_depth_one_to_the_node():
    tree, settings = two_levels()
    assert search.path_nodes(tree, jnp.int32(3), settings).tolist() == [2, 3, -1, -1]
    assert search.path_nodes(tree, jnp.int32(0), settings).tolist() == [-1] * 4
    assert search.path_nodes(tree, jnp.int32(NO_NODE), settings).tolist() == [-1] * 4
    tokens, length = search.path_tokens(tree, jnp.int32(3), settings)
    assert (tokens.tolist(), int(length)) == ([1, 1, 1, 1, 0, 0, 0, 0], 4)
    assert int(search.path_tokens(tree, jnp.int32(NO_NODE), settings)[1]) == 0


def terminal_tree(outcome, values, **changes):
    """A chain 0-1-3-5 whose last node is terminal with `outcome`; `values` are those of the chain before the backup."""
    settings = dataclasses.replace(SETTINGS, **changes)
    tree = expand(search.init_tree(settings), segments([2, 2]), settings=settings)
    tree = expand(at(tree, 1), segments([2, 2]), settings=settings)
    tree = expand(at(tree, 3), segments([1, 2]), (outcome, NONE), settings=settings)
    values = jnp.zeros_like(tree.value).at[jnp.array([0, 1, 3])].set(jnp.array(values))
    return dataclasses.replace(tree, value=values), settings


@pytest.mark.parametrize(
    ("outcome", "before", "changes", "after"),
    [
        # weights (depth + 1) / 4: 1/4, 2/4, 3/4, 1
        (C, [0.0, 0.0, 0.0], {}, [0.25, 0.5, 0.75, 1.0]),
        (C, [-2.0, 1.0, -0.1], {}, [0.25, 1.5, 0.75, 1.0]),  # negatives are forgotten
        (W, [-2.0, 1.0, 0.0], {}, [-2.25, 1.0, -0.75, -1.0]),  # positives stay
        (CUT, [-2.0, 1.0, 0.0], {"incomplete_score": -0.5}, [-2.125, 1.0, -0.375, -0.5]),
        (CUT, [-2.0, 1.0, 0.0], {"incomplete_score": 0.0}, [-2.0, 1.0, 0.0, 0.0]),
        (C, [0.0, 0.0, 0.0], {"min_depth_weight": 0.6}, [0.6, 0.6, 0.75, 1.0]),
        # the paper's i / l: 0 (least weight 0.1), 1/3, 2/3, 1
        (C, [0.0, 0.0, 0.0], {"root_counts_in_depth_weight": False}, [0.1, 1 / 3, 2 / 3, 1.0]),
        (W, [0.5, 0.0, 1.0], {"backup_rule": "vanilla"}, [0.25, 0.0, 0.25, -1.0]),
        (C, [0.5, 0.0, 1.0], {"backup_rule": "vanilla"}, [0.75, 0.5, 1.75, 1.0]),
    ],
)
def test_backup_follows_the_sign_rule_and_the_depth_weight(outcome, before, changes, after):
    tree, settings = terminal_tree(outcome, before, **changes)
    backed_up = search.backup(tree, jnp.int32(5), settings)
    np.testing.assert_allclose(backed_up.value[jnp.array([0, 1, 3, 5])], after, rtol=1e-6)
    assert backed_up.visit_count.tolist() == [1, 1, 0, 1, 0, 1, 0, 0, 0]
    assert backed_up.credited.tolist() == [5, -1, -1]
    assert int(backed_up.num_credited) == 1
    assert backed_up.is_credited.tolist() == [slot == 5 for slot in range(9)]


def test_backup_of_no_node_changes_nothing():
    tree, settings = terminal_tree(C, [0.5, -0.5, 0.5])
    after = search.backup(tree, jnp.int32(NO_NODE), settings)
    jax.tree.map(np.testing.assert_array_equal, after, tree)


def choose(outcomes, entropies, **changes):
    """Index of the chosen one among four siblings, None if there is none."""
    settings = dataclasses.replace(SETTINGS, expansion_width=4, **changes)
    drawn = segments([1, 1, 1, 1], [-entropy for entropy in entropies], width=4)
    drawn = dataclasses.replace(drawn, lengths=np.where(np.array([outcomes]) == NONE, 2, 1).astype(np.int32))
    tree = expand(
        search.init_tree(settings), dataclasses.replace(drawn, is_eos=np.zeros((1, 4), bool)), outcomes, settings
    )
    chosen = int(search.choose_terminal(tree, search.candidates_at(tree, jnp.int32(0)), KEY, settings))
    return None if chosen == NO_NODE else chosen - 1


def test_a_correct_terminal_comes_first_then_the_most_confident_wrong_one():
    assert choose([W, C, C, W], [0.1, 0.9, 0.5, 0.2]) == 2
    assert choose([W, W, NONE, W], [0.3, 0.2, 0.0, 0.4]) == 1
    assert choose([W, W, NONE, W], [0.3, 0.2, 0.0, 0.2]) == 1  # the earliest of equals
    assert choose([NONE] * 4, [0.3, 0.2, 0.0, 0.2]) is None
    assert choose([CUT, W, CUT, W], [0.1, 0.5, 0.2, 0.4]) == 0  # incomplete counts -1: same class
    assert choose([CUT, W, CUT, W], [0.1, 0.5, 0.2, 0.4], incomplete_score=-0.5) == 3
    assert choose([CUT, NONE, CUT, NONE], [0.3, 0.0, 0.2, 0.0], incomplete_score=-0.5) == 2


def test_the_other_choices_among_wrong_terminals():
    assert choose([W, W, NONE, W], [0.3, 0.2, 0.0, 0.4], negative_choice="least_confident") == 3
    assert choose([C, W, NONE, C], [0.3, 0.2, 0.0, 0.4], negative_choice="least_confident") == 0
    assert choose([C, W, NONE, C], [0.3, 0.2, 0.0, 0.2], negative_choice="random") == 3
    settings = dataclasses.replace(SETTINGS, expansion_width=4, negative_choice="random")
    tree = expand(search.init_tree(settings), segments([1, 1, 2, 1], width=4), (W, W, NONE, W), settings)
    candidates = search.candidates_at(tree, jnp.int32(0))
    keys = jax.random.split(KEY, 300)
    draw = jax.vmap(lambda key: search.choose_terminal(tree, candidates, key, settings))
    counts = np.bincount(np.asarray(draw(keys)), minlength=5)
    assert counts[[0, 3]].tolist() == [0, 0]
    assert (counts[[1, 2, 4]] > 60).all()  # 100 each on average, standard deviation 8


def test_uct_of_hand_made_counts():
    tree, settings = two_levels(exploration=2.0)
    tree = dataclasses.replace(
        tree,
        visit_count=tree.visit_count.at[jnp.array([0, 1, 2])].set(jnp.array([5, 4, 1])),
        value=tree.value.at[jnp.array([1, 2])].set(jnp.array([2.0, -1.0])),
    )
    scores = search.uct_scores(tree, jnp.int32(0), settings)
    np.testing.assert_allclose(
        scores, [0.5 + 2 * math.sqrt(math.log(5) / 4), -1 + 2 * math.sqrt(math.log(5))], rtol=1e-6
    )
    assert int(search.select_child(tree, jnp.int32(0), settings)) == 1 + int(scores[1] > scores[0])
    # A count of 0 on either side leaves Q alone; equals go to the first; terminals and missing children are out.
    np.testing.assert_array_equal(search.uct_scores(tree, jnp.int32(1), settings), [0, 0])
    assert int(search.select_child(tree, jnp.int32(1), settings)) == 5
    only_second = dataclasses.replace(tree, is_terminal=tree.is_terminal.at[5].set(True))
    assert int(search.select_child(only_second, jnp.int32(1), settings)) == 6
    assert int(search.select_child(tree, jnp.int32(3), settings)) == NO_NODE
    assert scores.dtype == jnp.float32


@pytest.mark.parametrize(
    ("bonus", "at_depth_two"), [("sqrt", math.sqrt(2 / 4)), ("log", math.log(3)), ("constant", 2.0)]
)
def test_frontier_score_of_hand_made_values(bonus, at_depth_two):
    tree, settings = two_levels(
        depth_bonus=bonus,
        frontier_value_weight=0.4,
        frontier_entropy_weight=0.3,
        frontier_depth_weight=0.05,
        frontier_own_value_weight=0.2,
    )
    tree = dataclasses.replace(
        tree,
        visit_count=tree.visit_count.at[jnp.array([2, 3])].set(jnp.array([4, 2])),
        value=tree.value.at[jnp.array([2, 3])].set(jnp.array([-2.0, 3.0])),
    )
    wanted = 0.4 * math.tanh(-0.5) + 0.2 * math.tanh(1.5) + 0.3 * 0.25 + 0.05 * at_depth_two
    np.testing.assert_allclose(search.frontier_scores(tree, settings)[3], wanted, rtol=1e-6)


def test_frontier_ties_go_to_the_first_in_depth_first_order():
    tree, settings = two_levels()
    # All four leaves are alike; 5 was made after 3 but comes first: 0 1 5 6 2 3 4.
    assert int(search.select_frontier(tree, True, settings)) == 5
    own = dataclasses.replace(settings, frontier_depth_weight=-1.0)
    assert int(search.select_frontier(tree, False, own)) == 1  # expanded nodes too, but never the root
    none_left = dataclasses.replace(tree, is_terminal=jnp.ones_like(tree.is_terminal))
    assert int(search.select_frontier(none_left, True, settings)) == NO_NODE


def test_dynamic_width_by_depth():
    settings = SearchSettings(expansion_width=4, max_depth=8, min_width=2, width_decay=1)
    widths = search.width_at_depth(jnp.arange(8), settings)
    assert widths.tolist() == [4, 4, 3, 3, 2, 2, 2, 2]  # bands of 8 // 4 = 2 levels
    shallow = dataclasses.replace(settings, max_depth=3, min_width=1)  # bands of one level, not of none
    assert search.width_at_depth(jnp.arange(3), shallow).tolist() == [4, 3, 2]


def test_what_ends_a_trajectory():
    full_eos = segments([2, 2], is_eos=[True, False])
    tree = search.init_tree(SETTINGS)
    assert search.child_is_terminal(tree, full_eos, SETTINGS).tolist() == [[True, False]]
    quirk = dataclasses.replace(SETTINGS, reference_quirks=True)
    assert search.child_is_terminal(tree, full_eos, quirk).tolist() == [[False, False]]
    assert search.child_is_terminal(tree, segments([1, 2]), quirk).tolist() == [[True, False]]
    flat = dataclasses.replace(SETTINGS, max_depth=1)
    assert search.child_is_terminal(tree, segments([2, 2]), flat).tolist() == [[True, True]]
    narrow = dataclasses.replace(SETTINGS, max_depth=2, min_width=1)  # one child at depth 1
    below = at(expand(tree, segments([2, 2]), settings=narrow), 1)
    assert search.child_is_terminal(below, segments([1, 1]), narrow).tolist() == [[True, False]]


def test_empty_segments_have_entropy_zero_and_the_stripped_eos_too():
    empty = expand(search.init_tree(SETTINGS), segments([0, 2], [-1.0, -0.5]), (W, NONE))
    np.testing.assert_array_equal(empty.path_entropy[1:3], [0.0, 0.5])
    np.testing.assert_array_equal(empty.mean_nll[1:3], [0.0, 0.5])
    strip = dataclasses.replace(SETTINGS, reference_eos_is_pad=True)
    only_eos = expand(search.init_tree(strip), segments([1, 2], [-1.0, -0.5]), (W, NONE), strip)
    np.testing.assert_array_equal(only_eos.path_entropy[1:3], [0.0, 0.5])


def test_a_terminal_without_a_verdict_counts_as_wrong_and_others_have_no_outcome():
    tree = expand(search.init_tree(SETTINGS), segments([1, 2]), (NONE, C))
    assert tree.outcome[:3].tolist() == [NONE, W, NONE]


jitted_step = quick_jit(search.search_step)


def step(tree, drawn, outcomes=(NONE, NONE), settings=SETTINGS):
    return jitted_step(tree, drawn, jnp.array([outcomes], jnp.int32), KEY, settings=settings)


def test_a_whole_small_search_step_by_step():
    tree = step(search.init_tree(SETTINGS), segments([2, 2]))
    # No terminal: both children get a visit, the root none; the first of two equals is next.
    assert (tree.visit_count[:3].tolist(), int(tree.current)) == ([0, 1, 1], 1)
    tree = step(tree, segments([1, 2], [-1, -1]), (W, NONE))
    # Leaf 3 at depth 2 is wrong: weights 1/3, 2/3, 1. Q(0) = -1/3 and Q(1) = -2/3 / 2 are equal: depth decides.
    np.testing.assert_allclose(tree.value[:5], [-1 / 3, -2 / 3, 0, -1, 0], rtol=1e-6)
    assert (tree.visit_count[:5].tolist(), int(tree.current)) == ([1, 2, 1, 1, 1], 4)
    tree = step(tree, segments([1, 1], [-2, -1]), (C, C))
    # The surer of two correct leaves, 6; leaf 5 waits for a revisit that the frontier never makes. Weights 1/4 .. 1.
    assert tree.credited.tolist() == [3, 6, -1]
    np.testing.assert_allclose(tree.value[:7], [1 / 4, 1 / 2, 0, -1, 3 / 4, 0, 1], rtol=1e-6)
    assert (int(tree.current), SearchStatus(int(tree.status))) == (2, SearchStatus.RUNNING)
    tree = step(tree, segments([1, 1], [-2, -1]), (W, W))
    assert tree.credited.tolist() == [3, 6, 8]
    assert (int(tree.current), SearchStatus(int(tree.status))) == (NO_NODE, SearchStatus.FINISHED)
    again = step(tree, segments([2, 2]), (C, C))
    jax.tree.map(np.testing.assert_array_equal, again, tree)


def test_a_tree_with_nothing_open_is_exhausted():
    tree = step(search.init_tree(SETTINGS), segments([1, 1]), (W, W))
    assert (SearchStatus(int(tree.status)), int(tree.current)) == (SearchStatus.EXHAUSTED, NO_NODE)
    assert tree.credited.tolist() == [1, -1, -1]
    got = search.extract_trajectories(tree, SETTINGS)
    assert got.valid.tolist() == [True, False, False]
    assert got.score.tolist() == [-1.0, 0.0, 0.0]


def test_capacity_and_budgets_end_a_tree():
    cases = [
        ({"capacity": 4}, SearchStatus.OUT_OF_NODES),
        ({"node_budget": 4}, SearchStatus.OUT_OF_NODES),
        ({"token_budget": 4}, SearchStatus.OUT_OF_TOKENS),
        ({"capacity": 5, "node_budget": 5, "token_budget": 5}, SearchStatus.RUNNING),
    ]
    for changes, status in cases:
        settings = dataclasses.replace(SETTINGS, **changes)
        tree = step(search.init_tree(settings), segments([2, 2]), settings=settings)
        assert SearchStatus(int(tree.status)) == status, changes
        assert int(tree.current) == (1 if status == SearchStatus.RUNNING else NO_NODE)


def test_a_revisit_credits_the_terminal_that_waited():
    settings = dataclasses.replace(SETTINGS, backtrace="uct", capacity=16, num_trajectories=4)
    tree = step(search.init_tree(settings), segments([2, 2]), settings=settings)
    tree = step(tree, segments([1, 1], [-1, -2]), (W, W), settings)
    # 3 is credited: Q(1) = -1/3, N(1) = 2, against Q(2) = 0, N(2) = 1 and N(0) = 1 (ln 1 = 0): 2 is next.
    assert (tree.credited.tolist(), int(tree.current)) == ([3, -1, -1, -1], 2)
    tree = step(tree, segments([1, 2], [-1, -1]), (W, NONE), settings)
    # 5 is credited: N(0) = 2. UCT(1) = UCT(2) = -1/3 + 2 sqrt(ln2 / 2) = 0.84: the tie goes to 1.
    # Its revisit credits 4, which waited: Q(1) = -4/9, N(1) = 3, N(0) = 3; UCT(1) = 0.77, UCT(2) = 1.15: 2, which is
    # expanded and has one child waiting for a visit, 6: from there locally to 6.
    assert tree.credited.tolist() == [3, 5, 4, -1]
    assert (int(tree.current), int(tree.num_passes)) == (6, 5)
    assert tree.visit_count[:7].tolist() == [3, 3, 2, 1, 1, 1, 2]


def test_fallback_when_every_child_is_terminal_and_credited():
    settings = dataclasses.replace(SETTINGS, force_to_frontier=False, capacity=16, num_trajectories=9)
    tree = expand(search.init_tree(settings), segments([2, 2]), settings=settings)
    tree = expand(at(tree, 1), segments([1, 1]), (W, W), settings)
    tree = dataclasses.replace(tree, is_credited=tree.is_credited.at[jnp.array([3, 4])].set(True))
    after, info = search.backup_passes(at(tree, 1), KEY, settings)
    assert (Selection(int(info.how[0])), int(info.next_node[0])) == (Selection.FALLBACK_FRONTIER, 2)
    assert info.candidates.tolist() == [[-1, -1]]
    np.testing.assert_array_equal(after.visit_count, tree.visit_count)


def test_float64_values_need_64_bit_types():
    with pytest.raises(ValueError, match="64-bit"):
        search.init_tree(dataclasses.replace(SETTINGS, value_dtype="float64"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expansion_width": 0}, "expansion_width=0"),
        ({"capacity": 2}, "least capacity is 3"),
        ({"node_budget": 2}, "raise it to 3"),
        ({"token_budget": -1}, "token_budget=-1"),
        ({"min_width": 3}, "above expansion_width=2"),
        ({"depth_bonus": "cubic"}, "sqrt, log, constant"),
        ({"backtrace": "global"}, "frontier, uct"),
        ({"incomplete_score": 1.5}, "incomplete_score=1.5"),
        ({"min_depth_weight": -0.1}, "min_depth_weight"),
        ({"frontier_depth_weight": math.nan}, "finite"),
        ({"exploration": math.nan}, "exploration"),
        ({"siblings": "distinct"}, "expansion='eager': children that are made together do not know each other"),
        ({"frontier_entropy": "excess"}, "siblings='independent' would ask for the likeliest child again"),
        (
            {"frontier_entropy": "excess", "siblings": "distinct", "expansion": "lazy", "confidence": "adaptive"},
            "confidence='adaptive' is measured of means per token",
        ),
        ({"trajectories_if_solved": 4}, "trajectories_if_solved=4 is above num_trajectories=3"),
        ({"siblings": "different"}, "siblings='different' must be one of independent, distinct"),
    ],
)
def test_settings_that_cannot_work_say_why(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **changes)
