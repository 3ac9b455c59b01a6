"""Trees that start from direct samples: by hand, against plain objects, and searches that go on from there."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from deepsearch_jax import tree as search
from deepsearch_jax.tree import NO_NODE, ROOT, Samples, SearchSettings, SearchStatus
from deepsearch_jax.types import Outcome
from tests.tree.scripted import jitted_steps, quick_jit, stacked_draws

SMALL = SearchSettings(
    segment_length=2, max_depth=3, expansion_width=2, num_trajectories=4, capacity=12 + 3 * 3, num_grafts=3,
    expansion="lazy", frontier_entropy="path", frontier_entropy_weight=-1.0,
)  # fmt: skip
jitted_graft = quick_jit(search.graft_samples)
KEY = jax.random.key(0)


def samples_of(responses, settings):
    """Samples of (tokens, log-probs, outcome) each."""
    G, T = settings.num_grafts, settings.max_response_length
    tokens, log_probs = np.zeros((G, T), np.int32), np.zeros((G, T), np.float32)
    lengths, outcomes = np.zeros(G, np.int32), np.zeros(G, np.int32)
    for g, (response, values, outcome) in enumerate(responses):
        lengths[g], outcomes[g] = len(response), outcome
        tokens[g, : len(response)], log_probs[g, : len(response)] = response, values
    return Samples(tokens, lengths, log_probs, np.where(tokens > 0, log_probs - 1, 0), outcomes)


def graft(responses, settings):
    tree = jitted_graft(search.init_tree(settings), samples_of(responses, settings), KEY, settings=settings)
    return jax.device_get(tree)


# The first and the last begin alike, and the last is the most confident.
THREE = [
    ([1, 2, 3, 9], [-1, -1, -1, -1], Outcome.INCORRECT),
    ([5, 2, 3, 4, 6], [-2, -2, -2, -2, -2], Outcome.INCOMPLETE),
    ([1, 2, 4], [-1, -1, -0.5], Outcome.INCORRECT),
]


def test_three_samples_by_hand():
    tree = graft(THREE, SMALL)
    assert int(tree.num_nodes) == 7
    assert tree.parent[:7].tolist() == [NO_NODE, 0, 1, 0, 3, 4, 1]
    assert tree.children[:2, :3].tolist() == [[1, 3, NO_NODE], [2, 6, NO_NODE]]
    assert tree.depth[:7].tolist() == [0, 1, 2, 1, 2, 3, 2]
    assert tree.preorder[:7].tolist() == [0, 1, 2, 4, 5, 6, 3]
    assert tree.segment_lengths[:7].tolist() == [0, 2, 2, 2, 2, 1, 1]
    assert tree.tokens[:7].tolist() == [[0, 0], [1, 2], [3, 9], [5, 2], [3, 4], [6, 0], [4, 0]]
    np.testing.assert_array_equal(tree.sampling_log_probs[6], [-1.5, 0])
    assert np.flatnonzero(tree.is_terminal).tolist() == [2, 5, 6]
    assert tree.outcome[[2, 5, 6]].tolist() == [Outcome.INCORRECT, Outcome.INCOMPLETE, Outcome.INCORRECT]
    np.testing.assert_allclose(tree.mean_nll[:7], [0, 1, 1, 2, 2, 2, 0.5])
    np.testing.assert_allclose(tree.path_entropy[:7], [0, 1, 1, 2, 2, 2, 2.5 / 3])
    # One pass credits the most confident wrong end, slot 6 at depth 2: weights 1/3 at the root, 2/3 and 1.
    assert tree.credited.tolist() == [6, NO_NODE, NO_NODE, NO_NODE]
    np.testing.assert_allclose(tree.value[:7], [-1 / 3, -2 / 3, 0, 0, 0, 0, -1], atol=1e-7)
    assert tree.visit_count[:7].tolist() == [1, 2, 0, 1, 1, 0, 1]
    assert int(tree.num_tokens) == 0
    # The places: not the root, which has its two children. F = .4 tanh(Q) - H + .01 sqrt(d / 3), Q of slot 1 is -1/3.
    open_places = np.asarray(search.can_be_selected(tree, True, SMALL))
    assert np.flatnonzero(open_places).tolist() == [1, 3, 4]
    by_hand = [
        0.4 * np.tanh(-1 / 3) - 1 + 0.01 * np.sqrt(1 / 3),
        -2 + 0.01 * np.sqrt(1 / 3),
        -2 + 0.01 * np.sqrt(2 / 3),
    ]
    np.testing.assert_allclose(search.frontier_scores(tree, SMALL)[jnp.array([1, 3, 4])], by_hand, rtol=1e-6)
    assert tree.cursors.tolist() == [1]
    assert int(tree.status) == SearchStatus.RUNNING


def test_more_credits_follow_the_same_order_and_leave_the_rest_to_the_search():
    tree = graft(THREE, dataclasses.replace(SMALL, sample_credits=2))
    assert tree.credited[:3].tolist() == [6, 2, NO_NODE]  # path entropies 0.83 and 1.0
    tree = graft(THREE, dataclasses.replace(SMALL, sample_credits=3, num_trajectories=3))
    assert tree.credited.tolist() == [6, 2, 5]
    assert int(tree.status) == SearchStatus.FINISHED
    tree = graft(THREE, dataclasses.replace(SMALL, negative_choice="least_confident"))
    assert tree.credited[0] == 5


def test_a_node_below_the_root_may_get_as_many_children_as_without_samples():
    tree = graft(THREE, SMALL)
    nodes = jnp.array([0, 1, 3, 4])
    assert search.most_children(tree, nodes, SMALL).tolist() == [2, 4, 3, 3]


def test_without_samples_the_search_starts_from_the_prompt():
    for settings in (
        SMALL,
        dataclasses.replace(SMALL, expansion="eager"),
        dataclasses.replace(SMALL, picks_per_step=3),
    ):
        tree = graft([], settings)
        jax.tree.map(np.testing.assert_array_equal, tree, jax.device_get(search.init_tree(settings)))


def test_equal_samples_are_one_path_and_credited_once():
    tree = graft([THREE[0]] * 3, dataclasses.replace(SMALL, sample_credits=3))
    assert int(tree.num_nodes) == 3
    assert tree.credited[:2].tolist() == [2, NO_NODE]
    assert int(tree.visit_count[ROOT]) == 1


def trie(responses, settings):
    """The same as plain objects: [parent, depth, tokens, is_terminal] of each node, in order of first appearance."""
    nodes, index = [(NO_NODE, 0, (), False)], {(): ROOT}
    for response, _, _ in responses:
        for end in range(settings.segment_length, len(response) + settings.segment_length, settings.segment_length):
            prefix, before = tuple(response[:end]), tuple(response[: end - settings.segment_length])
            if prefix not in index:
                index[prefix] = len(nodes)
                parent = index[before]
                nodes.append((parent, nodes[parent][1] + 1, prefix[len(before) :], end >= len(response)))
    return nodes


def preorder(nodes):
    order = []

    def visit(node):
        order.append(node)
        for child in [c for c, (parent, *_) in enumerate(nodes) if parent == node]:
            visit(child)

    visit(ROOT)
    return [order.index(node) for node in range(len(nodes))]


WIDE = {"segment_length": 2, "max_depth": 4, "num_grafts": 5, "num_trajectories": 6, "sample_credits": 2}
CONFIGURATIONS = [
    SearchSettings(
        **WIDE, expansion_width=2, capacity=40 + 20, expansion="lazy", picks_per_step=2, confidence="adaptive"
    ),
    SearchSettings(**WIDE, expansion_width=3, capacity=40 + 20, node_budget=25),
    SearchSettings(**WIDE, expansion_width=2, capacity=40 + 20, backtrace="uct"),
]


@st.composite
def responses(draw):
    """Up to five responses of few different tokens, so that many begin alike; 9 ends a response."""
    found = []
    for _ in range(draw(st.integers(1, 5))):
        length = draw(st.integers(1, 8))
        tokens = [draw(st.integers(1, 2)) for _ in range(length)]
        if length < 8:
            tokens[-1] = 9
        # What a token is worth follows from the prefix, as with a policy.
        log_probs = [-((sum(tokens[: i + 1]) * 37 + i) % 64) / 16 for i in range(length)]
        found.append((tokens, log_probs, draw(st.sampled_from([Outcome.INCORRECT, Outcome.INCOMPLETE]))))
    return found


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@hypothesis.settings(deadline=None, max_examples=8, derandomize=True)
@hypothesis.given(drawn=responses())
def test_the_arrays_hold_the_trie_of_the_samples_and_a_search_goes_on(number, drawn):
    settings = CONFIGURATIONS[number]
    tree, nodes = graft(drawn, settings), trie(drawn, settings)
    count = len(nodes)
    assert int(tree.num_nodes) == count
    for name, values in zip(("parent", "depth"), list(zip(*nodes, strict=True))[:2], strict=True):
        assert getattr(tree, name)[:count].tolist() == list(values)
    assert tree.preorder[:count].tolist() == preorder(nodes)
    assert tree.is_terminal[:count].tolist() == [node[3] for node in nodes]
    for slot, (_, _, tokens, _) in enumerate(nodes):
        assert tree.tokens[slot, : tree.segment_lengths[slot]].tolist() == list(tokens)
    assert (tree.num_grafted == tree.num_children).all()
    ends = {tuple(response) for response, _, _ in drawn}
    assert int(tree.num_credited) == min(len(ends), settings.sample_credits)

    trees = jax.tree.map(lambda field: jnp.asarray(field)[None], tree)
    keys = jax.random.split(KEY, 1)
    for step in range(6):
        trees = jitted_steps(trees, *stacked_draws(settings, range(1), step), keys, settings=settings)
    tree = jax.tree.map(lambda field: np.asarray(field)[0], trees)
    used = int(tree.num_nodes)
    assert sorted(tree.preorder[:used].tolist()) == list(range(used))
    assert used - (count - 1) <= settings.max_nodes
    most = np.asarray(search.most_children(tree, jnp.arange(settings.capacity), settings))
    for node in range(used):
        children = [slot for slot in tree.children[node].tolist() if slot != NO_NODE]
        assert children == np.flatnonzero(tree.parent == node).tolist()
        assert len(children) == tree.num_children[node] <= max(most[node], tree.num_grafted[node])
    assert int(tree.num_tokens) == tree.segment_lengths[count:].sum()
    assert (tree.num_grafted[:count] <= tree.num_children[:count]).all()
    assert not tree.num_grafted[count:].any()
    if tree.status == SearchStatus.RUNNING:
        assert used > count or settings.backtrace == "uct"


def test_an_adaptive_weight_is_the_fixed_one_given_at_the_start():
    fixed = graft(THREE, SMALL)
    adaptive = dataclasses.replace(SMALL, confidence="adaptive", frontier_entropy_weight=0.5)
    tree = dataclasses.replace(fixed, entropy_weight=np.float32(-1.0))
    scores = functools.partial(search.frontier_scores, tree)
    np.testing.assert_array_equal(scores(adaptive), scores(SMALL))
    assert float(search.init_tree(adaptive).entropy_weight) == 0.5


def test_grafts_without_room_or_with_recorded_quirks_are_refused():
    with pytest.raises(ValueError, match="the least capacity is 11"):
        dataclasses.replace(SMALL, capacity=10)
    with pytest.raises(ValueError, match="num_grafts=3 with reference_quirks"):
        dataclasses.replace(SMALL, reference_quirks=True)
