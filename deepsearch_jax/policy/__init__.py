"""The policy: a decoder-only language model as pure functions of plain parameters."""

from deepsearch_jax.policy.attention import (
    Blocks,
    blocks_for,
    compiling_for,
    row_attention,
    segment_ends,
    target_backend,
)
from deepsearch_jax.policy.checkpoint import hf_tensors, load_config, load_pretrained, save_pretrained
from deepsearch_jax.policy.config import REMAT, ModelConfig
from deepsearch_jax.policy.hf_config import SUPPORTED_ARCHITECTURES
from deepsearch_jax.policy.int8 import Int8, quantize_int8
from deepsearch_jax.policy.layout import Tiled, Transposed, arrange_kernels
from deepsearch_jax.policy.log_probs import token_log_probs, tree_log_probs
from deepsearch_jax.policy.lora import (
    Adapted,
    LoraSettings,
    adapt,
    freeze,
    init_adapters,
    merge,
    weights_fingerprint,
)
from deepsearch_jax.policy.model import (
    Params,
    bind,
    hidden_states,
    init_params,
    layer_window,
    logits,
    scan_layers,
    segment_positions,
    unstack_layers,
)
from deepsearch_jax.policy.peft import peft_tensors, save_adapter
from deepsearch_jax.policy.rope import RopeScaling
from deepsearch_jax.policy.sharding import bytes_per_device, param_shardings, param_specs

__all__ = [
    "REMAT",
    "SUPPORTED_ARCHITECTURES",
    "Adapted",
    "Blocks",
    "Int8",
    "LoraSettings",
    "ModelConfig",
    "Params",
    "RopeScaling",
    "Tiled",
    "Transposed",
    "adapt",
    "arrange_kernels",
    "bind",
    "blocks_for",
    "bytes_per_device",
    "compiling_for",
    "freeze",
    "hf_tensors",
    "hidden_states",
    "init_adapters",
    "init_params",
    "layer_window",
    "load_config",
    "load_pretrained",
    "logits",
    "merge",
    "param_shardings",
    "param_specs",
    "peft_tensors",
    "quantize_int8",
    "row_attention",
    "save_adapter",
    "save_pretrained",
    "scan_layers",
    "segment_ends",
    "segment_positions",
    "target_backend",
    "token_log_probs",
    "tree_log_probs",
    "unstack_layers",
    "weights_fingerprint",
]
