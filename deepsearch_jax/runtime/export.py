"""A policy as a Hugging Face directory: weights, config, and the tokenizer that belongs to it."""

import json
import pathlib
import shutil
from typing import Any

from deepsearch_jax.data.tokenizers import CharTokenizer, Tokenizer, byte_level_name
from deepsearch_jax.policy import ModelConfig, save_pretrained

_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "chat_template", "special_tokens", "added_tokens")


def check_new(directory: pathlib.Path) -> None:
    """Raises: ValueError for a place that is taken: what is there would be mixed with what is written."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} exists and is not an empty directory; name a new one, or remove it first")


def export_policy(
    directory: pathlib.Path, model: ModelConfig, params: Any, tokenizer: Tokenizer, *, source: str,
    line_end: str = "", dtype: str | None = None,
) -> None:  # fmt: skip
    """Writes everything that transformers and vLLM need.

    Args:
      tokenizer: of the policy; a table of characters is written as a tokenizer of the tokenizers library.
      source: directory whose tokenizer files are copied; "" for characters.
      line_end: what follows a question where characters are read.
      dtype: of the saved weights; None is that of the parameters.
    Raises:
      ValueError: a tokenizer that has no files.
    """
    save_pretrained(directory, model, params, dtype=dtype)
    if source:
        copy_tokenizer(pathlib.Path(source), directory)
    elif isinstance(tokenizer, CharTokenizer):
        write_character_tokenizer(directory, tokenizer, line_end)
    else:
        raise ValueError(f"a {type(tokenizer).__name__} has no files to write; the weights alone are in {directory}")


def copy_tokenizer(source: pathlib.Path, directory: pathlib.Path) -> None:
    """Copies the files of a tokenizer and its chat template."""
    for file in source.expanduser().iterdir():
        if file.name.startswith(_TOKENIZER_FILES) and file.is_file():
            shutil.copyfile(file, directory / file.name)


def write_character_tokenizer(directory: pathlib.Path, tokenizer: CharTokenizer, line_end: str) -> None:
    """A table of characters in the form of tokenizer.json: byte-level, without merges, with the same ids.

    transformers opens every directory of a Qwen2 model as a byte-level tokenizer, whatever its files say. Its chat
    template is the last message and `line_end`: such a model knows one question at a time.
    Raises:
      ValueError: a character that byte-level tables take for another one.
    """
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as TokenizerFile
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    if mistaken := [c for c in tokenizer.alphabet if 0x7F <= ord(c) < 0x144]:
        raise ValueError(
            f"the characters {''.join(mistaken)!r} cannot be written into a byte-level table; the weights in "
            f"{directory} are complete, their tokenizer is the task's own"
        )
    characters = (tokenizer.pad, tokenizer.eos, *tokenizer.alphabet)
    is_byte = [i > 1 and character.isascii() for i, character in enumerate(characters)]
    names = [byte_level_name(c) if byte else c for c, byte in zip(characters, is_byte, strict=True)]
    file = TokenizerFile(BPE({name: i for i, name in enumerate(names)}, []))
    file.pre_tokenizer, file.decoder = ByteLevel(add_prefix_space=False, use_regex=False), Decoder()
    file.add_special_tokens([tokenizer.pad, tokenizer.eos])
    # Characters of several bytes are found before the text is taken apart.
    file.add_tokens([AddedToken(c, normalized=False) for c in tokenizer.alphabet if not c.isascii()])
    file.save(str(directory / "tokenizer.json"))
    described = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": tokenizer.eos,
        "pad_token": tokenizer.pad,
        "unk_token": tokenizer.pad,
        "clean_up_tokenization_spaces": False,
        "chat_template": "{{ messages[-1]['content'] + " + json.dumps(line_end) + " }}",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
