"""Hugging Face directories: what is read, what is written, what is refused."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from deepsearch_jax import policy

TINY = pathlib.Path(__file__).parent.parent / "data" / "tiny_qwen2"


@pytest.fixture
def broken(tmp_path):
    """A copy of the tiny checkpoint that a test may damage."""
    path = tmp_path / "model"
    shutil.copytree(TINY, path)
    return path


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    config = {key: value for key, value in (config | changes).items() if value != "DELETE"}
    (path / "config.json").write_text(json.dumps(config))


def tensors_of(path):
    return {name: value for file in sorted(path.glob("*.safetensors")) for name, value in load_file(file).items()}


def test_both_forms_of_the_rope_keys_give_one_config():
    old = policy.ModelConfig.from_hf(json.loads((TINY / "config.json").read_text()))
    new = policy.ModelConfig.from_hf(json.loads((TINY / "config_transformers5.json").read_text()))
    assert old == new
    assert old.rope_theta == 1e6
    assert old.eos_ids == (1,)


def test_every_eos_id_of_both_files_counts(broken):
    (broken / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 1, 9]}))
    assert policy.load_config(broken).eos_ids == (1, 7, 9)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000])
def test_saving_writes_the_tensors_that_were_read(tmp_path, max_shard_bytes):
    config, params = policy.load_pretrained(TINY)
    policy.save_pretrained(tmp_path, config, params, max_shard_bytes=max_shard_bytes)
    want, got = tensors_of(TINY), tensors_of(tmp_path)
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


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_and_untied_heads_survive_the_round_trip(tmp_path, tied):
    config = policy.ModelConfig.tiny(
        11, hidden_size=16, num_heads=2, num_kv_heads=1, tie_word_embeddings=tied, eos_ids=(3, 4), pad_id=0
    )
    params = policy.init_params(config, jax.random.key(0))
    policy.save_pretrained(tmp_path, config, params, dtype="bfloat16")
    again_config, again = policy.load_pretrained(tmp_path)
    assert again_config.eos_ids == (3, 4)
    assert ("head" in again) == (not tied)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype("bfloat16").astype("float32")), again, params)


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
