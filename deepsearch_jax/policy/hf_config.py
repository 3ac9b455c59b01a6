"""The keys of a Hugging Face config.json: read into the fields of ModelConfig and written back.

Two forms of the rotary keys are read: `rope_theta` with `rope_scaling` (published checkpoints; Gemma 3 adds
`rope_local_base_freq`) and `rope_parameters` (newer files). The published form is written.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepsearch_jax.policy.rope import RopeScaling

if TYPE_CHECKING:
    from deepsearch_jax.policy.config import ModelConfig

HfConfig = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """What is the same in all models of a `model_type`.

    Attributes:
      architecture: class name in `architectures` of config.json.
      traits: fields of ModelConfig by which the decoder of this family differs from that of another.
      defaults: what a key means that config.json leaves out.
      refused: keys that change the computation in a way the decoder does not know, with the values that do not.
    """

    architecture: str
    traits: dict[str, Any]
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    refused: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)


_PLAIN: dict[str, Any] = {
    "qkv_bias": False,
    "qk_norm": False,
    "post_norms": False,
    "norm_offset": 0.0,
    "activation": "silu",
    "scale_embedding": False,
}
_OFF = (None, False)
FAMILIES = {
    "qwen2": Family(
        "Qwen2ForCausalLM",
        _PLAIN | {"qkv_bias": True},
        refused={"hidden_act": ("silu",)},
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _PLAIN | {"qk_norm": True},
        defaults={"head_dim": 128},
        refused={"hidden_act": ("silu",), "attention_bias": _OFF},
    ),
    "llama": Family(
        "LlamaForCausalLM",
        _PLAIN,
        defaults={"max_position_embeddings": 2048},
        refused={"hidden_act": ("silu",), "attention_bias": _OFF, "mlp_bias": _OFF},
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        {
            "qkv_bias": False,
            "qk_norm": True,
            "post_norms": True,
            "norm_offset": 1.0,
            "activation": "gelu_tanh",
            "scale_embedding": True,
        },
        defaults={
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10_000.0,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "tie_word_embeddings": True,
            "max_position_embeddings": 131072,
        },
        refused={
            "hidden_activation": ("gelu_pytorch_tanh",),
            "attention_bias": _OFF,
            "attn_logit_softcapping": _OFF,
            "final_logit_softcapping": _OFF,
            "use_bidirectional_attention": _OFF,
        },
    ),
}
SUPPORTED_ARCHITECTURES = {family.architecture: model_type for model_type, family in FAMILIES.items()}


def read_config(config: HfConfig, generation_config: HfConfig) -> dict[str, Any]:
    """The fields of ModelConfig that config.json and generation_config.json decide.

    Raises:
      ValueError: unknown architecture, missing key, or a feature the decoder does not have.
    """
    model_type = _model_type(config)
    family = FAMILIES[model_type]
    config = {**family.defaults, **config}
    for key, allowed in {**family.refused, "quantization_config": _OFF, "partial_rotary_factor": (None, 1)}.items():
        if config.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{key}={config[key]!r} is not supported for {model_type}; expected {allowed[-1]!r}")
    try:
        num_heads, num_layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
        head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // num_heads)
        return {
            **family.traits,
            **_read_rope(config),
            "model_type": model_type,
            "vocab_size": int(config["vocab_size"]),
            "hidden_size": int(config["hidden_size"]),
            "intermediate_size": int(config["intermediate_size"]),
            "num_layers": num_layers,
            "num_heads": num_heads,
            "num_kv_heads": int(config.get("num_key_value_heads") or num_heads),
            "head_dim": head_dim,
            "query_scalar": float(config.get("query_pre_attn_scalar") or 0),
            "layer_windows": _read_windows(config, model_type, num_layers),
            "rms_norm_eps": float(config.get("rms_norm_eps", 1e-6)),
            "max_position_embeddings": int(config.get("max_position_embeddings", 32768)),
            "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
            "initializer_range": float(config.get("initializer_range", 0.02)),
            "eos_ids": _eos_ids(config, generation_config),
            "bos_id": config.get("bos_token_id"),
            "pad_id": config.get("pad_token_id", generation_config.get("pad_token_id")),
        }
    except KeyError as error:
        raise ValueError(f"config.json of a {model_type} model lacks the key {error.args[0]!r}") from None


def write_config(config: "ModelConfig", torch_dtype: str) -> dict[str, Any]:
    """The config.json of a decoder whose weights are saved as `torch_dtype`, in the published form."""
    eos_ids, scaling, scalar = list(config.eos_ids), config.rope_scaling, config.query_scalar or config.head_dim
    rope: dict[str, Any] | None = None
    if scaling.kind != "default":
        rope = {"rope_type": scaling.kind, "factor": scaling.factor}
    if rope and scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    common = {
        "architectures": [config.architecture],
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else eos_ids or None,
        "head_dim": config.head_dim,
        "hidden_size": config.hidden_size,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": config.model_type,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "pad_token_id": config.pad_id,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": rope,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": torch_dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    no_window = {"max_window_layers": config.num_layers, "sliding_window": None, "use_sliding_window": False}
    of_family: dict[str, dict[str, Any]] = {
        "qwen2": {"hidden_act": "silu", **no_window},
        "qwen3": {"hidden_act": "silu", "attention_bias": False, **no_window},
        "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        "gemma3_text": {
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "query_pre_attn_scalar": int(scalar) if scalar % 1 == 0 else scalar,
            "rope_local_base_freq": config.local_rope_theta or config.rope_theta,
            "sliding_window": max(config.layer_windows, default=0) or 4096,
            "layer_types": ["sliding_attention" if config.window(i) else "full_attention"
                            for i in range(config.num_layers)],
        },
    }  # fmt: skip
    return common | of_family[config.model_type]


def _model_type(config: HfConfig) -> str:
    architectures = list(config.get("architectures") or [])
    known = [SUPPORTED_ARCHITECTURES[name] for name in architectures if name in SUPPORTED_ARCHITECTURES]
    if "text_config" in config or "vision_config" in config:
        raise ValueError(
            f"architecture {(architectures or [config.get('model_type')])[0]!r} is a multimodal model; only text "
            f"decoders are supported: {sorted(SUPPORTED_ARCHITECTURES)}"
        )
    if architectures and not known:
        raise ValueError(
            f"architecture {architectures[0]!r} is not supported; supported: {sorted(SUPPORTED_ARCHITECTURES)}"
        )
    model_type = known[0] if known else config.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f"config.json names no supported architecture (model_type={model_type!r}); "
            f"supported: {sorted(SUPPORTED_ARCHITECTURES)}"
        )
    return str(model_type)


def _read_rope(config: HfConfig) -> dict[str, Any]:
    rope = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    local: dict[str, Any] = {}
    if "full_attention" in rope:  # one entry per kind of layer
        rope, local = dict(rope["full_attention"]), dict(rope.get("sliding_attention") or {})
    if local.get("rope_type", "default") != "default":
        raise ValueError(f"rope type {local['rope_type']!r} of layers with a sliding window is not supported; "
                         "supported: 'default'")  # fmt: skip
    if rope.get("partial_rotary_factor", 1) != 1:
        raise ValueError(f"partial_rotary_factor={rope['partial_rotary_factor']} is not supported; expected 1")
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    read: dict[str, Any] = {"kind": kind}
    if kind == "linear":
        read |= {"factor": float(rope["factor"])}
    if kind == "llama3":
        read |= {name: float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")}
        read |= {"original_length": int(rope["original_max_position_embeddings"])}
    return {
        "rope_theta": float(rope.get("rope_theta") or config.get("rope_theta", 10_000.0)),
        "rope_scaling": RopeScaling(**read),
        "local_rope_theta": float(local.get("rope_theta") or config.get("rope_local_base_freq", 0)),
    }


def _read_windows(config: HfConfig, model_type: str, num_layers: int) -> tuple[int, ...]:
    """Window of each layer, 0 for full attention; () where no layer has one."""
    kinds = config.get("layer_types")
    if kinds is None and model_type == "gemma3_text":
        every = int(config.get("_sliding_window_pattern", config["sliding_window_pattern"]))
        kinds = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(num_layers)]
    kinds = list(kinds or ["full_attention"] * num_layers)
    if len(kinds) != num_layers:
        raise ValueError(f"layer_types names {len(kinds)} layers, but num_hidden_layers={num_layers}")
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ValueError(f"layer_types holds {sorted(unknown)}; supported: 'full_attention' and 'sliding_attention'")
    switched_on = config.get("use_sliding_window") and config.get("sliding_window")
    if model_type != "gemma3_text" and ("sliding_attention" in kinds or switched_on):
        raise ValueError(f"sliding-window attention of a {model_type} model is not supported; use_sliding_window must "
                         "be false")  # fmt: skip
    if "sliding_attention" not in kinds:
        return ()
    return tuple(int(config["sliding_window"]) if kind == "sliding_attention" else 0 for kind in kinds)


def _eos_ids(*configs: HfConfig) -> tuple[int, ...]:
    ids: list[int] = []
    for config in configs:
        value = config.get("eos_token_id")
        ids += [] if value is None else [int(i) for i in (value if isinstance(value, list) else [value])]
    return tuple(dict.fromkeys(ids))
