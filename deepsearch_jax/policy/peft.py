"""Adapters as a directory of the PEFT library: adapter_config.json and adapter_model.safetensors.

Format: the "PEFT checkpoint format" page of its documentation. Tensors are [out, in] as in torch: lora_A.weight
[rank, in], lora_B.weight [out, rank], under the published name of the module with the prefix below.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from deepsearch_jax.policy.checkpoint import PathLike, layer_module, write_json
from deepsearch_jax.policy.config import ModelConfig
from deepsearch_jax.policy.lora import PROJECTIONS, LoraSettings

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model.model.layers"


def peft_tensors(config: ModelConfig, adapters: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(published name, float32 array in published layout) of all adapters."""
    for block, module in PROJECTIONS.values():
        if module not in adapters["layers"].get(block, {}):
            continue
        pair = adapters["layers"][block][module]
        for ours, theirs in (("a", "lora_A"), ("b", "lora_B")):
            stacked = np.asarray(pair[ours], np.float32)
            for index in range(config.num_layers):
                name = f"{_PREFIX}.{index}.{layer_module((block, module))}.{theirs}.weight"
                yield name, np.ascontiguousarray(stacked[index].T)


def save_adapter(
    directory: PathLike, config: ModelConfig, adapters: Any, settings: LoraSettings, *, base_model: str
) -> None:
    """Writes adapters so that PEFT and vLLM load them on top of the base model.

    Args:
      base_model: directory or name of the base model, as the loader will look for it.
    """
    path = pathlib.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    partial = path / (ADAPTER_WEIGHTS + ".partial")
    save_file(dict(peft_tensors(config, adapters)), partial, metadata={"format": "pt"})
    os.replace(partial, path / ADAPTER_WEIGHTS)
    alpha = settings.alpha
    described = {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": settings.rank,
        "target_modules": sorted(layer_module(PROJECTIONS[name]).split(".")[-1] for name in settings.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    write_json(path / ADAPTER_CONFIG, described)
