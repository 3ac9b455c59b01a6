"""8-bit and bfloat16 moments: the map by hand, AdamW of optax, bytes, devices, checkpoints, skipped batches."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepsearch_jax import training
from deepsearch_jax.objective import LossSettings
from deepsearch_jax.policy import init_params, param_shardings
from deepsearch_jax.runtime.checkpoints import Checkpoints, CheckpointSettings
from deepsearch_jax.training import UpdateSettings, moments
from deepsearch_jax.training.moments import (
    Tiles,
    dequantise,
    quantise,
    random_bits,
    round_to_bfloat16,
    scale_by_small_adam,
    tile_shape,
)
from tests.training.models import log_prob_fn as small_log_probs
from tests.training.models import make_batch as small_batch
from tests.training.test_sharding import CONFIG, log_prob_fn, make_batch, make_mesh

# A large eps: at the sign-like first steps of AdamW rounding would flip gradients near zero.
SETTINGS = UpdateSettings(learning_rate=1e-3, warmup_steps=0, eps=1e-3, state_dtype="int8")


def one_tile(*values):
    """A tile of 64 x 64 whose first entries are `values`; the map looks at a tile of 16 x 16 of it."""
    return jnp.zeros((64, 64), jnp.float32).at[0, : len(values)].set(jnp.array(values, jnp.float32))


def test_levels_of_a_mean_by_hand():
    # The largest is 8. Its 127 levels are 8 * 2^(-10 (127 - c) / 126): c = 64 is 8 / 32 = 0.25, c = 1 is 8 / 1024.
    values = one_tile(-8, 0.25, 0.0, 8 / 2048)
    down, up = (quantise(values, jnp.full(values.shape, n), signed=True) for n in (0.5, 0.0))
    np.testing.assert_array_equal(down.codes[0, [0, 2]], [-127, 0])
    np.testing.assert_array_equal(dequantise(down)[0, [0, 2]], [-8, 0])
    assert abs(int(down.codes[0, 1])) in (63, 64, 65)  # on a level but for rounding
    # Half the lowest level: 0, or the level with a chance of one half.
    assert (int(down.codes[0, 3]), int(up.codes[0, 3])) == (0, 1)
    np.testing.assert_allclose(dequantise(up)[0, 3], 8 / 1024, rtol=1e-6)
    assert down.scales.shape == (4, 4)
    np.testing.assert_array_equal(down.scales, np.pad([[8.0]], (0, 3)))


def test_a_mean_of_squares_never_becomes_zero_and_its_levels_reach_further():
    values = one_tile(1.0, 2.0**-19, 2.0**-30, 0.0)
    got = dequantise(quantise(values, jnp.full(values.shape, 0.999), signed=False))[0, :4]
    np.testing.assert_allclose(got, [1, 2.0**-19, 2.0**-20, 0], rtol=0.06)


@pytest.mark.parametrize(("signed", "factor"), [(True, 2 ** (10 / 126)), (False, 2 ** (20 / 254))])
def test_rounding_goes_to_a_neighbouring_level_and_is_right_on_average(signed, factor):
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(-6, 0, (2, 64, 32))) * (np.sign(rng.normal(size=(2, 64, 32))) if signed else 1)
    total, count = np.zeros_like(x), 64
    for number in range(count):
        noise = jnp.full(x.shape, (number + 0.5) / count)
        got = np.asarray(dequantise(quantise(jnp.float32(x), noise, signed=signed)))
        assert (got / x <= factor * 1.0001).all()
        assert (got / x >= 1 / factor / 1.0001).all()
        total += got
    np.testing.assert_allclose(total / count, x, rtol=1.2 * (factor - 1) / count)


def test_tiles_end_where_shards_end():
    assert tile_shape((24, 896, 4864)) == (16, 16)
    assert tile_shape((151936, 896)) == (16, 16)
    assert tile_shape((24, 1536, 8)) == (32, 8)  # thin matrices (adapters) have longer tiles
    assert tile_shape((151, 128)) == (1, 128)
    assert tile_shape((24, 896)) == (8, 32)  # stacked norms are told by their name
    assert tile_shape((50, 50)) is None  # small
    assert tile_shape((101, 103)) is None  # nothing divides
    assert tile_shape((8192,)) is None


def test_the_noise_is_uniform_and_of_place_parameter_and_update():
    bits = np.asarray(random_bits((256, 256), jnp.int32(5), 0))
    for half in (bits & 0xFFFF, bits >> 16):
        counts = np.bincount(half.ravel() >> 12, minlength=16)
        assert ((counts - 4096) ** 2 / 4096).sum() < 40  # chi-square of 15 degrees: one in 2,000 is above
        assert abs(np.corrcoef(half[:, :-1].ravel(), half[:, 1:].ravel())[0, 1]) < 0.02
    others = random_bits((256, 256), jnp.int32(6), 0), random_bits((256, 256), jnp.int32(5), 1)
    for other in others:
        assert abs(np.corrcoef(bits.ravel(), np.asarray(other).ravel())[0, 1]) < 0.02
    np.testing.assert_array_equal(bits[:3, :], random_bits((3, 256), jnp.int32(5), 0))


def test_bfloat16_is_rounded_to_a_neighbour_and_right_on_average():
    x = np.float32(np.random.default_rng(0).normal(size=(64,)))
    noise = jnp.arange(64, dtype=jnp.uint32) * 1024 + 512
    got = np.stack([np.asarray(round_to_bfloat16(jnp.array(x), jnp.full(64, n)), np.float32) for n in noise])
    assert (abs(got - x) <= abs(x) * 2.0**-7).all()
    np.testing.assert_allclose(got.mean(axis=0), x, rtol=2.0**-7 / 64)
    odd = jnp.float32([np.inf, -np.inf, np.nan, 0])
    np.testing.assert_array_equal(round_to_bfloat16(odd, jnp.full(4, 0xFFFF, jnp.uint32)).astype(jnp.float32), odd)


def problem(seed=0):
    """A two-layer regression with fresh inputs at each step."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {"in": jax.random.normal(keys[0], (64, 96)) / 8, "out": jax.random.normal(keys[1], (96, 64)) / 10}
    target = jnp.sin(jnp.arange(64 * 64.0)).reshape(64, 64) * 0.3

    def loss(params, key):
        x = jax.random.normal(key, (64, 64))
        return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - jnp.tanh(x @ target)) ** 2)

    return params, loss


