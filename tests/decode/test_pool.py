"""Page assignment against sorting in plain Python."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsearch_jax.decode import assign_pages

assign = jax.jit(assign_pages, static_argnames="num_pages")
TREES, NODES = 2, 6


def oracle(page_of, priority, is_wanted, depth, num_pages):
    flat = list(np.ndindex(page_of.shape))
    asking = [at for at in flat if (page_of[at] >= 0 or is_wanted[at]) and priority[at] > -np.inf]
    holders = sorted(asking, key=lambda at: (-priority[at], depth[at], at))[:num_pages]
    pages = {at: page_of[at] for at in holders if page_of[at] >= 0}
    free = [page for page in range(num_pages) if page not in pages.values()]
    pages |= {at: free.pop(0) for at in sorted(holders) if at not in pages}
    evicted = sum(page_of[at] >= 0 and priority[at] > -np.inf and at not in pages for at in flat)
    return np.array([pages.get(at, -1) for at in flat]).reshape(page_of.shape), evicted


@st.composite
def pools(draw):
    """A pool of any size with any nodes in it; few different priorities, so that they tie."""
    size, num_pages = TREES * NODES, draw(st.sampled_from([0, 1, 5, TREES * NODES + 1]))  # each is a program
    some = st.sampled_from([-np.inf, -2.5, -0.0, 0.0, 1e-30, 0.3, 7.0, np.inf])

    def each(elements):
        return np.array(draw(st.lists(elements, min_size=size, max_size=size))).reshape(TREES, NODES)

    residents = draw(st.permutations([*range(num_pages), *[-1] * size]))[:size]
    keep = each(st.booleans())
    page_of = np.where(keep, np.reshape(residents, keep.shape), -1).astype(np.int32)
    return page_of, each(some).astype(np.float32), each(st.booleans()), each(st.integers(0, 3)), num_pages


@settings(deadline=None, max_examples=60, derandomize=True)
@given(pools())
def test_the_best_nodes_hold_the_pages(pool):
    *arrays, num_pages = pool
    got, evicted = assign(*map(jnp.array, arrays), num_pages=num_pages)
    want, want_evicted = oracle(*pool)
    np.testing.assert_array_equal(got, want)
    assert evicted == want_evicted


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.data())
def test_pages_missing_on_a_path_are_its_end(data):
    """With priorities that never rise on the way down, a resident node's ancestors are resident, step after step."""
    num_pages = data.draw(st.sampled_from([1, 3]))
    parents = [-1] + [data.draw(st.integers(0, node - 1)) for node in range(1, NODES)]
    depth = np.zeros((1, NODES), np.int32)
    page_of = np.full((1, NODES), -1, np.int32)
    for node in range(1, NODES):
        depth[0, node] = depth[0, parents[node]] + 1
    for _ in range(3):
        priority = np.full((1, NODES), -np.inf, np.float32)
        for node in range(NODES - 1, 0, -1):  # the best place at or below each node, as page_priority has it
            own = data.draw(st.sampled_from([-np.inf, 0.0, 1.0, np.inf]))
            priority[0, node] = max(priority[0, node], own)
            if parents[node] > 0:
                priority[0, parents[node]] = max(priority[0, parents[node]], priority[0, node])
        wanted = np.zeros((1, NODES), bool)
        node = data.draw(st.integers(1, NODES - 1))
        while node > 0:  # a path that is about to be read
            wanted[0, node] = True
            node = parents[node]
        page_of = np.asarray(assign(page_of, priority, wanted, depth, num_pages=num_pages)[0])
        for node in range(1, NODES):
            if page_of[0, node] >= 0 and parents[node] > 0:
                assert page_of[0, parents[node]] >= 0
        taken = page_of[page_of >= 0]
        assert len(set(taken)) == len(taken)


def test_by_hand():
    """Pages 0 and 1 of 3 are taken; two newcomers compete for the free one and for that of the worst resident."""
    page_of = jnp.array([[-1, 1, -1, 0]])
    priority = jnp.array([[0.5, 0.1, 0.7, 0.9]])
    wanted = jnp.array([[True, False, True, False]])
    got, evicted = assign(page_of, priority, wanted, jnp.ones((1, 4), jnp.int32), num_pages=3)
    np.testing.assert_array_equal(got, [[1, -1, 2, 0]])
    assert evicted == 1


def test_both_zeros_are_equal():
    wanted, depth = jnp.ones((1, 2), bool), jnp.array([[1, 2]])
    for priority in ([-0.0, 0.0], [0.0, -0.0]):
        got, _ = assign(jnp.full((1, 2), -1), jnp.array([priority]), wanted, depth, num_pages=1)
        np.testing.assert_array_equal(got, [[0, -1]])


def test_ended_trees_give_their_pages_back_without_evictions():
    page_of = jnp.arange(8).reshape(2, 4)
    priority = jnp.array([[1.0] * 4, [-jnp.inf] * 4])
    got, evicted = assign(page_of, priority, jnp.ones((2, 4), bool), jnp.zeros((2, 4), jnp.int32), num_pages=8)
    np.testing.assert_array_equal(got, [[0, 1, 2, 3], [-1] * 4])
    assert evicted == 0


@pytest.mark.parametrize("num_pages", [4, 9])
def test_the_same_in_a_larger_program(num_pages):
    """Inside a loop, as a search step has it, with changing contents."""
    rng = np.random.default_rng(0)
    steps = 5
    priority = rng.normal(size=(steps, 3, 4)).astype(np.float32)
    wanted, depth = rng.random((steps, 3, 4)) < 0.7, rng.integers(0, 3, (3, 4))

    @functools.partial(jax.jit, static_argnames="num_pages")
    def run(priority, wanted, num_pages):
        def step(page_of, now):
            page_of, evicted = assign_pages(page_of, *now, jnp.array(depth), num_pages)
            return page_of, (page_of, evicted)

        return jax.lax.scan(step, jnp.full((3, 4), -1), (priority, wanted))[1]

    got, evictions = run(priority, wanted, num_pages)
    page_of = np.full((3, 4), -1)
    for step in range(steps):
        page_of, evicted = oracle(page_of, priority[step], wanted[step], depth, num_pages)
        np.testing.assert_array_equal(got[step], page_of)
        assert evictions[step] == evicted
