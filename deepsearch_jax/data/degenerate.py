"""Spots samples that are no attempt at an answer: garbled text, or a short piece repeated without end."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DegenerateSettings:
    """Where a sample begins to count as degenerate; meant for wrong samples, right ones are kept in any case."""

    max_bad_share: float = 0.03  # of characters that stand for nothing: U+FFFD, control, unassigned, private use
    min_bad: int = 4  # such characters a garbled text has at least; one broken character is no garbage
    max_foreign_scripts: int = 2  # writing systems beside Latin and Greek that one text may mix
    min_foreign_share: float = 0.1  # of letters in such writing systems, below which mixing is ignored
    max_period_chars: int = 400  # longest repeated piece looked for, characters
    max_period_tokens: int = 128  # longest repeated piece looked for, token ids
    min_repeated_chars: int = 300  # the repeated end covers at least this, so that tables and long zeros pass
    min_repeated_tokens: int = 120
    min_repeats: int = 4  # times the piece occurs in the repeated end

    def __post_init__(self) -> None:
        for name in ("max_bad_share", "min_foreign_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1]")
        for name in ("max_period_chars", "max_period_tokens", "min_repeated_chars", "min_repeated_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.min_repeats < 2:
            raise ValueError(f"min_repeats={self.min_repeats} must be at least 2, as every text occurs once")


DEFAULT = DegenerateSettings()


def is_degenerate(sample: str | Sequence[int] | np.ndarray, settings: DegenerateSettings = DEFAULT) -> bool:
    """Whether a text is garbled or repeats itself to the end; of token ids, only the latter can be told."""
    return is_repeating(sample, settings) or (isinstance(sample, str) and is_garbled(sample, settings))


def is_garbled(text: str, settings: DegenerateSettings = DEFAULT) -> bool:
    """Whether many characters stand for nothing, or letters of many writing systems are thrown together."""
    num_bad = sum(_is_bad(c) for c in text)
    if num_bad >= settings.min_bad and num_bad > settings.max_bad_share * len(text):
        return True
    scripts = Counter(script for c in text if (script := _script(c)))
    num_letters = sum(scripts.values())
    foreign = {name: count for name, count in scripts.items() if name not in ("LATIN", "GREEK")}
    return (
        len(foreign) > settings.max_foreign_scripts and sum(foreign.values()) > settings.min_foreign_share * num_letters
    )


def _is_bad(character: str) -> bool:
    if character in "\n\r\t":
        return False
    return character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs")


def _script(character: str) -> str:
    """Writing system of a letter, "" of anything else. East Asian ones count as one, since they occur together."""
    if character.isascii():
        return "LATIN" if character.isalpha() else ""
    if not unicodedata.category(character).startswith("L"):
        return ""
    if "\u2135" <= character <= "\u2138":  # aleph to dalet as cardinals are mathematics, not Hebrew
        return ""
    # Compatibility forms (mathematical letters, superscripts, full width) are letters of the system they come from.
    name = unicodedata.name(unicodedata.normalize("NFKC", character)[0], "").split(" ")[0].split("-")[0]
    if name == "MODIFIER":  # apostrophes and the like
        return ""
    return "CJK" if name in ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC") else name


def is_repeating(sample: str | Sequence[int] | np.ndarray, settings: DegenerateSettings = DEFAULT) -> bool:
    """Whether the sample ends in many repetitions of one piece, the last one possibly cut off."""
    if isinstance(sample, str):
        # White space behind the last repetition hides nothing, but endless white space is itself a repetition.
        texts = {sample, sample.rstrip()}
        limits = settings.max_period_chars, settings.min_repeated_chars
        return any(
            _ends_periodic(np.array([ord(c) for c in t], np.int64), *limits, settings.min_repeats) for t in texts
        )
    limits = settings.max_period_tokens, settings.min_repeated_tokens
    return _ends_periodic(np.asarray(sample, np.int64), *limits, settings.min_repeats)


def _ends_periodic(sequence: np.ndarray, max_period: int, min_length: int, min_repeats: int) -> bool:
    """Whether for some period p the last max(min_length, min_repeats * p) entries repeat with period p."""
    for period in range(1, min(max_period, sequence.size // min_repeats) + 1):
        length = max(min_length, min_repeats * period)
        if length <= sequence.size and np.array_equal(sequence[-length + period :], sequence[-length:-period]):
            return True
    return False
