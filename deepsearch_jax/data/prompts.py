"""From a problem to the token ids the model continues."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from deepsearch_jax.data.problems import Problem
from deepsearch_jax.data.tokenizers import Message, Tokenizer

_PLACE = "{question}"


@dataclass(frozen=True)
class PromptSettings:
    """How a question is put to the model; the default is the form DeepMath and GSM8K models are trained with."""

    # Must hold {question} once; other braces stand for themselves.
    template: str = "{question} Let's think step by step and output the final answer within \\boxed{}."
    system_prompt: str = ""  # "" sends no system message (a chat template may then add its own)
    chat: bool = True  # False sends plain text, for base models without a chat template
    max_prompt_length: int = 1024  # tokens; longer prompts are skipped and counted, memory grows with it

    def __post_init__(self) -> None:
        if self.template.count(_PLACE) != 1:
            raise ValueError(f"template={self.template!r} must contain {_PLACE} exactly once")
        if self.max_prompt_length < 1:
            raise ValueError(f"max_prompt_length={self.max_prompt_length} must be at least 1 token")


class EncodedPrompts(NamedTuple):
    """Prompts padded on the right.

    Attributes:
      tokens: [B, max_prompt_length] int32, the tokenizer's pad id behind each prompt.
      lengths: [B] int32 tokens of each prompt, 1 or more.
      kept: [B] int32 positions in the given problems.
      num_skipped: problems left out because their prompt is too long.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    kept: np.ndarray
    num_skipped: int


def prompt_text(question: str, settings: PromptSettings) -> str:
    """The question in its template; an instruction that the question ends with already is not said a second time.

    Questions of verl's parquet files hold the instruction, those of other files do not.
    """
    instruction = settings.template.partition(_PLACE)[2]
    # `str.format` would trip over the braces of LaTeX.
    return settings.template.replace(_PLACE, question.removesuffix(instruction))


def prompt_messages(question: str, settings: PromptSettings) -> list[Message]:
    """One user message, after the system message if there is one."""
    system = [{"role": "system", "content": settings.system_prompt}] if settings.system_prompt else []
    return [*system, {"role": "user", "content": prompt_text(question, settings)}]


def prompt_ids(question: str, tokenizer: Tokenizer, settings: PromptSettings) -> list[int]:
    """Token ids of the prompt; a plain-text prompt has the system prompt as its first paragraph."""
    if settings.chat:
        return tokenizer.encode_prompt(prompt_messages(question, settings))
    text = prompt_text(question, settings)
    return tokenizer.encode_prompt(f"{settings.system_prompt}\n\n{text}" if settings.system_prompt else text)


def encode_prompts(problems: Sequence[Problem], tokenizer: Tokenizer, settings: PromptSettings) -> EncodedPrompts:
    """Encodes all problems whose prompt has at most `max_prompt_length` tokens.

    Raises:
      ValueError: no problems, a prompt of no tokens, or no prompt that fits.
    """
    if not problems:
        raise ValueError("no problems to encode")
    encoded = [prompt_ids(p.question, tokenizer, settings) for p in problems]
    lengths = np.array([len(ids) for ids in encoded], np.int32)
    if not lengths.all():
        raise ValueError(f"the prompt of problem {problems[int(lengths.argmin())].id!r} has no tokens")
    width = settings.max_prompt_length
    kept = np.flatnonzero(lengths <= width).astype(np.int32)
    if not kept.size:
        raise ValueError(
            f"all {len(problems)} prompts are longer than max_prompt_length={width} tokens; the shortest has "
            f"{lengths.min()}, the longest {lengths.max()}: raise the limit"
        )
    tokens = np.full((kept.size, width), tokenizer.pad_id, np.int32)
    for row, index in enumerate(kept):
        tokens[row, : lengths[index]] = encoded[index]
    return EncodedPrompts(tokens, lengths[kept], kept, len(problems) - kept.size)
