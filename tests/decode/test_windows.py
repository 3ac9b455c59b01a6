"""Layers with a sliding window: prompt chunks, paths and own tokens, each with keys out of reach."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax import policy
from tests.decode.trees import Trees, random_params, random_prompts, settings

GEMMA = policy.ModelConfig.tiny(
    29, model_type="gemma3_text", hidden_size=24, num_layers=3, num_heads=4, num_kv_heads=2, query_scalar=10,
    layer_windows=(5, 0, 5), local_rope_theta=100.0,
)  # fmt: skip


@pytest.mark.parametrize(("form", "chunk_size"), [("scanned", 4), ("unstacked", 256)])
def test_tree_decode_equals_one_full_forward_pass(form, chunk_size):
    """Windows of 5 tokens, prompts of 9 and 3, segments of 7: they end within prompt, path and own tokens."""
    params = random_params(GEMMA)
    if form == "unstacked":
        params = policy.unstack_layers(GEMMA, params, copy_head=True)
    trees = Trees(settings(segment_length=7), random_prompts(9, 3), config=GEMMA, params=params, chunk_size=chunk_size)
    trees.stacked = random_params(GEMMA)
    paths = [[], []]
    for _ in range(3):
        segments, pages = trees.expand(paths, depth_bucket=3)
        trees.check(segments, paths)
        paths = [[*path, (pages[row, 1], segments.tokens[row, 1])] for row, path in enumerate(paths)]


def test_nodes_that_are_encoded_again_see_through_windows_too():
    params = random_params(GEMMA)
    trees = Trees(
        settings(segment_length=7, recompute=True, recompute_chunk=4), random_prompts(9, 3), config=GEMMA, params=params
    )
    segments, pages = trees.expand([[], []], depth_bucket=2)
    paths = [[(pages[row, 0], segments.tokens[row, 0])] for row in range(2)]
    segments, _ = trees.expand(paths, depth_bucket=2)
    paths = [[*path, (-1, segments.tokens[row, 2])] for row, path in enumerate(paths)]
    paths[1][0] = (-1, paths[1][0][1])
    segments, _ = trees.expand(paths, depth_bucket=2)
    np.testing.assert_array_equal(trees.recomputed, [6, 13])
    trees.check(segments, paths)


def test_windows_change_the_result():
    """Else the tests above would say nothing."""
    tokens = jnp.array(random_prompts(20)[0])[None]
    whole = dataclasses.replace(GEMMA, layer_windows=(64, 0, 64))
    params = random_params(GEMMA)
    near, far = (policy.token_log_probs(c, params, tokens, jnp.ones_like(tokens))[0] for c in (GEMMA, whole))
    np.testing.assert_allclose(near[0, :5], far[0, :5], atol=1e-5)
    assert np.abs(near - far).max() > 0.01
