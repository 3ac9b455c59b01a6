"""Path nodes without a page are encoded again: the results stay, and exactly the missing tokens are encoded."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax import policy
from deepsearch_jax.decode import decode_children
from tests.decode.trees import CONFIG, Trees, make_request, random_params, random_prompts, settings

S = 4
HOW = settings(num_samples=2, recompute=True, recompute_chunk=S)  # one program for many tests
ODD_CHUNK = settings(num_samples=2, recompute=True, recompute_chunk=5)


def grown(how=HOW, *, unstacked=False):
    """Two prompts, a path of three full nodes below each; no page is free any more, so that the pages stay as is."""
    params = policy.unstack_layers(CONFIG, random_params()) if unstacked else random_params()
    trees = Trees(how, random_prompts(7, 4), params=params, pages_per_slot=12)
    paths = [[], []]
    for _ in range(3):
        segments, pages = trees.expand(paths, depth_bucket=3)
        paths = [[*path, (pages[row, 1], segments.tokens[row, 1])] for row, path in enumerate(paths)]
    trees.free = [[], []]
    return trees, paths


def without(path, missing):
    return [(-1 if index in missing else page, tokens) for index, (page, tokens) in enumerate(path)]


SUBSETS = [set(some) for size in range(4) for some in itertools.combinations(range(3), size)]


@pytest.mark.parametrize(("how", "unstacked"), [(HOW, False), (ODD_CHUNK, True)])
def test_any_missing_pages_change_nothing(how, unstacked):
    trees, paths = grown(how, unstacked=unstacked)
    rows = [(slot, missing, 3) for slot in range(2) for missing in SUBSETS] + [(0, {1}, 2), (1, {0}, 1), (1, set(), 0)]
    keys = jax.random.split(jax.random.key(9), (2, 2))
    cut = [without(paths[slot], missing)[:depth] for slot, missing, depth in rows]
    slots = [slot for slot, _, _ in rows]
    segments, _ = trees.expand(cut, depth_bucket=3, slots=slots, row_keys=keys[jnp.array(slots)])
    trees.check(segments, cut, rows=[0, 7, 8, 13, 16, 17, 18], slots=slots)
    for row, (slot, _, depth) in enumerate(rows):
        if depth == 3:
            np.testing.assert_array_equal(segments.tokens[row], segments.tokens[8 * slot])
            np.testing.assert_allclose(segments.log_probs[row], segments.log_probs[8 * slot], atol=1e-4)
    want = [depth * S - 1 - S * min(missing) if missing else 0 for _, missing, depth in rows]
    np.testing.assert_array_equal(trees.recomputed, want)


def test_only_the_missing_tokens_are_encoded():
    """Wrong tokens given for the resident nodes change nothing, for nobody looks at them."""
    trees, paths = grown()
    keys = jax.random.split(jax.random.key(9), (2, 2))
    want, _ = trees.expand(paths, depth_bucket=3, row_keys=keys)
    np.testing.assert_array_equal(trees.recomputed, 0)
    cut = [without(paths[0], {2}), without(paths[1], {1, 2})]
    for row, resident in ((0, 2), (1, 1)):
        cut[row] = [(page, (tokens + 1) % 29 if i < resident else tokens) for i, (page, tokens) in enumerate(cut[row])]
    got, _ = trees.expand(cut, depth_bucket=3, row_keys=keys)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.log_probs, want.log_probs, atol=1e-4)
    np.testing.assert_array_equal(trees.recomputed, [S - 1, 2 * S - 1])


@pytest.mark.parametrize(("how", "unstacked"), [(HOW, False), pytest.param(ODD_CHUNK, True, marks=pytest.mark.slow)])
def test_recomputed_nodes_are_kept_where_asked(how, unstacked):
    trees, paths = grown(how, unstacked=unstacked)
    keys = jax.random.split(jax.random.key(9), (2, 2))
    want, _ = trees.expand(paths, depth_bucket=3, row_keys=keys)
    pages = np.array([[page for page, _ in path] for path in paths])
    whole = np.asarray(trees.pages.keys), np.asarray(trees.pages.values)
    for array in ("keys", "values"):
        wiped = getattr(trees.pages, array).at[:, pages[:, 1:].ravel()].set(0)
        trees.pages = trees.pages.replace(**{array: wiped})
    # Row 0 keeps both nodes, row 1 the last one only; row 1's pages of nodes that are not missing are not looked at.
    keep = np.array([[-1, pages[0, 1], pages[0, 2]], [pages[0, 0], -1, pages[1, 2]]])
    cut = [without(path, {1, 2}) for path in paths]
    trees.expand(cut, depth_bucket=3, row_keys=keys, keep_pages=keep)
    for got, before in zip((trees.pages.keys, trees.pages.values), whole):
        kept = [*pages[0], pages[1, 0], pages[1, 2]]
        np.testing.assert_allclose(np.asarray(got)[:, kept], before[:, kept], atol=1e-5)
        assert not np.asarray(got)[:, pages[1, 1]].any()
    got, _ = trees.expand([paths[0], without(paths[1], {1})], depth_bucket=3, row_keys=keys)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.log_probs, want.log_probs, atol=1e-4)
    np.testing.assert_array_equal(trees.recomputed, [0, 2 * S - 1])


def test_inactive_rows_are_neither_encoded_nor_kept():
    trees, paths = grown()
    before = jax.tree.map(np.asarray, trees.pages)
    cut = [without(path, {0, 1, 2}) for path in paths]
    keep = [[0, 1, 2], [0, 1, 2]]
    trees.expand(cut, depth_bucket=3, active=[False, False], keep_pages=keep)
    np.testing.assert_array_equal(trees.recomputed, 0)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(trees.pages)):
        np.testing.assert_array_equal(old, new)


def test_a_pool_without_pages_gives_the_same_search():
    with_pages, paths = grown()
    trees = Trees(HOW, with_pages.prompts, pages_per_slot=0)
    bare = [[], []]
    for depth in range(3):
        segments, pages = trees.expand(bare, depth_bucket=3)
        assert (pages == -1).all()
        np.testing.assert_array_equal(trees.recomputed, max(depth * S - 1, 0))
        bare = [[*path, (-1, segments.tokens[row, 1])] for row, path in enumerate(bare)]
    for path, want in zip(bare, paths):
        np.testing.assert_array_equal([tokens for _, tokens in path], [tokens for _, tokens in want])


def test_what_is_not_needed_is_not_compiled():
    trees = Trees(settings(), random_prompts(7, 4))
    keys, none = jax.random.split(jax.random.key(0), (2, 3)), np.full((2, 3), -1)

    def num_loops(recompute, bucket):
        how = settings(recompute=recompute)
        request = make_request(trees.prompts, [[], []], bucket, how, child_pages=none, row_keys=keys)
        lower = jax.jit(decode_children, static_argnums=(0, 4)).lower
        return lower(CONFIG, trees.params, trees.pages, request, how).as_text().count("stablehlo.while")

    assert num_loops(False, 3) == num_loops(False, 0) == num_loops(True, 0) < num_loops(True, 3)


def test_requests_that_cannot_be_served_are_refused():
    trees = Trees(settings(), random_prompts(4), pages_per_slot=0)
    with pytest.raises(ValueError, match="the pool has 0 pages; use a larger pool or recompute=True"):
        trees.expand([[]], depth_bucket=1)
    trees = Trees(settings(recompute=True), random_prompts(4))
    request = make_request(
        trees.prompts, [[]], 1, trees.settings, child_pages=np.full((1, 3), -1),
        row_keys=jax.random.split(jax.random.key(0), (1, 3)),
    )  # fmt: skip
    with pytest.raises(ValueError, match="recompute=True needs the path_tokens"):
        decode_children(CONFIG, trees.params, trees.pages, request.replace(path_tokens=None), trees.settings)
