"""Adapters of every family: nothing at first, merged equal to apart, gradients of merged matrices, PEFT's format."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from safetensors.numpy import load_file

from deepsearch_jax import policy
from deepsearch_jax.policy import LoraSettings, ModelConfig, adapt, init_adapters, merge
from tests.policy.test_model import as_arrays

LORA = LoraSettings(rank=4, alpha=6.0)  # scale 1.5
KERNELS = {"attention": ("query", "key", "value", "output"), "mlp": ("gate", "up", "down")}


def trained_adapters(config, seed=0):
    """Adapters whose B is not 0 any more."""
    adapters = init_adapters(config, LORA, jax.random.key(seed))
    leaves, structure = jax.tree.flatten(adapters)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return jax.tree.unflatten(structure, [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


@functools.partial(jax.jit, static_argnames="config")
def log_probs(config, params, tokens, mask):
    return policy.token_log_probs(config, params, tokens, mask, chunk_size=7)[0]


def test_fresh_adapters_change_nothing_and_trained_ones_are_those_merged(recorded):
    config, params = recorded.config, recorded.params
    tokens, mask = as_arrays(recorded.golden["cases"][0])
    base = log_probs(config, params, tokens, mask)
    fresh = init_adapters(config, LORA, jax.random.key(0))
    np.testing.assert_array_equal(log_probs(config, adapt(params, fresh, LORA.scale), tokens, mask), base)
    chex.assert_trees_all_equal(merge(params, fresh, scale=LORA.scale), params)
    adapters = trained_adapters(config)
    apart = log_probs(config, adapt(params, adapters, LORA.scale), tokens, mask)
    together = log_probs(config, merge(params, adapters, scale=LORA.scale), tokens, mask)
    assert np.abs(apart - base).max() > 0.1
    np.testing.assert_allclose(apart, together, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_merged_matrices_projected(recorded):
    """W' = W + s A B gives dA = s dW' B^T and dB = s A^T dW'; rows of trees too."""
    config, params, adapters = recorded.config, recorded.params, trained_adapters(recorded.config)
    tokens, mask = as_arrays(recorded.golden["cases"][0])

    @jax.jit
    def of_adapters(adapters):
        return jax.grad(lambda a: log_probs(config, adapt(params, a, LORA.scale), tokens, mask).sum())(adapters)

    @jax.jit
    def of_matrices(merged):
        return jax.grad(lambda p: log_probs(config, p, tokens, mask).sum())(merged)

    got = of_adapters(adapters)
    merged = of_matrices(merge(params, adapters, scale=LORA.scale))
    for block, names in KERNELS.items():
        for name in names:
            whole = np.asarray(merged["layers"][block][name]["kernel"], np.float64)
            a, b = (np.asarray(adapters["layers"][block][name][x], np.float64) for x in "ab")
            for ours, expected in (("a", 1.5 * whole @ b.swapaxes(1, 2)), ("b", 1.5 * a.swapaxes(1, 2) @ whole)):
                found = got["layers"][block][name][ours]
                np.testing.assert_allclose(
                    found, expected, atol=2e-5 * np.abs(expected).max(), err_msg=f"{name} {ours}"
                )


def test_the_base_is_kept_in_the_compute_dtype_and_computes_the_same():
    config = ModelConfig.tiny(11, hidden_size=16, num_layers=2, num_heads=2, compute_dtype="bfloat16")
    params = policy.init_params(config, jax.random.key(0))
    base = policy.freeze(config, params)
    assert base["layers"]["mlp"]["up"]["kernel"].dtype == base["embed"]["embedding"].dtype == jnp.bfloat16
    assert base["layers"]["mlp_norm"]["scale"].dtype == jnp.float32
    tokens = jnp.arange(8)[None] % 11
    np.testing.assert_array_equal(
        log_probs(config, base, tokens, jnp.ones_like(tokens)), log_probs(config, params, tokens, jnp.ones_like(tokens))
    )
    assert policy.weights_fingerprint(base) == policy.weights_fingerprint(params)
    swapped = params | {"embed": {"embedding": params["embed"]["embedding"][::-1]}}
    assert policy.weights_fingerprint(swapped) != policy.weights_fingerprint(params)