@pytest.mark.parametrize("shape", [(3, 64, 32), (32, 384)])
def test_large_parameters_are_updated_piece_by_piece(monkeypatch, shape):
    assert moments._num_groups(56) == 7  # 896 columns: seven groups of 8 tiles
    assert moments._num_groups(24) == 3
    keys = jax.random.split(jax.random.key(0), 4)
    gradients = [{"kernel": jax.random.normal(key, shape)} for key in keys]
    updates = {}
    for piece in (1 << 22, 1024):
        monkeypatch.setattr(moments, "PIECE", piece)
        optimizer = scale_by_small_adam(0.9, 0.999, 1e-8, "int8")
        state, run = optimizer.init(gradients[0]), jax.jit(lambda g, s, o=optimizer: o.update(g, s))
        for gradient in gradients:
            steps, state = run(gradient, state)
        updates[piece] = np.asarray(steps["kernel"]), state
    # Other random bits, the same moments but for rounding to a neighbouring level.
    whole, pieces = updates.values()
    np.testing.assert_array_equal(whole[1].mu["kernel"].scales.shape, pieces[1].mu["kernel"].scales.shape)
    np.testing.assert_allclose(whole[1].nu["kernel"].scales, pieces[1].nu["kernel"].scales, rtol=0.2)
    assert np.corrcoef(whole[0].ravel(), pieces[0].ravel())[0, 1] > 0.999
    codes = [np.asarray(u[1].mu["kernel"].codes, np.int32) for u in (whole, pieces)]
    assert np.abs(codes[0] - codes[1]).mean() < 3
    assert (codes[0] != codes[1]).any()


