"""The parity command itself: it passes where numbers agree and fails where they do not."""

import importlib.util
import json
import os
import pathlib
import sys

import jax
import pytest

from deepsearch_jax import policy
from tests.model_parity import Report, check_export, main

DATA = pathlib.Path(__file__).parent / "data"
TINY = DATA / "tiny_qwen2"


@pytest.mark.parametrize(
    "family", ["qwen2", "gemma3", *(pytest.param(family, marks=pytest.mark.slow) for family in ("qwen3", "llama3"))]
)
def test_the_recorded_models_pass(family, capsys):
    assert main([str(DATA / f"tiny_{family}")]) == 0
    out = capsys.readouterr().out
    assert "24 greedy tokens by whole rows" in out
    assert "24 greedy tokens by tree decode" in out
    assert out.endswith("model parity: PASS\n")


@pytest.fixture(scope="module")
def torch_python():
    """An interpreter with torch: this one, or the one that DEEPSEARCH_TORCH_PYTHON names."""
    python = os.environ.get("DEEPSEARCH_TORCH_PYTHON") or (importlib.util.find_spec("torch") and sys.executable)
    if not python:
        pytest.skip("torch is not installed; set DEEPSEARCH_TORCH_PYTHON to an interpreter that has it")
    return python


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama3", "gemma3"])
def test_exported_models_open_in_transformers_with_equal_logits(family, torch_python, capsys):
    assert main([str(DATA / f"tiny_{family}"), "--transformers", torch_python]) == 0
    assert "case 1 logits of transformers" in capsys.readouterr().out


@pytest.mark.slow
def test_a_stretched_gemma_with_seven_layers_agrees_with_transformers(tmp_path, torch_python, capsys):
    """The recorded Gemma has plain wavelengths; larger ones stretch those of the layers without a window."""
    config = policy.ModelConfig.tiny(
        64, model_type="gemma3_text", num_layers=7, rope_theta=1e4, rope_scaling=policy.RopeScaling("linear", 8.0),
        local_rope_theta=1e3, layer_windows=(5,) * 5 + (0, 5), query_scalar=30,
    )  # fmt: skip
    params = policy.init_params(config, jax.random.key(0))
    policy.save_pretrained(tmp_path, config, params)
    rows = jax.random.randint(jax.random.key(1), (2, 30), 0, 64).tolist()
    golden = {"cases": [{"input_ids": rows, "attention_mask": [[1] * 30] * 2}]}
    report = Report()
    check_export(report, tmp_path, golden, (config, params), torch_python)
    assert report.passed, capsys.readouterr().out
    assert "case 0 logits of transformers" in capsys.readouterr().out


@pytest.mark.slow
def test_other_weights_fail(tmp_path, capsys):
    config, params = policy.load_pretrained(TINY)
    policy.save_pretrained(tmp_path, config, jax.tree.map(lambda x: x * 1.01, params))
    assert main([str(tmp_path), str(TINY / "golden.json")]) == 1
    out = capsys.readouterr().out
    assert "FAIL case 0 logits" in out
    assert out.endswith("model parity: FAIL\n")


def test_an_unsupported_model_fails_with_its_name(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"]}))
    assert main([str(tmp_path), str(TINY / "golden.json")]) == 1
    assert "'MambaForCausalLM' is not supported" in capsys.readouterr().out


@pytest.mark.real_model
def test_the_real_model_passes(model_dir, shared_dir, capsys):
    assert main([str(model_dir), str(shared_dir / "models" / "golden_qwen05b.json")]) == 0
    assert "32 greedy tokens" in capsys.readouterr().out