def test_only_targets_get_adapters_and_a_targets_draw_does_not_depend_on_the_others():
    config = ModelConfig.tiny(11, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=40)
    every = init_adapters(config, LORA, jax.random.key(0))
    some = init_adapters(config, LoraSettings(rank=4, targets=("key", "down")), jax.random.key(0))
    assert jax.tree.map(jnp.shape, some) == {
        "layers": {
            "attention": {"key": {"a": (2, 16, 4), "b": (2, 4, 8)}},
            "mlp": {"down": {"a": (2, 40, 4), "b": (2, 4, 16)}},
        }
    }
    np.testing.assert_array_equal(some["layers"]["mlp"]["down"]["a"], every["layers"]["mlp"]["down"]["a"])
    bound = np.abs(every["layers"]["mlp"]["down"]["a"]).max()
    assert 0.9 / np.sqrt(40) < bound <= 1 / np.sqrt(40)


def test_adapters_are_cut_as_their_matrices():
    config = ModelConfig.tiny(16, hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=1, head_dim=8)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    specs = policy.param_specs(config, init_adapters(config, LORA, jax.random.key(0)), mesh)["layers"]
    assert specs["attention"]["query"]["a"] == PartitionSpec(None, "fsdp", None)
    assert specs["attention"]["query"]["b"] == PartitionSpec(None, None, "tensor")
    assert specs["attention"]["output"]["a"] == PartitionSpec(None, "tensor", None)
    assert specs["attention"]["key"]["b"] == PartitionSpec(None, None, None)  # one head
    assert specs["mlp"]["down"]["b"] == PartitionSpec(None, None, "fsdp")


@pytest.mark.parametrize("targets", [("query", "value"), LoraSettings().targets])
def test_an_adapter_directory_has_the_published_names_and_gives_the_merged_model(recorded, tmp_path, targets):
    config, params = recorded.config, recorded.params
    settings = LoraSettings(rank=4, alpha=6.0, targets=targets)
    adapters = trained_adapters(config)
    adapters = {"layers": {block: {name: pair for name, pair in modules.items() if name in targets}
                           for block, modules in adapters["layers"].items()}}  # fmt: skip
    policy.save_adapter(tmp_path / "adapter", config, adapters, settings, base_model="models/base")
    described = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    published = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert described["target_modules"] == (published if len(targets) == 7 else ["q_proj", "v_proj"])
    wanted = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "bias": "none",
              "lora_dropout": 0.0, "fan_in_fan_out": False, "base_model_name_or_path": "models/base",
              "modules_to_save": None, "use_rslora": False}  # fmt: skip
    assert wanted.items() <= described.items()
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert len(tensors) == 2 * len(targets) * config.num_layers
    first = "base_model.model.model.layers.0.self_attn.q_proj"
    assert tensors[f"{first}.lora_A.weight"].shape == (4, config.hidden_size)
    assert tensors[f"{first}.lora_B.weight"].shape == (config.num_heads * config.head_dim, 4)
    # What a loader does: W + lora_alpha / r * B A, tensor by tensor, is the merged model as it is saved.
    policy.save_pretrained(tmp_path / "merged", config, merge(params, adapters, scale=settings.scale))
    merged = load_file(tmp_path / "merged/model.safetensors")
    changed = load_file(recorded.path / "model.safetensors")
    for name in [n for n in tensors if n.endswith("lora_A.weight")]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        delta = 6 / 4 * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        changed[f"{module}.weight"] = changed[f"{module}.weight"].astype(np.float32) + delta
    for name, value in merged.items():
        np.testing.assert_allclose(value, changed[name].astype(np.float32), atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"rank": -1}, "rank=-1 must be at least 1, or 0"),
        ({"alpha": 0.0}, "alpha=0.0 must be positive"),
        ({"targets": ("q_proj",)}, "must be some of query, key, value, output, gate, up, down"),
        ({"targets": ()}, "must be some of"),
        ({"targets": ("up", "up")}, "each once"),
    ],
)
def test_bad_settings_name_the_value(bad, words):
    with pytest.raises(ValueError, match=words):
        LoraSettings(**bad)
