"""What a decoder looks like: one frozen record read from a Hugging Face config.json or written by hand."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from deepsearch_jax.policy.hf_config import FAMILIES, read_config, write_config
from deepsearch_jax.policy.rope import RopeScaling, rope_frequencies

# What the backward pass computes again: nothing; each layer from its input ("full"), which keeps one layer's memory and
# costs a third more time; or what is cheap ("dots": norms, activations, attention), keeping the products with weights.
REMAT = ("none", "full", "dots")


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
    rope_scaling: RopeScaling = RopeScaling()  # how the wavelengths are stretched for long contexts
    local_rope_theta: float = 0.0  # the base in layers with a window, which are not stretched; 0: the same as elsewhere
    layer_windows: tuple[int, ...] = ()  # tokens each layer attends back to, its own included; 0: all; (): all in all
    query_scalar: float = 0.0  # attention scores are q k / sqrt(query_scalar); 0: head_dim
    max_position_embeddings: int = 32768  # longest sequence the weights were trained for, tokens
    qkv_bias: bool = True  # query, key and value projections have a bias
    qk_norm: bool = False  # queries and keys are normalised per head before rotation
    post_norms: bool = False  # the outputs of attention and MLP are normalised too, before they are added
    norm_offset: float = 0.0  # norms multiply by offset + scale
    activation: str = "silu"  # of the gated MLP: silu or gelu_tanh
    scale_embedding: bool = False  # embeddings are multiplied by sqrt(hidden_size)
    tie_word_embeddings: bool = True  # the head is the transposed embedding
    initializer_range: float = 0.02  # standard deviation of fresh weights
    model_type: str = "qwen2"
    eos_ids: tuple[int, ...] = ()  # every id that ends a sequence
    bos_id: int | None = None
    pad_id: int | None = None
    param_dtype: str = "float32"  # dtype the parameters are kept in
    compute_dtype: str = "float32"  # dtype of activations and matrix products; bfloat16 on accelerators
    remat: str = "none"  # what the backward pass recomputes of a layer, one of REMAT

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
        if self.model_type not in FAMILIES:
            raise ValueError(f"model_type={self.model_type!r} is not supported; supported: {sorted(FAMILIES)}")
        for name, value in FAMILIES[self.model_type].traits.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)!r} is no {self.model_type} model, which has {value!r}")
        windows = set(self.layer_windows) - {0}
        if self.layer_windows and (len(self.layer_windows) != self.num_layers or min(self.layer_windows) < 0):
            raise ValueError(
                f"layer_windows={self.layer_windows} must hold one number >= 0 for each of the {self.num_layers} layers"
            )
        if windows and (len(windows) > 1 or self.model_type != "gemma3_text"):
            raise ValueError(
                f"layer_windows={self.layer_windows} of a {self.model_type} model is not supported; only gemma3_text "
                "has windows, all of one size"
            )
        for name in ("param_dtype", "compute_dtype"):
            value = getattr(self, name)
            if value not in ("float32", "bfloat16", "float16", "float64"):
                raise ValueError(f"{name}={value!r} must be float32, bfloat16, float16 or float64")
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat!r} is not known; choose one of {', '.join(REMAT)}")
        for eos_id in self.eos_ids:
            if not 0 <= eos_id < self.vocab_size:
                raise ValueError(f"eos id {eos_id} is outside the vocabulary of {self.vocab_size} ids")

    @property
    def architecture(self) -> str:
        """Class name used in `architectures` of config.json."""
        return FAMILIES[self.model_type].architecture

    @property
    def num_parameters(self) -> int:
        """Parameters in all; a tied head is counted once."""
        kv, heads = self.num_kv_heads * self.head_dim, self.num_heads * self.head_dim
        attention = self.hidden_size * (2 * heads + 2 * kv) + (heads + 2 * kv if self.qkv_bias else 0)
        norms = self.hidden_size * (4 if self.post_norms else 2) + (2 * self.head_dim if self.qk_norm else 0)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + norms
        ends = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2) + self.hidden_size
        return self.num_layers * layer + ends

    def window(self, layer: int) -> int:
        """Tokens that `layer` attends back to, its own included; 0 for all."""
        return self.layer_windows[layer] if self.layer_windows else 0

    def layer_frequencies(self) -> np.ndarray:
        """[L, Dh / 2] float64 rotary frequencies of each layer, radians per token."""
        everywhere = rope_frequencies(self.head_dim, self.rope_theta, self.rope_scaling)
        local = rope_frequencies(self.head_dim, self.local_rope_theta or self.rope_theta, RopeScaling())
        return np.stack([local if self.window(index) else everywhere for index in range(self.num_layers)])

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        generation_config: Mapping[str, Any] | None = None,
        *,
        param_dtype: str = "float32",
        compute_dtype: str = "float32",
        remat: str = "none",
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
        fields = read_config(config, generation_config or {})
        return cls(**fields, param_dtype=param_dtype, compute_dtype=compute_dtype, remat=remat)

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
        family = FAMILIES.get(overrides.get("model_type", "qwen2"))
        return cls(**(settings | (family.traits if family else {}) | overrides))

    def to_hf(self, torch_dtype: str) -> dict[str, Any]:
        """The config.json of this decoder, in the published form.

        Args:
          torch_dtype: dtype of the saved weights, for instance "bfloat16".
        """
        return write_config(self, torch_dtype)

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
