"""The parity command itself: it passes where numbers agree and fails where they do not."""

import json
import pathlib

import jax
import pytest

from deepsearch_jax import policy
from tests.model_parity import main

TINY = pathlib.Path(__file__).parent / "data" / "tiny_qwen2"


def test_the_tiny_checkpoint_passes(capsys):
    assert main([str(TINY), str(TINY / "golden.json")]) == 0
    assert capsys.readouterr().out.endswith("model parity: PASS\n")


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
