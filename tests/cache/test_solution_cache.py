"""The cache against a plain dict, its edges by hand, and on eight devices."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from deepsearch_jax.cache import solution_cache as sc

CAPACITY, PATHS, PAGES, PAGE_LENGTH, WIDTH = 3, 2, 2, 3, 6
insert, insert_many, remove = jax.jit(sc.insert), jax.jit(sc.insert_many), jax.jit(sc.remove)
lookup = jax.jit(sc.lookup)
lookup_many = jax.jit(jax.vmap(sc.lookup, in_axes=(None, 0)))
contains_many = jax.jit(jax.vmap(sc.contains, in_axes=(None, 0)))


class DictCache:
    """The same cache as an ordered list of slots, in plain Python."""

    def __init__(self, capacity=CAPACITY, num_paths=PATHS):
        self.slots, self.num_paths = [None] * capacity, num_paths  # slot: [problem, round, list of token tuples]

    def find(self, problem):
        return next((s for s in self.slots if s and s[0] == problem), None)

    def insert(self, problem, paths, round_index):
        paths = [tuple(p) for p in paths if 0 < len(p) <= WIDTH]
        if not paths or problem < 0:
            return
        slot = self.find(problem)
        if slot is None:
            free = [i for i, s in enumerate(self.slots) if s is None]
            place = free[0] if free else min(range(len(self.slots)), key=lambda i: (self.slots[i][1], i))
            slot = self.slots[place] = [problem, round_index, []]
        slot[1], slot[2] = round_index, list(dict.fromkeys(paths + slot[2]))[: self.num_paths]

    def remove(self, problem):
        self.slots = [None if s and s[0] == problem else s for s in self.slots]

    def lookup(self, problem):
        slot = self.find(problem) if problem >= 0 else None
        return slot[2] if slot else []


def as_arrays(paths, keep=None):
    """Paths to padded tokens, lengths, keep; garbage stands after the end of each path."""
    tokens = np.full((len(paths), WIDTH), 77, np.int32)
    for row, path in zip(tokens, paths):
        row[: len(path)] = path[:WIDTH]
    return jnp.array(tokens), jnp.array([len(p) for p in paths]), jnp.array(keep or [True] * len(paths))


def paths_of(found):
    """What lookup returned, as a list of tuples; checks that the rest is zero."""
    tokens, lengths, count = np.asarray(found.tokens), np.asarray(found.lengths), int(found.num_paths)
    inside = np.arange(tokens.shape[1])[None] < lengths[:, None]
    np.testing.assert_array_equal(tokens[~inside], 0)
    np.testing.assert_array_equal(lengths[count:], 0)
    assert bool(found.found) == (count > 0)
    return [tuple(int(t) for t in row[:n]) for row, n in zip(tokens, lengths[:count])]


def empty():
    return sc.init_cache(CAPACITY, PATHS, PAGES, PAGE_LENGTH)


def filled(*problems):
    """A cache with one path per (problem, round)."""
    cache = empty()
    for problem, round_index in problems:
        cache = insert(cache, problem, *as_arrays([[problem + 1]]), round_index)
    return cache


def test_nothing_is_found_in_an_empty_cache_not_even_the_free_slots():
    cache = empty()
    for problem in (0, 5, sc.EMPTY):
        assert paths_of(lookup(cache, problem)) == []
    chex.assert_type(jax.tree.leaves(cache), jnp.int32)


def test_what_was_inserted_is_found_and_nothing_after_its_end():
    cache = insert(empty(), 4, *as_arrays([[1, 2, 3, 4], [5]]), 0)
    assert paths_of(lookup(cache, 4)) == [(1, 2, 3, 4), (5,)]
    assert paths_of(lookup(cache, 3)) == []
    np.testing.assert_array_equal(cache.tokens[0, 0], [[1, 2, 3], [4, 0, 0]])  # stored by pages


def test_paths_not_kept_empty_or_too_long_are_not_stored():
    tokens, _, keep = as_arrays([[1], [2], [3], [4]], [False, True, True, True])
    cache = insert(empty(), 4, tokens, jnp.array([1, 0, WIDTH + 1, 1]), keep, 0)
    assert paths_of(lookup(cache, 4)) == [(4,)]


@pytest.mark.parametrize(("problem", "keep"), [(4, [False, False]), (-1, [True, True])])
def test_an_insertion_of_nothing_changes_nothing(problem, keep):
    before = filled((0, 0), (1, 0), (2, 0))
    chex.assert_trees_all_equal(insert(before, problem, *as_arrays([[1], [2]], keep), 5), before)


def test_new_paths_come_first_equal_ones_once_and_the_oldest_fall_out():
    cache = insert(empty(), 4, *as_arrays([[1], [2]]), 0)
    cache = insert(cache, 4, *as_arrays([[3], [3]]), 1)
    assert paths_of(lookup(cache, 4)) == [(3,), (1,)]
    # A path that is the beginning of another is not equal to it, whatever stands after its end.
    cache = insert(cache, 5, *as_arrays([[9, 0], [9]]), 1)
    assert paths_of(lookup(cache, 5)) == [(9, 0), (9,)]


@pytest.mark.parametrize(
    ("rounds", "gone"),
    [((3, 1, 2), 1), ((1, 1, 1), 0), ((2, 1, 1), 1)],
)
def test_a_full_cache_drops_the_oldest_round_and_the_lowest_slot_among_equals(rounds, gone):
    cache = filled(*enumerate(rounds))
    cache = insert(cache, 9, *as_arrays([[42]]), 4)
    np.testing.assert_array_equal(contains_many(cache, jnp.array([0, 1, 2, 9])), [p != gone for p in range(3)] + [True])
    assert paths_of(lookup(cache, 9)) == [(42,)]  # nothing of the dropped problem's is left


def test_an_insertion_makes_its_problem_young_again():
    cache = filled((0, 0), (1, 1), (2, 2), (0, 3))
    cache = insert(cache, 9, *as_arrays([[42]]), 4)
    np.testing.assert_array_equal(contains_many(cache, jnp.arange(3)), [True, False, True])


def test_a_removed_slot_is_used_before_anything_is_dropped():
    cache = remove(filled((0, 0), (1, 1), (2, 2)), 1)
    cache = insert(cache, 9, *as_arrays([[42]]), 3)
    np.testing.assert_array_equal(contains_many(cache, jnp.array([0, 1, 2, 9])), [True, False, True, True])
    chex.assert_trees_all_equal(remove(cache, 1), cache)
    chex.assert_trees_all_equal(remove(cache, sc.EMPTY), cache)


paths_strategy = st.lists(st.lists(st.integers(0, 2), max_size=WIDTH), min_size=3, max_size=3)
operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("insert"), st.integers(-1, 5), paths_strategy, st.lists(st.booleans(), min_size=3, max_size=3)
        ),
        st.tuples(st.just("remove"), st.integers(-1, 5)),
    ),
    max_size=14,
)


@settings(deadline=None, max_examples=60)
@given(steps=operations)
def test_any_history_equals_a_plain_dict(steps):
    cache, oracle = empty(), DictCache()
    for time, (what, problem, *rest) in enumerate(steps):
        if what == "insert":
            paths, keep = rest
            cache = insert(cache, problem, *as_arrays(paths, keep), time // 3)  # several problems share a round
            oracle.insert(problem, [p for p, k in zip(paths, keep) if k], time // 3)
        else:
            cache, _ = remove(cache, problem), oracle.remove(problem)
    for problem in range(-1, 6):
        assert paths_of(lookup(cache, problem)) == oracle.lookup(problem)
    assert sum(s is not None for s in oracle.slots) == int((cache.problem_ids != sc.EMPTY).sum())


def a_batch(seed=0, num_problems=12, num_paths=3):
    rng = np.random.default_rng(seed)
    return (
        jnp.array(rng.integers(-1, 9, num_problems)),
        jnp.array(rng.integers(0, 3, (num_problems, num_paths, WIDTH))),
        jnp.array(rng.integers(0, WIDTH + 1, (num_problems, num_paths))),
        jnp.array(rng.random((num_problems, num_paths)) < 0.8),
    )


def test_many_insertions_are_the_same_as_one_after_the_other():
    batch = a_batch()
    one_by_one = empty()
    for problem in zip(*batch):
        one_by_one = insert(one_by_one, *problem, 7)
    chex.assert_trees_all_equal(insert_many(empty(), *batch, 7), one_by_one)


def test_eight_devices_hold_the_same_cache_and_never_gather_it():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    plain = sc.init_cache(16, PATHS, PAGES, PAGE_LENGTH)
    spread = sc.shard_cache(plain, mesh)
    for round_index in range(3):
        batch = a_batch(round_index)
        plain, spread = insert_many(plain, *batch, round_index), insert_many(spread, *batch, round_index)
    chex.assert_trees_all_equal(spread, plain)
    for field in jax.tree.leaves(spread):
        assert not field.sharding.is_fully_replicated
        assert field.sharding.shard_shape(field.shape)[0] == 2
    ids = jnp.arange(-1, 9)
    chex.assert_trees_all_equal(lookup_many(spread, ids), lookup_many(plain, ids))
    # The tokens of all 16 slots must not meet on one device.
    whole = re.compile(r"s32\[16,2,2,3\]\S* all-gather")
    for function, arguments in ((insert_many, (*a_batch(), 0)), (lookup_many, (ids,))):
        assert not whole.search(function.lower(spread, *arguments).compile().as_text())


def test_shapes_do_not_depend_on_what_is_stored():
    chex.clear_trace_counter()
    counted = jax.jit(chex.assert_max_traces(n=1)(sc.insert))
    cache = empty()
    for problem in range(5):
        cache = counted(cache, jnp.int32(problem), *as_arrays([[1, 2], [3]]), jnp.int32(0))


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="page_length=0"):
        sc.init_cache(1, 1, 1, 0)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match=r"capacity of 12 .* 8 devices; .* is 16"):
        sc.shard_cache(sc.init_cache(12, 1, 1, 1), mesh)
