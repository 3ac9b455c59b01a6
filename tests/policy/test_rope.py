"""Rotary wavelengths and their scaling, by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax import policy
from deepsearch_jax.policy.rope import RopeScaling, apply_rope, rope_frequencies


def test_plain_and_linear_frequencies():
    np.testing.assert_allclose(rope_frequencies(4, 100.0, RopeScaling()), [1, 0.1])
    np.testing.assert_allclose(rope_frequencies(4, 100.0, RopeScaling("linear", 8.0)), [1 / 8, 0.1 / 8])


def test_llama3_keeps_short_wavelengths_stretches_long_ones_and_blends_between():
    # Frequencies 1, 0.1 and 0.01 turn 31.8, 3.18 and 0.318 times in 200 tokens: kept, blended, stretched.
    got = rope_frequencies(6, 1000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 200))
    kept = (20 / (2 * math.pi) - 1) / (4 - 1)
    np.testing.assert_allclose(got, [1, 0.1 * (kept + (1 - kept) / 8), 0.01 / 8])


def test_a_quarter_turn_swaps_the_halves():
    x = jnp.array([[[1.0, 2.0]]])  # one token, one head, one pair
    got = apply_rope(x, jnp.array([1]), jnp.array([math.pi / 2]))
    np.testing.assert_allclose(got[0, 0], [-2, 1], atol=1e-6)


def test_layers_with_a_window_turn_at_the_local_base():
    config = policy.ModelConfig.tiny(
        11, model_type="gemma3_text", hidden_size=16, num_heads=4, num_layers=3, layer_windows=(5, 0, 5),
        rope_theta=100.0, rope_scaling=RopeScaling("linear", 2.0), local_rope_theta=10_000.0,
    )  # fmt: skip
    np.testing.assert_allclose(config.layer_frequencies(), [[1, 0.01], [0.5, 0.05], [1, 0.01]])


@pytest.mark.parametrize("values", [{"kind": "yarn"}, {"kind": "linear", "factor": 0.0}, {"low_freq_factor": 4.0}])
def test_impossible_scalings_are_refused(values):
    with pytest.raises(ValueError, match=r"not supported|rope scaling needs factor > 0"):
        RopeScaling(**values)
