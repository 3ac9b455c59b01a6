"""Text to token ids and back: a character table for models trained from nothing, else a Hugging Face directory."""

import contextlib
import functools
import json
import logging
import pathlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

REPLACEMENT = "\ufffd"  # stands for an id that has no text

Message = Mapping[str, str]
"""One chat message: {"role": "system" | "user" | "assistant", "content": text}."""


class Tokenizer(Protocol):
    """What prompts, runtime and verifier need of a tokenizer.

    Attributes:
      vocab_size: ids lie in [0, vocab_size); the model's table may be larger.
      eos_ids: every id that ends a response, at least one.
      pad_id: id that fills the right of a padded row.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_ids(self) -> tuple[int, ...]: ...

    @property
    def pad_id(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: nothing added in front or behind."""
        ...

    def encode_prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """Ids of a prompt the model is to continue: plain text, or messages through the chat template."""
        ...

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids of any value; an id without text becomes U+FFFD. Drops EOS, padding and the like by default."""
        ...

    def token_bytes(self) -> list[bytes]:
        """The UTF-8 bytes each id below vocab_size adds to a text; b"" for EOS, padding and the like."""
        ...


@dataclass(frozen=True)
class CharTokenizer:
    """One id per character: 0 is padding, 1 ends the response, the alphabet follows in order."""

    alphabet: str
    eos: str = "$"
    pad: str = "_"

    def __post_init__(self) -> None:
        if len(self.eos) != 1 or len(self.pad) != 1:
            raise ValueError(f"eos={self.eos!r} and pad={self.pad!r} must be single characters")
        table = self.pad + self.eos + self.alphabet
        if repeated := sorted({c for c in table if table.count(c) > 1}):
            raise ValueError(f"character {repeated[0]!r} occurs twice among pad, eos and alphabet {self.alphabet!r}")

    @property
    def vocab_size(self) -> int:
        return 2 + len(self.alphabet)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (1,)

    @property
    def pad_id(self) -> int:
        return 0

    def encode(self, text: str) -> list[int]:
        """Ids of the characters; the EOS character gives its id. Raises: ValueError for a character without an id."""
        table = self.eos + self.alphabet
        ids = [table.find(c) + 1 for c in text]
        if 0 in ids:
            raise ValueError(f"character {text[ids.index(0)]!r} of {text!r} is not in the alphabet {self.alphabet!r}")
        return ids

    def encode_prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """Ids of the text; of messages, the contents one after the other (there is no chat template)."""
        return self.encode(prompt if isinstance(prompt, str) else "".join(m["content"] for m in prompt))

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        table = ("", "") if skip_special else (self.pad, self.eos)
        characters = (*table, *self.alphabet)
        return "".join(characters[i] if 0 <= i < len(characters) else REPLACEMENT for i in map(int, ids))

    def token_bytes(self) -> list[bytes]:
        return [b"", b"", *(character.encode() for character in self.alphabet)]


class HFTokenizer:
    """The tokenizer and chat template of a local Hugging Face directory; never asks the network.

    Raises:
      ValueError: missing directory, no or damaged tokenizer files, no end-of-sequence id anywhere.
    """

    def __init__(self, directory: str | pathlib.Path):
        self.directory = pathlib.Path(directory).expanduser()
        _check_files(self.directory)
        with _quiet():
            from transformers import AutoTokenizer  # a second of imports that character models need not pay

            try:
                self._tokenizer: Any = AutoTokenizer.from_pretrained(str(self.directory), local_files_only=True)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
                raise ValueError(f"the tokenizer of {self.directory} cannot be opened: {error}") from error
        self._vocab_size = len(self._tokenizer)
        # Only special tokens the files name: for some model types transformers adds "<|endoftext|>" behind the table.
        named = _named_special_tokens(self.directory)
        eos_id = self._tokenizer.eos_token_id if "eos_token" in named else None
        pad_id = self._tokenizer.pad_token_id if "pad_token" in named else None
        self._eos_ids = _eos_ids(self.directory, eos_id)
        self._pad_id = int(self._eos_ids[0] if pad_id is None else pad_id)

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self._eos_ids

    @property
    def pad_id(self) -> int:
        return self._pad_id

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def encode(self, text: str) -> list[int]:
        return self._ids(text, add_special_tokens=False)

    def encode_prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """Plain text with the start token the model expects, if any; messages through the chat template.

        Raises:
          ValueError: messages without a chat template, or a template that refuses them.
        """
        if isinstance(prompt, str):
            return self._ids(prompt, add_special_tokens=True)
        # The template writes its special tokens itself; adding them once more would double the start token.
        return self._ids(self.chat_text(prompt), add_special_tokens=False)

    def chat_text(self, messages: Sequence[Message]) -> str:
        """The messages as the chat template writes them, up to where the assistant begins to speak."""
        if not self.has_chat_template:
            raise ValueError(
                f"the tokenizer of {self.directory} has no chat template; use an instruction-tuned model, add "
                "chat_template.jinja to the directory, or set prompt.chat=False to send plain text"
            )
        with _quiet():
            # jinja2 comes with transformers' optional extra only; imported here so that its absence is told plainly.
            import jinja2

            try:
                return self._tokenizer.apply_chat_template(
                    [dict(m) for m in messages], add_generation_prompt=True, tokenize=False
                )
            except jinja2.TemplateError as error:
                roles = [m["role"] for m in messages]
                raise ValueError(
                    f"the chat template of {self.directory} refuses messages of roles {roles}: {error}; "
                    "a template without a system role needs prompt.system_prompt=''"
                ) from error

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # verbose=False: no remark on texts beyond model_max_length, their length is our caller's business.
        return list(self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        # The model's table is often padded beyond the tokenizer's; a young policy does sample such ids.
        parts: list[str] = []
        run: list[int] = []
        for token in [*map(int, ids), None]:
            if token is not None and 0 <= token < self._vocab_size:
                run.append(token)
                continue
            if run:
                parts.append(
                    self._tokenizer.decode(run, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
                )
                run = []
            if token is not None:
                parts.append(REPLACEMENT)
        return "".join(parts)

    def token_bytes(self) -> list[bytes]:
        """Raises: ValueError for a tokenizer that is neither byte-level nor of SentencePiece's kind."""
        decoder = json.dumps(json.loads(self._tokenizer.backend_tokenizer.to_str()).get("decoder"))
        if '"ByteLevel"' in decoder:
            to_bytes = _byte_level
        elif '"ByteFallback"' in decoder or "\\u2581" in decoder:
            to_bytes = _byte_fallback
        else:
            raise ValueError(
                f"the tokenizer of {self.directory} writes its tokens in an unknown way ({decoder[:80]}); "
                "stop strings need a byte-level or SentencePiece tokenizer: set rollout.stop_strings=()"
            )
        added = {i: b"" if t.special else t.content.encode() for i, t in self._tokenizer.added_tokens_decoder.items()}
        names = self._tokenizer.convert_ids_to_tokens(list(range(self._vocab_size)))
        return [added[i] if i in added else to_bytes(name or "") for i, name in enumerate(names)]


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes printable Latin-1 bytes as themselves, the other bytes as the characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def byte_level_name(character: str) -> str:
    """How byte-level tables write a character of one byte."""
    return next(name for name, byte in _byte_of_character().items() if byte == ord(character))


