"""Prompts encoded several together give what each gives alone, and slots without a new prompt stay as they are."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax import policy
from deepsearch_jax.decode import init_pages
from tests.decode.trees import CONFIG, encode, random_params

ROOM = 9


def encoded(params, lengths, refresh, chunk_size):
    """[2, L, B, Hkv, ROOM, Dh] of keys and values that were 7 everywhere before."""
    pages = init_pages(CONFIG, len(lengths), 0, 3, ROOM)
    pages = type(pages)(pages.keys, pages.values, pages.prompt_keys + 7, pages.prompt_values + 7)
    tokens = np.stack([np.random.default_rng(length).integers(1, 5, ROOM) for length in lengths])
    args = jnp.array(tokens, jnp.int32), jnp.array(lengths), jnp.array(refresh)
    pages = encode(CONFIG, params, pages, *args, chunk_size=chunk_size)
    return np.stack([pages.prompt_keys, pages.prompt_values])


@pytest.mark.parametrize("form", ["scanned", "unstacked"])
@pytest.mark.parametrize(
    ("num_slots", "waiting"), [(11, ()), (11, (0, 4)), (9, (2, 5)), (2, (0,))], ids=["8+3", "8+1", "7 of 8", "1"]
)
def test_slots_encoded_together_equal_each_alone(form, num_slots, waiting):
    params = random_params() if form == "scanned" else policy.unstack_layers(CONFIG, random_params())
    lengths = np.random.default_rng(num_slots).integers(1, ROOM + 1, num_slots)
    lengths[-1] = ROOM  # three chunks of 4, the last of which starts early; others have fewer
    refresh = ~np.isin(np.arange(num_slots), waiting)
    together = encoded(params, lengths, refresh, 4)
    for slot in range(num_slots):
        got = together[:, :, slot]
        if not refresh[slot]:
            np.testing.assert_array_equal(got, 7)
            continue
        written = lengths[slot] - 1
        alone = encoded(params, lengths[slot : slot + 1], [True], 256)[:, :, 0]
        np.testing.assert_allclose(got[..., :written, :], alone[..., :written, :], atol=1e-5)


def test_bfloat16_prompts_are_those_of_float32_but_for_rounding():
    short = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    pages = init_pages(short, 2, 0, 3, ROOM)
    tokens = jnp.asarray(np.random.default_rng(1).integers(1, 5, (2, ROOM)), jnp.int32)
    args = tokens, jnp.array([ROOM, 6]), jnp.ones(2, bool)
    got = encode(short, random_params(), pages, *args, chunk_size=4)
    expected = encode(CONFIG, random_params(), init_pages(CONFIG, 2, 0, 3, ROOM), *args, chunk_size=4)
    assert got.prompt_keys.dtype == jnp.bfloat16
    for name in ("prompt_keys", "prompt_values"):
        near, far = (np.asarray(getattr(side, name), np.float32) for side in (got, expected))
        assert np.abs(near - far).max() < 0.05 * np.abs(far).max()
        assert np.abs(far).max() > 0.1
