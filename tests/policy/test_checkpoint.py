"""Hugging Face directories: what is read, what is written, what is refused."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from deepsearch_jax import policy
from tests.policy.conftest import DATA

TINY = DATA / "tiny_qwen2"


@pytest.fixture
def broken(tmp_path):
    """A copy of the tiny checkpoint that a test may damage."""
    return copy_of("qwen2", tmp_path)


def copy_of(name, tmp_path):
    return pathlib.Path(shutil.copytree(DATA / f"tiny_{name}", tmp_path / "model"))


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    config = {key: value for key, value in (config | changes).items() if value != "DELETE"}
    (path / "config.json").write_text(json.dumps(config))


def tensors_of(path):
    return {name: value for file in sorted(path.glob("*.safetensors")) for name, value in load_file(file).items()}


def test_both_forms_of_the_rope_keys_give_one_config(recorded):
    old, new = (
        policy.ModelConfig.from_hf(json.loads((recorded.path / name).read_text()))
        for name in ("config.json", "config_transformers5.json")
    )
    assert old == new
    assert old.rope_theta == (1e4 if old.model_type == "llama" else 1e6)
    assert old.eos_ids == (1,)


def test_what_the_families_configs_say_is_read():
    llama, gemma = (policy.load_config(DATA / f"tiny_{name}") for name in ("llama3", "gemma3"))
    assert llama.rope_scaling == policy.RopeScaling("llama3", 8.0, 1.0, 4.0, 32)
    assert (gemma.layer_windows, gemma.query_scalar, gemma.local_rope_theta) == ((8, 0), 24, 1e4)


def test_keys_that_published_gemma_configs_leave_out_have_their_meaning():
    """Early files name neither layer_types nor a tied head; scaled ones stretch the layers without a window."""
    config = policy.ModelConfig.from_hf(
        {
            "architectures": ["Gemma3ForCausalLM"], "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 7, "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 512,
            "sliding_window_pattern": 6, "rope_local_base_freq": 10000, "rope_theta": 1000000,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        }
    )  # fmt: skip
    assert config.layer_windows == (512,) * 5 + (0, 512)
    assert (config.head_dim, config.query_scalar, config.tie_word_embeddings) == (256, 256, True)
    assert config.rope_scaling == policy.RopeScaling("linear", 8.0)
    assert policy.ModelConfig.from_hf(config.to_hf("float32")) == config


def test_every_eos_id_of_both_files_counts(broken):
    (broken / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 1, 9]}))
    assert policy.load_config(broken).eos_ids == (1, 7, 9)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000])
def test_saving_writes_the_tensors_that_were_read(recorded, tmp_path, max_shard_bytes):
    config, params = recorded.config, recorded.params
    policy.save_pretrained(tmp_path, config, params, max_shard_bytes=max_shard_bytes)
    want, got = tensors_of(recorded.path), tensors_of(tmp_path)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_bytes < 10**9)
    config_again, params_again = policy.load_pretrained(tmp_path)
    assert config_again == config
    jax.tree.map(np.testing.assert_array_equal, params_again, params)


def test_a_second_save_replaces_the_shards_of_the_first(tmp_path):
    config, params = policy.load_pretrained(TINY)
    policy.save_pretrained(tmp_path, config, params, max_shard_bytes=100_000)
    policy.save_pretrained(tmp_path, config, jax.tree.map(lambda x: x + 1, params))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "generation_config.json", "model.safetensors"]
    again = policy.load_pretrained(tmp_path)[1]
    np.testing.assert_array_equal(again["final_norm"]["scale"], params["final_norm"]["scale"] + 1)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama", "gemma3_text"])
@pytest.mark.parametrize(("tied", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_narrow_weights_and_both_heads_survive_the_round_trip(tmp_path, tied, dtype, model_type):
    config = policy.ModelConfig.tiny(
        11, hidden_size=16, num_heads=2, num_kv_heads=1, tie_word_embeddings=tied, eos_ids=(3, 4), pad_id=0,
        model_type=model_type,
    )  # fmt: skip
    params = policy.init_params(config, jax.random.key(0))
    policy.save_pretrained(tmp_path, config, params, dtype=dtype)
    again_config, again = policy.load_pretrained(tmp_path)
    assert again_config.eos_ids == (3, 4)
    assert ("head" in again) == (not tied)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(dtype).astype("float32")), again, params)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no model directory at .*nowhere"):
        policy.load_pretrained(tmp_path / "nowhere")


def test_a_directory_without_config_is_named(broken):
    (broken / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        policy.load_pretrained(broken)


def test_a_config_that_is_cut_short_is_named(broken):
    (broken / "config.json").write_text((broken / "config.json").read_text()[:40])
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        policy.load_pretrained(broken)


def test_missing_weights_are_named(broken):
    (broken / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 1 weight files \(model\.safetensors\)"):
        policy.load_pretrained(broken)


def test_a_missing_shard_is_named(tmp_path):
    config, params = policy.load_pretrained(TINY)
    policy.save_pretrained(tmp_path, config, params, max_shard_bytes=100_000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(ValueError, match=rf"lacks 1 of {len(shards)} weight files \({shards[1].name}\)"):
        policy.load_pretrained(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 3000, 200_000])
def test_weights_that_are_cut_short_are_named(broken, keep):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is cut short or damaged"):
        policy.load_pretrained(broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "'MambaForCausalLM' is not supported; supported: .*Qwen2ForCausalLM"),
        ({"architectures": None, "model_type": "bert"}, r"model_type='bert'.*supported: .*Qwen2ForCausalLM"),
        ({"hidden_size": "DELETE"}, "lacks the key 'hidden_size'"),
        ({"intermediate_size": 96}, r"mlp.gate_proj.weight' has shape \(64, 128\).*asks for \(64, 96\)"),
        ({"num_hidden_layers": 3}, r"no tensor 'model\.layers\.2\."),
        ({"num_hidden_layers": 1}, r"12 tensors have no place in a Qwen2ForCausalLM: \['model\.layers\.1\."),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type 'yarn' is not supported"),
        ({"use_sliding_window": True, "sliding_window": 8}, "sliding-window attention"),
        ({"num_key_value_heads": 3}, "num_heads=4 is not a multiple of num_kv_heads=3"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"eos_token_id": 256}, "eos id 256 is outside the vocabulary of 256 ids"),
    ],
)
def test_what_the_decoder_cannot_run_is_refused_by_name(broken, changes, message):
    edit_config(broken, **changes)
    with pytest.raises(ValueError, match=message):
        policy.load_pretrained(broken)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen3", {"attention_bias": True}, "attention_bias=True is not supported for qwen3"),
        (
            "qwen3",
            {"layer_types": ["sliding_attention"] * 2, "sliding_window": 4},
            "sliding-window attention of a qwen3",
        ),
        ("llama3", {"mlp_bias": True}, "mlp_bias=True is not supported"),
        ("llama3", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks the key 'low_freq_factor'"),
        ("llama3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ("llama3", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config=.* is not supported"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not supported"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not supported"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ("gemma3", {"hidden_activation": "gelu"}, "hidden_activation='gelu' is not supported"),
        ("gemma3", {"layer_types": ["chunked_attention", "full_attention"]}, "layer_types holds .'chunked_attention'"),
        ("gemma3", {"layer_types": ["full_attention"]}, "layer_types names 1 layers, but num_hidden_layers=2"),
        (
            "gemma3",
            {"architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {}},
            "'Gemma3ForConditionalGeneration' is a multimodal model; only text decoders",
        ),
    ],
)
def test_features_of_the_other_families_are_refused_by_name(tmp_path, family, changes, message):
    path = copy_of(family, tmp_path)
    edit_config(path, **changes)
    with pytest.raises(ValueError, match=message):
        policy.load_config(path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"qk_norm": True}, "qk_norm=True is no qwen2 model, which has False"),
        ({"layer_windows": (8, 0)}, "of a qwen2 model is not supported"),
        ({"model_type": "gemma3_text", "layer_windows": (8, 4)}, "all of one size"),
        ({"model_type": "gemma3_text", "layer_windows": (8,)}, "one number >= 0 for each of the 2 layers"),
        ({"model_type": "mamba"}, "model_type='mamba' is not supported"),
    ],
)
def test_decoders_that_no_family_has_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        policy.ModelConfig.tiny(11, num_layers=2, **overrides)


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\b.safetensors", "C:b.safetensors", "..", "",
     "weights.bin", "a\x00.safetensors", "a\n.safetensors", 5, None],
)  # fmt: skip
def test_an_index_names_files_beside_it_or_is_refused(broken, name):
    """An index is a stranger's file: it must not make us read elsewhere, nor anything but safetensors."""
    shutil.copy(broken / "model.safetensors", broken.parent / "model.safetensors")
    (broken / "model.safetensors").rename(broken / "part.safetensors")
    index = {"weight_map": {"model.norm.weight": "part.safetensors", "other": name}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="in the same folder") as raised:
        policy.load_pretrained(broken)
    assert repr(name) in str(raised.value)