def _byte_level(name: str) -> bytes:
    table = _byte_of_character()
    return b"".join(bytes([table[c]]) if c in table else c.encode() for c in name)


def _byte_fallback(name: str) -> bytes:
    """SentencePiece: U+2581 is a space, <0xAB> a single byte."""
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.replace("\u2581", " ").encode()


_TABLES = {"tokenizer.json", "tokenizer.model", "vocab.json"}


def has_tokenizer(directory: str | pathlib.Path) -> bool:
    """Whether a directory holds the tables of a tokenizer."""
    path = pathlib.Path(directory).expanduser()
    return path.is_dir() and bool(_TABLES & {file.name for file in path.iterdir()})


def _check_files(directory: pathlib.Path) -> None:
    """transformers makes up an empty tokenizer for a directory without one, so look before it does."""
    if not directory.is_dir():
        raise ValueError(f"model directory {directory} does not exist")
    files = {p.name for p in directory.iterdir()}
    if not files & _TABLES:
        raise ValueError(
            f"model directory {directory} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json); "
            "fetch the whole repository, not only its weights"
        )
    for name in sorted(files & {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"}):
        _read_json(directory / name)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:  # covers bad JSON and bad UTF-8
        raise ValueError(f"{path} is damaged or only half downloaded ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def _named_special_tokens(directory: pathlib.Path) -> set[str]:
    """Kinds of special tokens ("eos_token", ...) that the tokenizer's own files give a value."""
    kinds: set[str] = set()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (directory / name).is_file():
            kinds |= {kind for kind, token in _read_json(directory / name).items() if token is not None}
    return kinds


def _eos_ids(directory: pathlib.Path, tokenizer_eos: int | None) -> tuple[int, ...]:
    """Every end-of-sequence id of generation_config.json, config.json and the tokenizer, in this order."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        if (directory / name).is_file():
            content = _read_json(directory / name)
            text_config = content.get("text_config")
            for value in (content.get("eos_token_id"), (text_config or {}).get("eos_token_id")):
                found += value if isinstance(value, list) else [] if value is None else [value]
    if tokenizer_eos is not None:
        found.append(tokenizer_eos)
    ids = tuple(dict.fromkeys(int(i) for i in found))
    if not ids:
        raise ValueError(
            f"no end-of-sequence id in generation_config.json, config.json or the tokenizer of {directory}; "
            'add "eos_token_id" to generation_config.json'
        )
    return ids


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' advice (torch is missing, on purpose) without changing its settings for others."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