@functools.cache
def trajectory(state_dtype, seed=0, num_steps=200):
    params, loss = problem(seed)
    if state_dtype == "optax":
        optimizer = optax.adamw(3e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)
    else:
        optimizer = training.make_optimizer(
            UpdateSettings(learning_rate=3e-3, warmup_steps=0, state_dtype=state_dtype, max_grad_norm=0)
        )

    @jax.jit
    def step(state, key):
        params, opt_state = state
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    losses, begin = [], params
    keys = jax.random.split(jax.random.key(1), num_steps)
    state, first = (params, optimizer.init(params)), None
    for key in keys:
        state, value = step(state, key)
        first = state[0] if first is None else first
        losses.append(float(value))
    return begin, first, state, np.array(losses)


@pytest.mark.parametrize("state_dtype", ["int8", "bfloat16"])
def test_the_trajectory_is_close_to_that_of_optax_adamw(state_dtype):
    _, first, (params, _), losses = trajectory(state_dtype)
    begin, other_first, (other, _), expected = trajectory("optax")
    chex.assert_trees_all_close(first, other_first, rtol=1e-5, atol=1e-7)  # nothing was rounded before the first step
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (begin, params, other)]
    off, moved = np.linalg.norm(flat[1] - flat[2]), np.linalg.norm(flat[2] - flat[0])
    assert off < 0.1 * moved
    np.testing.assert_allclose(losses[-50:].mean(), expected[-50:].mean(), rtol=0.03)
    assert expected[-50:].mean() < 0.2 * expected[0]


def test_bytes_of_the_state():
    params = init_params(CONFIG, jax.random.key(0))
    matrices = sum(p.size for p in jax.tree.leaves(params) if tile_shape(p.shape) and p.shape[-2] > 2)
    others = sum(p.size for p in jax.tree.leaves(params)) - matrices
    for state_dtype, expected in (("int8", 2 * (1 + 4 / 256)), ("bfloat16", 4)):
        state = scale_by_small_adam(0.9, 0.999, 1e-8, state_dtype).init(params)
        assert sum(leaf.nbytes for leaf in jax.tree.leaves((state.mu, state.nu))) == expected * matrices + 8 * others
    # Norms and biases of all layers, stacked, are as large as matrices and stay float32 all the same.
    stacked = {name: jnp.zeros((64, 128)) for name in ("scale", "bias", "kernel")}
    mean = scale_by_small_adam(0.9, 0.999, 1e-8, "int8").init(stacked).mu
    assert [type(mean[name]) is Tiles for name in stacked] == [False, False, True]


def some_params():
    """Two matrices of the decoder, with their names."""
    layers = init_params(CONFIG, jax.random.key(0))["layers"]
    return {"layers": {"attention": {"query": layers["attention"]["query"]}, "mlp": {"down": layers["mlp"]["down"]}}}


@pytest.mark.parametrize("shape", [(2, 2, 2), pytest.param((1, 8, 1), marks=pytest.mark.slow)])
def test_on_a_mesh_the_moments_lie_with_their_parameters_and_are_those_of_one_device(shape):
    optimizer, params = training.make_optimizer(SETTINGS), some_params()
    gradients = [jax.tree.map(lambda p, k=k: 0.01 * jax.random.normal(jax.random.key(k), p.shape), params)
                 for k in range(2)]  # fmt: skip
    placement, found = param_shardings(CONFIG, params, make_mesh(shape)), {}
    for where, put in (("one", lambda tree: tree), ("mesh", lambda tree: jax.device_put(tree, placement))):
        state, step = optimizer.init(put(params)), jax.jit(optimizer.update)
        begin = state[1][0].mu["layers"]["mlp"]["down"]["kernel"]
        for gradient in gradients:
            updates, state = step(put(gradient), state, put(params))
        found[where] = updates, state[1][0]
    chex.assert_trees_all_close(found["mesh"][0], found["one"][0], rtol=1e-4, atol=1e-9)
    wanted = placement["layers"]["mlp"]["down"]["kernel"]
    assert begin.codes.sharding.is_equivalent_to(wanted, 3)
    assert begin.scales.sharding.is_equivalent_to(wanted, 3) == (shape[1] == 2)
    for moment in ("mu", "nu"):
        for module, name in (("attention", "query"), ("mlp", "down")):
            got, expected = (getattr(found[w][1], moment)["layers"][module][name]["kernel"] for w in ("mesh", "one"))
            wanted = placement["layers"][module][name]["kernel"]
            assert got.codes.sharding.is_equivalent_to(wanted, 3)
            # 64 rows are four tiles: over eight devices their scales stay whole.
            assert got.scales.sharding.is_equivalent_to(wanted, 3) == (shape[1] == 2)
            assert (np.asarray(got.codes) != np.asarray(expected.codes)).mean() < 1e-3
            np.testing.assert_allclose(got.scales, expected.scales, rtol=1e-5)


