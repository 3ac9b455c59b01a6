"""The optimizer against a hand-written AdamW, the learning rate by hand, rows that fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepsearch_jax import training
from deepsearch_jax.training import UpdateSettings


def adamw_by_hand(params, gradients, settings):
    """Textbook AdamW with global-norm clipping on dicts of float64 arrays."""
    first = {k: np.zeros_like(v) for k, v in params.items()}
    second = {k: np.zeros_like(v) for k, v in params.items()}
    for n, gradient in enumerate(gradients, start=1):
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        scale = min(1.0, settings.max_grad_norm / norm) if settings.max_grad_norm else 1.0
        rate = settings.learning_rate * min(1.0, n / settings.warmup_steps if settings.warmup_steps else 1.0)
        for k, g in gradient.items():
            first[k] = settings.b1 * first[k] + (1 - settings.b1) * g * scale
            second[k] = settings.b2 * second[k] + (1 - settings.b2) * (g * scale) ** 2
            mean, square = first[k] / (1 - settings.b1**n), second[k] / (1 - settings.b2**n)
            step = mean / (np.sqrt(square) + settings.eps) + settings.weight_decay * params[k]
            params = params | {k: params[k] - rate * step}
    return params


@pytest.mark.parametrize(
    "settings",
    [
        UpdateSettings(learning_rate=0.1, warmup_steps=2),
        UpdateSettings(learning_rate=0.1, warmup_steps=0, b2=0.9, max_grad_norm=0.0, weight_decay=0.0),
    ],
)
def test_three_steps_equal_adamw_written_by_hand(settings):
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 2)), "b": rng.normal(size=4)}
    gradients = [jax.tree.map(lambda p, s=s: s * rng.normal(size=p.shape), params) for s in (5.0, 0.1, 1.0)]
    optimizer = training.make_optimizer(settings)
    got = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
    state = optimizer.init(got)
    for gradient in gradients:
        updates, state = optimizer.update(jax.tree.map(lambda x: jnp.array(x, jnp.float32), gradient), state, got)
        got = optax.apply_updates(got, updates)
    expected = adamw_by_hand(params, gradients, settings)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 1000: 1.0}),
        ({"warmup_steps": 0}, {0: 1.0, 5: 1.0}),
        ({"warmup_steps": 1}, {0: 1.0, 5: 1.0}),
        # After the warm-up of 2 the cosine falls over 10 updates from 1 to .2, half way at .6.
        (
            {"warmup_steps": 2, "schedule": "cosine", "decay_steps": 10, "final_rate_share": 0.2},
            {0: 0.5, 1: 1.0, 2: 1.0, 7: 0.6, 12: 0.2, 50: 0.2},
        ),
    ],
)
def test_learning_rate_by_hand(changes, expected):
    rate = training.learning_rate(UpdateSettings(learning_rate=2.0, **changes))
    for count, share in expected.items():
        np.testing.assert_allclose(rate(count), 2.0 * share, rtol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        {"learning_rate": 0.0},
        {"schedule": "linear"},
        {"decay_steps": 0, "schedule": "cosine"},
        {"warmup_steps": -1},
        {"b2": 1.0},
        {"eps": 0.0},
        {"micro_batch_rows": -2},
    ],
)
def test_bad_settings_name_the_value(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        UpdateSettings(**bad)


@pytest.mark.parametrize(
    ("rows", "devices", "micro", "fits"), [(16, 8, 2, 16), (17, 8, 2, 32), (12, 8, 0, 16), (0, 1, 4, 4), (5, 1, 0, 5)]
)
def test_the_next_size_that_fits(rows, devices, micro, fits):
    assert training.num_rows_that_fit(rows, devices, micro) == fits
    if rows == fits:
        training.check_rows(rows, devices, micro)
    else:
        with pytest.raises(
            ValueError, match=rf"{rows} rows .* {devices} devices .* {max(micro, 1)} rows; .* is {fits} "
        ):
            training.check_rows(rows, devices, micro)


def test_padding_appends_empty_rows():
    padded = training.pad_rows({"x": np.ones((2, 3), np.int32), "y": np.ones(2, bool)}, 4)
    np.testing.assert_array_equal(padded["x"], [[1] * 3, [1] * 3, [0] * 3, [0] * 3])
    np.testing.assert_array_equal(padded["y"], [True, True, False, False])
    assert padded["x"].dtype == np.int32
    with pytest.raises(ValueError, match=r"2 rows .* 1"):
        training.pad_rows({"x": np.ones((2, 3))}, 1)
