"""Runs that train adapters: the base stays, updates are the same in every form, checkpoints hold adapters alone."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax.objective import LossSettings
from deepsearch_jax.policy import LoraSettings, init_params, merge, quantize_int8, unstack_layers, weights_fingerprint
from deepsearch_jax.runtime import MeshSettings, RunSettings, build_mesh
from deepsearch_jax.runtime.groups import PackSettings
from deepsearch_jax.runtime.interrupt import Interrupted
from deepsearch_jax.runtime.learning import Learner
from deepsearch_jax.runtime.settings import RoundSettings
from deepsearch_jax.training import UpdateSettings
from tests.runtime.conftest import ARITHMETIC, tiny_settings
from tests.runtime.test_learning import MODEL, make_groups
from tests.runtime.test_trainer import StopAt, assert_same_state, finish, make_trainer, rows

LORA = LoraSettings(rank=4, alpha=8.0)


def lora_settings(**changes):
    settings = tiny_settings()
    cold = dataclasses.replace(ARITHMETIC, warm_start_stages=())
    task = dataclasses.replace(settings.task, arithmetic=cold)
    return dataclasses.replace(settings, task=task, lora=LORA, **changes)


def learn(tmp_path, devices=None, **changes):
    """Adapters after the updates of one step, the learner and its metrics."""
    changes = {"pack": PackSettings(row_multiple=16, min_rows=8, trees="never")} | changes
    optimizer = {"learning_rate": 1e-2, "warmup_steps": 0, "eps": 1e-3} | changes.pop("optimizer", {})
    settings = lora_settings(
        optimizer=UpdateSettings(**optimizer),
        rounds=RoundSettings(problems_per_step=6, problems_per_update=3, group_size=4),
        **changes,
    )
    learner = Learner(settings, MODEL, devices, tmp_path)
    state = learner.init(init_params(MODEL, jax.random.key(0)))
    state, values = learner.learn(state, make_groups(6))
    return learner, state, values


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return learn(tmp_path_factory.mktemp("plain"))


def test_adapters_are_trained_and_nothing_else(learned):
    learner, state, values = learned
    assert values["updates"] == 2
    assert values["max_decode_train_gap"] is not None
    names = {path[-1].key for path, _ in jax.tree.leaves_with_path(state.params)}
    assert names == {"a", "b"}
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) <= 2 * trained + 4
    chex.assert_trees_all_equal(learner._base, init_params(MODEL, jax.random.key(0)))
    assert learner.base_fingerprint == weights_fingerprint(init_params(MODEL, jax.random.key(0)))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize(
    "changes",
    [
        {"pack": PackSettings(row_multiple=16, min_rows=8, trees="always")},
        pytest.param({"optimizer": {"micro_batch_tokens": 96}}, marks=pytest.mark.slow),
    ],
    ids=["trees", "tokens"],
)
def test_updates_are_the_same_in_every_form(learned, tmp_path, changes):
    _, state, values = learn(tmp_path, **changes)
    np.testing.assert_allclose(values["loss"], learned[2]["loss"], rtol=2e-5)
    np.testing.assert_allclose(values["grad_norm"], learned[2]["grad_norm"], rtol=2e-5)
    chex.assert_trees_all_close(state.params, learned[1].params, atol=2e-5)


@pytest.mark.slow
def test_updates_on_a_mesh_are_those_of_one_device(learned, tmp_path):
    learner, state, values = learn(tmp_path, build_mesh(8), num_devices=8, mesh=MeshSettings(fsdp=2, tensor=2))
    np.testing.assert_allclose(values["grad_norm"], learned[2]["grad_norm"], rtol=2e-5)
    chex.assert_trees_all_close(state.params, learned[1].params, atol=2e-5)
    kernel = learner._base["layers"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (1, kernel.shape[1] // 2, kernel.shape[2] // 2)


@pytest.mark.parametrize("int8", [False, True])
def test_decoding_uses_merged_weights(learned, int8, tmp_path):
    learner, state, _ = learned
    rollout = dataclasses.replace(learner.settings.rollout, int8=int8, unroll_layers="yes")
    other = Learner(dataclasses.replace(learner.settings, rollout=rollout), MODEL, None, tmp_path)
    other.init(init_params(MODEL, jax.random.key(0)))
    merged = merge(init_params(MODEL, jax.random.key(0)), state.params, scale=2.0)
    got = other.sampling_params(state)["layers"][0]["mlp"]["up"]["kernel"]
    if int8:
        wanted = unstack_layers(MODEL, quantize_int8(MODEL, merged))["layers"][0]["mlp"]["up"]["kernel"]
        np.testing.assert_array_equal(got.values, wanted.values)
    else:
        x = jnp.ones((1, MODEL.hidden_size))
        np.testing.assert_allclose(got.matmul(x), x @ merged["layers"]["mlp"]["up"]["kernel"][0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_reference_of_adapters_is_the_base(tmp_path):
    """A pull to the reference policy weighs nothing in the first update and something in the second."""
    settings = lora_settings(
        pack=PackSettings(row_multiple=16, min_rows=8, trees="never"),
        optimizer=UpdateSettings(learning_rate=1e-2, warmup_steps=0, eps=1e-3),
        rounds=RoundSettings(problems_per_step=6, group_size=4),
        loss=LossSettings(kl_coefficient=0.1),
    )
    learner = Learner(settings, MODEL, None, tmp_path)
    state = learner.init(init_params(MODEL, jax.random.key(0)))
    reference, found = learner.reference(state), []
    for _ in range(2):
        state, values = learner.learn(state, make_groups(6), reference)
        found.append(values["kl_to_reference"])
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[1] > 1e-4


@pytest.mark.slow
def test_a_run_resumes_from_adapters_alone_and_refuses_another_base(tmp_path):
    one_round = dataclasses.replace(tiny_settings().rounds, num_rounds=1)
    settings = lora_settings(rounds=one_round)
    whole = finish(make_trainer(tmp_path / "whole", settings))
    with pytest.raises(Interrupted):
        finish(make_trainer(tmp_path / "run", settings, stop=StopAt(5)))
    resumed = finish(make_trainer(tmp_path / "run", settings))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert_same_state(resumed, whole)
    assert int(whole.arrays.train.step) > 0
    assert resumed.position.base != ""
    assert {path[-1].key for path, _ in jax.tree.leaves_with_path(resumed.arrays.train.params)} == {"a", "b"}
    chex.assert_trees_all_equal(resumed.policy_params(), whole.policy_params())
    with pytest.raises(ValueError, match="is not the one that the adapters of the run"):
        make_trainer(tmp_path / "run", dataclasses.replace(settings, seed=1))  # draws another base


def test_a_warm_start_of_a_frozen_model_is_refused():
    with pytest.raises(ValueError, match=r"lora.rank=4 .*warm_start_stages=\(\)"):
        RunSettings(lora=LORA)
