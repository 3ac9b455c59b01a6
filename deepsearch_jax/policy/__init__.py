"""The policy: a decoder-only language model as pure functions of plain parameters."""

from deepsearch_jax.policy.checkpoint import hf_tensors, load_config, load_pretrained, save_pretrained
from deepsearch_jax.policy.config import SUPPORTED_ARCHITECTURES, ModelConfig
from deepsearch_jax.policy.log_probs import token_log_probs
from deepsearch_jax.policy.model import (
    Params,
    bind,
    hidden_states,
    init_params,
    logits,
    scan_layers,
    segment_positions,
    unstack_layers,
)

__all__ = [
    "SUPPORTED_ARCHITECTURES",
    "ModelConfig",
    "Params",
    "bind",
    "hf_tensors",
    "hidden_states",
    "init_params",
    "load_config",
    "load_pretrained",
    "logits",
    "save_pretrained",
    "scan_layers",
    "segment_positions",
    "token_log_probs",
    "unstack_layers",
]
