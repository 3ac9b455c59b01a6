"""Stop strings against decoding the text and looking for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsearch_jax.decode import build_stop_table
from tests.decode.trees import CONFIG, Trees, random_prompts
from tests.decode.trees import settings as decode_settings

texts = st.text("ab", max_size=3).map(str.encode)


def walk(table, tokens, state=0):
    """All states on the way; plain Python on the table's numbers."""
    next_states, states = np.asarray(table.next_states), []
    for token in tokens:
        state = int(next_states[state, token])
        states.append(state)
    return states


def first_stop(stop_strings, token_bytes, tokens):
    """Index of the token that completes a stop string, len(tokens) if none; a token without bytes breaks the text."""
    text = b""
    for index, token in enumerate(tokens):
        text = text + token_bytes[token] if token_bytes[token] else b""
        if any(stop in text for stop in stop_strings):
            return index
    return len(tokens)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    st.lists(st.text("ab", min_size=1, max_size=5).map(str.encode), min_size=1, max_size=4),
    st.lists(texts, min_size=1, max_size=6),
    st.data(),
)
def test_the_automaton_finds_what_the_text_holds(stop_strings, token_bytes, data):
    table = build_stop_table(stop_strings, token_bytes)
    tokens = data.draw(st.lists(st.integers(0, len(token_bytes) - 1), max_size=20))
    complete = table.next_states.shape[0] - 1
    end = first_stop(stop_strings, token_bytes, tokens)
    states = walk(table, tokens[: end + 1])
    assert complete not in states[:end]
    assert states[end : end + 1] in ([], [complete])
    for index, state in enumerate(states[:end]):  # the last few tokens are all that matters
        assert walk(table, tokens[max(0, index + 1 - table.memory) : index + 1])[-1:] in ([state], [])


def test_by_hand():
    """Stop string "aab": the text "a" then "aaab" completes it across tokens, past a false start."""
    table = build_stop_table(["aab"], [b"a", b"aaab", b"b", b"xaabx", b"", b"\xc3"], vocab_size=8)
    assert table.next_states.shape == (4, 8)
    assert table.next_states.dtype == jnp.uint8
    assert table.memory == 2
    assert walk(table, [0, 1]) == [1, 3]
    assert walk(table, [0, 0, 0, 2]) == [1, 2, 2, 3]
    assert walk(table, [3]) == [3]  # within a token
    assert walk(table, [0, 0, 4, 2]) == [1, 2, 0, 0]  # a special token breaks it
    assert walk(table, [0, 0, 7]) == [1, 2, 0]  # an id without text


def test_characters_cut_in_two_and_many_states():
    text = "end é" * 60  # 360 states: more than a byte counts
    cut = text.encode()
    table = build_stop_table([text, text + "x", "never"], [cut[:-1], cut[-1:], b"never", b"e"])
    complete = table.next_states.shape[0] - 1
    assert table.next_states.dtype == jnp.uint16
    assert walk(table, [0, 1])[-1] == complete
    assert walk(table, [3, 0, 1])[-1] == complete
    assert walk(table, [1, 2])[-1] == complete


@pytest.mark.parametrize(("strings", "message"), [([], "one or more"), (["a", ""], "not empty")])
def test_stop_strings_without_sense_are_refused(strings, message):
    with pytest.raises(ValueError, match=message):
        build_stop_table(strings, [b"a"])
    with pytest.raises(ValueError, match="3 tokens, but the model has 2 ids"):
        build_stop_table(["a"], [b"a"] * 3, vocab_size=2)


# 29 ids that write "a" and "b", most of them two letters, two of them nothing.
TOKEN_BYTES = [b"", b"", *([b"a", b"b", b"ab", b"ba", b"bb", b"aa", b"aba", b"bab", b"c"] * 3)]
STOPS = ["abbab", "bbbaaa", "acca"]


def test_segments_end_where_the_text_holds_a_stop_string():
    """Stop strings straddle tokens and nodes; what is sampled up to them is what is sampled without them."""
    table = build_stop_table(STOPS, TOKEN_BYTES)
    how = decode_settings(num_samples=24, eos_ids=(1,))
    runs = [Trees(how, random_prompts(6, 3), stop_table=stop_table) for stop_table in (None, table)]
    straddling, ended = 0, 0
    paths = [[], []]
    for depth in range(3):
        keys = jax.random.split(jax.random.key(depth), (2, 24))
        pages = [None, None]
        free, pages[0] = runs[0].expand(paths, depth_bucket=3, row_keys=keys)
        stopped, pages[1] = runs[1].expand(paths, depth_bucket=3, row_keys=keys)
        np.testing.assert_array_equal(*pages)
        following = []
        for row, path in enumerate(paths):
            before = [token for _, tokens in path for token in tokens]
            assert first_stop([s.encode() for s in STOPS], TOKEN_BYTES, before) == len(before)
            grows = []
            for k in range(24):
                tokens = free.tokens[row, k, : free.lengths[row, k]]
                end = first_stop([s.encode() for s in STOPS], TOKEN_BYTES, [*before, *tokens]) - len(before)
                own = first_stop([s.encode() for s in STOPS], TOKEN_BYTES, tokens)
                length = min(end + 1, len(tokens))
                assert stopped.lengths[row, k] == length
                np.testing.assert_array_equal(stopped.tokens[row, k, :length], tokens[:length])
                assert not stopped.tokens[row, k, length:].any()
                assert stopped.is_eos[row, k] == (end < len(tokens) or free.is_eos[row, k])
                ended += end < len(tokens)
                straddling += end < own
                if length == how.segment_length and not stopped.is_eos[row, k]:
                    grows.append(k)
            following.append([*path, (pages[0][row, grows[0]], free.tokens[row, grows[0]])])
        paths = following
    assert ended > 8
    assert straddling > 1


def test_a_table_for_another_vocabulary_is_refused():
    trees = Trees(decode_settings(), random_prompts(4), stop_table=build_stop_table(["a"], [b"a"]))
    with pytest.raises(ValueError, match="for 1 ids, but the model has 29; build it with vocab_size=29"):
        trees.expand([[]], depth_bucket=0)
    assert CONFIG.vocab_size == len(TOKEN_BYTES) == 29
