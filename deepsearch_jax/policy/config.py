"""What a decoder looks like: one frozen record read from a Hugging Face config.json or written by hand."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

SUPPORTED_ARCHITECTURES = {"Qwen2ForCausalLM": "qwen2"}
_MODEL_TYPES = {model_type: name for name, model_type in SUPPORTED_ARCHITECTURES.items()}
_PLAIN_ROPE = (None, "default")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and settings of one decoder; hashable, so it is a static argument of every jitted function.

    Attributes follow the keys of a published config.json where those exist.
    """

    vocab_size: int = 151936  # rows of the embedding; may exceed the tokenizer's vocabulary
    hidden_size: int = 896  # E
    intermediate_size: int = 4864  # width of the gated MLP
    num_layers: int = 24
    num_heads: int = 14  # query heads
    num_kv_heads: int = 2  # key/value heads; each serves num_heads / num_kv_heads query heads
    head_dim: int = 64  # Dh; even, rotary embedding turns pairs
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6  # base of the rotary wavelengths
    max_position_embeddings: int = 32768  # longest sequence the weights were trained for, tokens
    qkv_bias: bool = True  # query, key and value projections have a bias
    tie_word_embeddings: bool = True  # the head is the transposed embedding
    initializer_range: float = 0.02  # standard deviation of fresh weights
    model_type: str = "qwen2"
    eos_ids: tuple[int, ...] = ()  # every id that ends a sequence
    bos_id: int | None = None
    pad_id: int | None = None
    param_dtype: str = "float32"  # dtype the parameters are kept in
    compute_dtype: str = "float32"  # dtype of activations and matrix products; bfloat16 on accelerators
    remat: bool = False  # recompute each layer in the backward pass: memory of one layer instead of all

    def __post_init__(self) -> None:
        positive = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
        for name in (*positive, "head_dim", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; "
                "every key/value head must serve the same number of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for rotary embeddings")
        if self.model_type not in _MODEL_TYPES:
            raise ValueError(f"model_type={self.model_type!r} is not supported; supported: {sorted(_MODEL_TYPES)}")
        for name in ("param_dtype", "compute_dtype"):
            value = getattr(self, name)
            if value not in ("float32", "bfloat16", "float16", "float64"):
                raise ValueError(f"{name}={value!r} must be float32, bfloat16, float16 or float64")
        for eos_id in self.eos_ids:
            if not 0 <= eos_id < self.vocab_size:
                raise ValueError(f"eos id {eos_id} is outside the vocabulary of {self.vocab_size} ids")

    @property
    def architecture(self) -> str:
        """Class name used in `architectures` of config.json."""
        return _MODEL_TYPES[self.model_type]

    @property
    def num_parameters(self) -> int:
        """Parameters in all; a tied head is counted once."""
        kv, heads = self.num_kv_heads * self.head_dim, self.num_heads * self.head_dim
        attention = self.hidden_size * (2 * heads + 2 * kv) + (heads + 2 * kv if self.qkv_bias else 0)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        ends = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2) + self.hidden_size
        return self.num_layers * layer + ends

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        generation_config: Mapping[str, Any] | None = None,
        *,
        param_dtype: str = "float32",
        compute_dtype: str = "float32",
        remat: bool = False,
    ) -> "ModelConfig":
        """Reads the keys of a config.json, both the published form and the `rope_parameters` form.

        Args:
          config: the parsed config.json.
          generation_config: the parsed generation_config.json, if there is one. A sequence ends at any id that
            either file names.
          param_dtype, compute_dtype, remat: see the attributes.
        Raises:
          ValueError: unknown architecture, missing key, or a feature the decoder does not have.
        """
        model_type = _model_type(config)
        try:
            hidden_size, num_heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            return cls(
                vocab_size=int(config["vocab_size"]),
                hidden_size=hidden_size,
                intermediate_size=int(config["intermediate_size"]),
                num_layers=int(config["num_hidden_layers"]),
                num_heads=num_heads,
                num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
                head_dim=int(config.get("head_dim") or hidden_size // num_heads),
                rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
                rope_theta=_rope_theta(config),
                max_position_embeddings=int(config.get("max_position_embeddings", 32768)),
                tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
                initializer_range=float(config.get("initializer_range", 0.02)),
                model_type=model_type,
                eos_ids=_eos_ids(config, generation_config or {}),
                bos_id=config.get("bos_token_id"),
                pad_id=config.get("pad_token_id", (generation_config or {}).get("pad_token_id")),
                param_dtype=param_dtype,
                compute_dtype=compute_dtype,
                remat=remat,
            )
        except KeyError as error:
            raise ValueError(f"config.json of a {model_type} model lacks the key {error.args[0]!r}") from None

    @classmethod
    def tiny(
        cls,
        vocab_size: int,
        *,
        hidden_size: int = 80,
        num_layers: int = 3,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        intermediate_size: int | None = None,
        max_position_embeddings: int = 1024,
        eos_ids: tuple[int, ...] = (),
        pad_id: int | None = None,
        **overrides: Any,
    ) -> "ModelConfig":
        """A small decoder to be trained from nothing, for instance over characters; about 0.2 M parameters.

        Fresh weights have standard deviation 1/sqrt(hidden_size) (not the 0.02 of wide models), so that activations
        keep their size at this width.
        """
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size={hidden_size} is not a multiple of num_heads={num_heads}")
        settings: dict[str, Any] = {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size or 3 * hidden_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads or num_heads,
            "head_dim": hidden_size // num_heads,
            "rope_theta": 10_000.0,
            "max_position_embeddings": max_position_embeddings,
            "initializer_range": 1 / math.sqrt(hidden_size),
            "eos_ids": eos_ids,
            "pad_id": pad_id,
        }
        return cls(**(settings | overrides))

    def to_hf(self, torch_dtype: str) -> dict[str, Any]:
        """The config.json of this decoder, in the published form.

        Args:
          torch_dtype: dtype of the saved weights, for instance "bfloat16".
        """
        eos_ids = list(self.eos_ids)
        return {
            "architectures": [self.architecture],
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_id,
            "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else eos_ids or None,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "max_window_layers": self.num_layers,
            "model_type": self.model_type,
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "pad_token_id": self.pad_id,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "sliding_window": None,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": torch_dtype,
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": self.vocab_size,
        }

    def to_hf_generation(self) -> dict[str, Any]:
        """The generation_config.json of this decoder: every id that ends a sequence."""
        return {
            "bos_token_id": self.bos_id,
            "pad_token_id": self.pad_id,
            "eos_token_id": list(self.eos_ids) or None,
            "do_sample": True,
        }

    @property
    def dtypes(self) -> tuple[jnp.dtype, jnp.dtype]:
        """(param_dtype, compute_dtype) as dtypes."""
        return jnp.dtype(self.param_dtype), jnp.dtype(self.compute_dtype)


def _model_type(config: Mapping[str, Any]) -> str:
    architectures = list(config.get("architectures") or [])
    known = [SUPPORTED_ARCHITECTURES[name] for name in architectures if name in SUPPORTED_ARCHITECTURES]
    if architectures and not known:
        raise ValueError(
            f"architecture {architectures[0]!r} is not supported; supported: {sorted(SUPPORTED_ARCHITECTURES)}"
        )
    model_type = known[0] if known else config.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise ValueError(
            f"config.json names no supported architecture (model_type={model_type!r}); "
            f"supported: {sorted(SUPPORTED_ARCHITECTURES)}"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act={config['hidden_act']!r} is not supported for {model_type}; expected 'silu'")
    windows = any(kind != "full_attention" for kind in config.get("layer_types") or ())
    if windows or (config.get("use_sliding_window") and config.get("sliding_window")):
        raise ValueError(f"sliding-window attention of a {model_type} model is not supported; use_sliding_window "
                         "must be false")  # fmt: skip
    return str(model_type)


def _rope_theta(config: Mapping[str, Any]) -> float:
    """Base of the rotary wavelengths from `rope_parameters` (newer files) or `rope_theta` and `rope_scaling`."""
    rope = dict(config.get("rope_parameters") or {})
    scaling = dict(config.get("rope_scaling") or {})
    kind = rope.get("rope_type", scaling.get("rope_type", scaling.get("type")))
    if kind not in _PLAIN_ROPE:
        raise ValueError(f"rope type {kind!r} is not supported; supported: 'default'")
    return float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))


def _eos_ids(*configs: Mapping[str, Any]) -> tuple[int, ...]:
    ids: list[int] = []
    for config in configs:
        value = config.get("eos_token_id")
        ids += [] if value is None else [int(i) for i in (value if isinstance(value, list) else [value])]
    return tuple(dict.fromkeys(ids))
