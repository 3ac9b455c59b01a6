"""Stop strings found on the device: an automaton over bytes that takes one step a token."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class StopTable:
    """Where each token leads from each state of the stop strings' automaton (Aho and Corasick, 1975).

    State 0: no stop string has begun; the last state: one is complete; the others: the longest beginning of a stop
    string that the text ends with. A string may begin and end inside a token.

    Attributes:
      next_states: [Q, V] unsigned; the smallest type that holds Q.
      memory: tokens behind which nothing matters for the state: bytes of the longest stop string, less one. Static.
    """

    next_states: jax.Array
    memory: int = struct.field(pytree_node=False)

    def start(self, shape: tuple[int, ...], like: jax.Array) -> jax.Array:
        """[shape] int32 states before any token."""
        return jnp.zeros_like(like, shape=shape, dtype=jnp.int32)

    def advance(self, states: jax.Array, tokens: jax.Array) -> jax.Array:
        """States [...] int32 and the next tokens [...] int32 -> states [...] int32."""
        return self.next_states[states, tokens].astype(jnp.int32)

    def is_complete(self, states: jax.Array) -> jax.Array:
        """[...] bool a stop string ends within the token that led here."""
        return states == self.next_states.shape[0] - 1

    def after(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """[R] int32 states behind responses that hold no whole stop string; reads no more than their ends.

        Args:
          tokens: [R, X] int32.
          lengths: [R] int32 tokens of each response, <= X.
        """
        num_tokens = min(self.memory, tokens.shape[1])

        def step(index: jax.Array, states: jax.Array) -> jax.Array:
            at = lengths - num_tokens + index
            token = jnp.take_along_axis(tokens, jnp.maximum(at, 0)[:, None], axis=1)[:, 0]
            return jnp.where(at >= 0, self.advance(states, token), states)

        return jax.lax.fori_loop(0, num_tokens, step, self.start(lengths.shape, lengths))


def build_stop_table(
    stop_strings: Sequence[str | bytes], token_bytes: Sequence[bytes], vocab_size: int | None = None
) -> StopTable:
    """The automaton of all stop strings for one tokenizer; on the host, once a run.

    Args:
      stop_strings: text, taken as UTF-8, or bytes.
      token_bytes: bytes that each token id adds to the text. Empty bytes (special tokens) break what has begun.
      vocab_size: V, ids of the model; ids without bytes are added up to it.

    Raises:
      ValueError: no or empty stop strings, or more tokens than the model has ids.
    """
    vocab_size = len(token_bytes) if vocab_size is None else vocab_size
    if len(token_bytes) > vocab_size:
        raise ValueError(f"{len(token_bytes)} tokens, but the model has {vocab_size} ids; give the model's own tokens")
    strings = {text.encode() if isinstance(text, str) else text for text in stop_strings}
    if not strings or b"" in strings:
        raise ValueError(f"stop_strings={list(stop_strings)!r} must be one or more strings that are not empty")
    # Whoever contains another one never comes to its end.
    strings = {text for text in strings if not any(other in text for other in strings - {text})}
    by_byte = _byte_automaton(sorted(strings))
    complete = len(by_byte) - 1
    lengths = np.zeros(vocab_size, np.int64)
    lengths[: len(token_bytes)] = [len(text) for text in token_bytes]
    order = np.argsort(-lengths, kind="stable")
    at_byte = [  # at_byte[j][i]: byte j of the i-th longest token
        np.frombuffer(bytes(token_bytes[token][j] for token in order[: np.count_nonzero(lengths > j)]), np.uint8)
        for j in range(lengths.max(initial=0))
    ]
    dtype = np.uint8 if complete < 2**8 else np.uint16 if complete < 2**16 else np.uint32
    table = np.zeros((complete + 1, vocab_size), dtype)
    for state in range(complete):
        states = np.full(vocab_size, state)
        for column in at_byte:
            states[: len(column)] = by_byte[states[: len(column)], column]
        table[state, order] = np.where(lengths[order] > 0, states, 0)
    table[complete] = table[0]  # whoever goes on behind a stop string begins anew
    return StopTable(jnp.asarray(table), memory=max(map(len, strings)) - 1)


def _byte_automaton(strings: Sequence[bytes]) -> np.ndarray:
    """[Q, 256] next state by byte, for strings of which none contains another; the last state leads to itself."""
    prefixes = sorted({text[:length] for text in strings for length in range(len(text))}, key=lambda p: (len(p), p))
    number = {prefix: state for state, prefix in enumerate(prefixes)}
    complete = len(prefixes)
    number |= dict.fromkeys(strings, complete)
    table = np.zeros((complete + 1, 256), np.int64)
    table[complete] = complete
    for state, prefix in enumerate(prefixes):  # by length: the row of the longest proper suffix is there already
        suffix = next((prefix[start:] for start in range(1, len(prefix)) if prefix[start:] in number), b"")
        table[state] = table[number[suffix]]
        for byte in range(256):
            table[state, byte] = number.get(prefix + bytes([byte]), table[state, byte])
    return table
