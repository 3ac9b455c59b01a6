"""What the decode engine is told once per run."""

import dataclasses
import math

from deepsearch_jax.policy import ModelConfig


@dataclasses.dataclass(frozen=True)
class DecodeSettings:
    """Sampling and sizes of the decode engine."""

    num_samples: int = 8  # K, continuations sampled per expanded node
    segment_length: int = 256  # S, most tokens one expansion appends; also the tokens of one KV page
    max_prompt_length: int = 1024  # P, tokens of room for a prompt's keys and values
    max_depth: int = 64  # segments on the longest path; with P and S bounds the position of a token
    temperature: float = 1.0  # divides the logits; 0 takes the most likely token
    top_k: int = 0  # sample among the k most likely tokens (and ties); 0 = all
    top_p: float = 1.0  # sample among the fewest likeliest tokens that hold this mass; 1 = all
    min_p: float = 0.0  # leave out tokens with less than this times the likeliest token's probability; 0 = none
    entropy: bool = False  # also give the exact entropy of the raw policy at every token
    eos_ids: tuple[int, ...] = ()  # every id that ends a segment
    recompute: bool = False  # encode path nodes without a page again; False: the caller knows that all have theirs
    recompute_chunk: int = 128  # most tokens of a path encoded together where pages are missing
    unroll_layers: bool = False  # slice stacked weights once per call and unroll layers: faster steps on CPU

    def __post_init__(self) -> None:
        for name in ("num_samples", "segment_length", "max_prompt_length", "recompute_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_depth < 0:
            raise ValueError(f"max_depth={self.max_depth} must not be negative")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} must be >= 0 and finite; 0 takes the most likely token")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be >= 0; 0 keeps all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be in (0, 1]; 1 keeps all tokens")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} must be in [0, 1]; 0 keeps all tokens, 1 only the most likely")

    def check_fits(self, config: ModelConfig) -> None:
        """Raises ValueError if a token could get a position or an id that the model does not have."""
        longest = self.max_prompt_length + max(self.max_depth, 1) * self.segment_length
        if longest > config.max_position_embeddings:
            raise ValueError(
                f"max_prompt_length={self.max_prompt_length} + max_depth={self.max_depth} x segment_length="
                f"{self.segment_length} = {longest} tokens, but the model has max_position_embeddings="
                f"{config.max_position_embeddings}; lower one of them"
            )
        for eos_id in self.eos_ids:
            if not 0 <= eos_id < config.vocab_size:
                raise ValueError(f"eos id {eos_id} is outside the vocabulary of {config.vocab_size} ids")
        if self.top_k > config.vocab_size:
            raise ValueError(f"top_k={self.top_k} exceeds the vocabulary of {config.vocab_size} ids; use 0 for all")