def updated_on(shape):
    """State after three updates on a mesh; None: one device."""
    mesh, params = None if shape is None else make_mesh(shape), init_params(CONFIG, jax.random.key(0))
    if mesh is not None:
        params = jax.device_put(params, param_shardings(CONFIG, params, mesh))
    state, batch = training.init_train_state(params, SETTINGS, mesh), make_batch()
    of = log_prob_fn(None if shape in (None, (8, 1, 1)) else mesh)
    for _ in range(3):
        state, _ = training.update(state, batch, of, LossSettings(), SETTINGS, mesh)
    return state


def adam_state(state):
    return next(s for s in state.opt_state[1] if hasattr(s, "mu"))


@pytest.mark.slow
def test_updates_on_a_mesh_are_those_of_one_device():
    got, expected = updated_on((2, 2, 2)), updated_on(None)
    # Where gradients differ by rounding a code may fall to the neighbouring level, 5.7 % off, which moves a weight by
    # as much of the rate in each later update; it is rare.
    pairs = zip(jax.tree.leaves(got.params), jax.tree.leaves(expected.params), strict=True)
    off = np.concatenate([np.abs(np.asarray(one) - np.asarray(other)).ravel() for one, other in pairs])
    assert off.max() < 3 * 0.06 * SETTINGS.learning_rate
    assert (off < 2e-6).mean() > 0.999
    kernel, moment = (s["layers"]["mlp"]["down"]["kernel"] for s in (got.params, adam_state(got).nu))
    assert moment.codes.sharding.is_equivalent_to(kernel.sharding, 3)


def wide_state(settings=SETTINGS):
    """A state of the small model of the tests whose matrices are large enough for 8 bits, after an update."""
    rng = np.random.default_rng(0)
    params = {"embed": rng.normal(size=(64, 64)) / 8, "out": rng.normal(size=(64, 64)) / 8}
    state = training.init_train_state(jax.tree.map(jnp.float32, params), settings)
    state, _ = training.update(state, small_batch(), small_log_probs, LossSettings(), settings)
    assert adam_state(state).mu["out"].codes.any()
    return state


def test_a_restored_state_goes_on_bit_for_bit(tmp_path):
    state, checkpoints = wide_state(), Checkpoints(tmp_path, CheckpointSettings())
    checkpoints.save(1, state, {}, wait=True)
    restored = checkpoints.restore_arrays(state)
    checkpoints.close()
    assert adam_state(restored).mu["out"].codes.dtype == jnp.int8
    one, other = (
        training.update(s, small_batch(1), small_log_probs, LossSettings(), SETTINGS)[0]
        for s in (jax.tree.map(jnp.copy, state), restored)
    )
    chex.assert_trees_all_equal(one, other)
    assert int(one.step) == 2


def test_a_batch_that_is_not_finite_changes_nothing():
    state, batch = wide_state(), small_batch()
    before = jax.tree.map(np.asarray, state)
    bad = batch.replace(advantages=np.where(batch.loss_mask, np.nan, 0).astype(np.float32))
    state, metrics = training.update(state, bad, small_log_probs, LossSettings(), SETTINGS)
    assert not metrics["is_applied"]
    chex.assert_trees_all_equal((state.params, state.opt_state), (before.params, before.opt_state))


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="state_dtype='fp8' is not known; choose one of float32, bfloat16, int8"):
        UpdateSettings(state_dtype="fp8")
