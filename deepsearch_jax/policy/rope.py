"""Rotary position embedding: wavelengths per layer, their scaling for long contexts, and the rotation."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How published weights stretch the rotary wavelengths for contexts beyond those of pretraining.

    Attributes follow `rope_scaling` of a published config.json.
    """

    kind: str = "default"  # default: not at all; linear: all by `factor`; llama3: only the long wavelengths
    factor: float = 1.0  # the longest wavelengths become `factor` times longer
    low_freq_factor: float = 1.0  # llama3: full stretch beyond original_length / low_freq_factor tokens a turn
    high_freq_factor: float = 4.0  # llama3: no stretch below original_length / high_freq_factor tokens a turn
    original_length: int = 8192  # llama3: context of pretraining, tokens

    def __post_init__(self) -> None:
        if self.kind not in ("default", "linear", "llama3"):
            raise ValueError(
                f"rope type {self.kind!r} is not supported; supported: 'default', 'linear', 'llama3'; weights with "
                "another one give wrong logits beyond their first context length"
            )
        if self.factor <= 0 or not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"rope scaling needs factor > 0 and 0 < low_freq_factor < high_freq_factor, but has "
                f"{self.factor}, {self.low_freq_factor} and {self.high_freq_factor}"
            )


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """[Dh / 2] float64 radians per token, theta^(-2i/Dh), stretched as `scaling` says.

    Source: arXiv 2104.09864; linear: arXiv 2306.15595; llama3: arXiv 2407.21783 with the constants of the published
    configs. Wavelengths between the two bounds of llama3 are interpolated by their share of turns in the old context.
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        turns = scaling.original_length * frequencies / (2 * math.pi)  # within the context of pretraining
        kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        kept = np.clip(kept, 0, 1)
        return frequencies * (kept + (1 - kept) / scaling.factor)
    return frequencies


def apply_rope(x: jax.Array, positions: jax.Array, frequencies: jax.Array) -> jax.Array:
    """Rotary position embedding, halves convention: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin).

    Args:
      x: [..., H, Dh] queries or keys.
      positions: [...] int32 absolute positions.
      frequencies: [Dh / 2] radians per token.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    frequencies = frequencies.astype(wide).reshape((1,) * (positions.ndim + 1) + (-1,))
    angles = positions[..., None, None].astype(wide) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(wide), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
