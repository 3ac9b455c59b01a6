"""Rows that are decoded a few at a time give what they give together, and idle ones are not decoded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax.decode import decode_children, decode_in_lots, lots, make_siblings
from tests.decode.trees import CONFIG, Trees, make_request, random_prompts, settings

ACTIVE = np.array([1, 0, 1, 1, 0, 1, 1, 0], bool)
NAMES = ("config", "settings", "lot_size")
in_lots = jax.jit(decode_in_lots, static_argnames=NAMES)


def grown():
    """Two prompts with a path of two nodes each, and eight rows of all depths that go on from there, two of them lost
    their pages; five are active."""
    own = settings(num_samples=2, recompute=True, recompute_chunk=4, entropy=True)
    trees = Trees(own, random_prompts(7, 4), pages_per_slot=20)
    paths = [[], []]
    for _ in range(2):
        segments, pages = trees.expand(paths, depth_bucket=3)
        paths = [[*path, (pages[row, 1], segments.tokens[row, 1])] for row, path in enumerate(paths)]
    slots = [0, 1, 1, 0, 0, 1, 0, 1]
    rows = [paths[slot][:depth] for slot, depth in zip(slots, (2, 2, 0, 1, 2, 2, 2, 1))]
    lost = [[(-1, tokens) for _, tokens in path] for path in rows]
    rows = [*rows[:5], *lost[5:7], rows[7]]
    keep = np.full((8, 3), -1)
    keep[5, :2], keep[6, :2] = (36, 37), (38, 39)
    keys = jax.random.split(jax.random.key(9), (8, 2))
    request = make_request(
        trees.prompts, rows, 3, own, child_pages=np.arange(16).reshape(8, 2) + 8, row_keys=keys, active=ACTIVE,
        slots=slots, keep_pages=keep,
    )  # fmt: skip
    return trees, request


def run(trees, request, lot_size):
    return jax.tree.map(np.asarray, in_lots(CONFIG, trees.params, trees.pages, request, trees.settings, lot_size))


@pytest.mark.parametrize("lot_size", [pytest.param(1, marks=pytest.mark.slow), 3, 5])
def test_lots_change_nothing(lot_size):
    trees, request = grown()
    (want_pages, want, want_recomputed), (pages, got, recomputed) = (run(trees, request, n) for n in (0, lot_size))
    assert want.lengths[ACTIVE].min() > 0
    for name in ("tokens", "lengths", "is_eos"):
        np.testing.assert_array_equal(getattr(got, name)[ACTIVE], getattr(want, name)[ACTIVE])
    for name in ("log_probs", "sampling_log_probs", "entropies"):
        np.testing.assert_allclose(getattr(got, name)[ACTIVE], getattr(want, name)[ACTIVE], atol=1e-5)
    for leaf in jax.tree.leaves(got):
        assert not leaf[~ACTIVE].any()
    np.testing.assert_array_equal(recomputed, np.where(ACTIVE, want_recomputed, 0))
    assert recomputed[5] == recomputed[6] == 7
    for field in ("keys", "values", "prompt_keys", "prompt_values"):
        np.testing.assert_allclose(getattr(pages, field), getattr(want_pages, field), atol=1e-5)
    assert np.abs(pages.keys[:, 36:40]).min(axis=(0, 2, 3, 4)).max() > 0  # what was encoded again is kept


def test_siblings_stay_with_their_rows():
    """All but one token of a vocabulary are siblings of each row, another one of each: that one must come."""
    trees, request = grown()
    V = CONFIG.vocab_size
    left = np.arange(8) * 3 + 1
    tokens = np.zeros((8, V - 1, 4), np.int32)
    tokens[..., 0] = [[token for token in range(V) if token != row] for row in left]
    log_probs = np.full((8, V - 1, 4), [-np.log(V), 0, 0, 0], np.float32)
    own = dataclasses.replace(trees.settings, eos_ids=tuple(range(V)))
    siblings = make_siblings(
        jnp.array(tokens), jnp.ones((8, V - 1), jnp.int32), jnp.array(log_probs), jnp.ones((8, V - 1), bool)
    )
    request = dataclasses.replace(request, siblings=siblings)
    _, segments, _ = in_lots(CONFIG, trees.params, trees.pages, request, own, 2)
    np.testing.assert_array_equal(segments.tokens[ACTIVE, :, 0], np.stack([left, left], 1)[ACTIVE])


@pytest.mark.parametrize(("num_active", "calls"), [(0, 0), (1, 1), (5, 3)])
def test_idle_rows_are_not_decoded(num_active, calls, monkeypatch):
    trees, request = grown()
    counted = []

    def count(*arguments):
        jax.debug.callback(lambda: counted.append(1))
        return decode_children(*arguments)

    monkeypatch.setattr(lots, "decode_children", count)
    request = dataclasses.replace(request, active=jnp.arange(8) >= 8 - num_active)
    jax.block_until_ready(decode_in_lots(CONFIG, trees.params, trees.pages, request, trees.settings, 2))
    jax.effects_barrier()
    assert len(counted) == calls


def test_without_active_rows_nothing_happens():
    trees, request = grown()
    request = dataclasses.replace(request, active=jnp.zeros(8, bool))
    pages, segments, recomputed = run(trees, request, 3)
    assert not any(leaf.any() for leaf in jax.tree.leaves((segments, recomputed)))
    np.testing.assert_array_equal(pages.keys, trees.pages.keys)


def test_the_pool_is_written_in_place():
    """A copy of all pages in every expansion took two thirds of a search iteration."""
    trees, request = grown()
    own = dataclasses.replace(trees.settings, recompute=False)
    donating = jax.jit(decode_in_lots, static_argnames=NAMES, donate_argnames="pages")
    program = donating.lower(CONFIG, trees.params, trees.pages, request, own, 3).compile().as_text()
    for field in (trees.pages.keys, trees.pages.prompt_keys):
        pool = "f32[" + ",".join(map(str, field.shape)) + "]"
        assert pool in program
        assert not [line for line in program.splitlines() if f"= {pool}" in line and " copy(" in line]
