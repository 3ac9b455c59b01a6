"""Examples, options, and what models that read characters are shown."""

import numpy as np
import pytest

from deepsearch_jax.data.texts import (
    Example,
    TextSettings,
    character_tokenizer,
    check_apart,
    make_problems,
    parse_options,
    shared_ends,
    supervised_batch,
)


def test_options_are_keyword_arguments_of_literals():
    assert parse_options("") == {}
    assert parse_options("a=1, b='x', c=('+', '-'), d=True, e=-0.5") == {
        "a": 1, "b": "x", "c": ("+", "-"), "d": True, "e": -0.5,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["a=b", "1", "a=1)(b=2", "**{'a': 1}", "a=__import__('os')", "a=1; b=2", "a==1"])
def test_other_options_are_refused(text):
    with pytest.raises(ValueError, match="cannot be read"):
        parse_options(text)


@pytest.mark.parametrize(
    ("texts", "kept"),
    [
        (["What is 1 + 2 ?", "What is 3 - 4 ?"], ["1 + 2 ", "3 - 4 "]),
        (["aab", "aac"], ["aab", "aac"]),  # within a word nothing is cut
        (["same", "same"], ["same", "same"]),
        (["a b", "a"], ["a b", "a"]),  # something is left of each
        (["say it: on \nNow!", "say it: off \nNow!"], ["on \n", "off \n"]),
    ],
)
def test_what_all_questions_share_is_left_out(texts, kept):
    first, last = shared_ends(texts)
    assert [text[first : len(text) - last].rstrip() for text in texts] == [text.rstrip() for text in kept]


def test_a_question_that_comes_again_is_one_problem():
    problems, examples = make_problems([("a", "1"), Example("b", "2", "two"), ("a", "3")], "words")
    assert [(p.question, p.answer, p.source) for p in problems] == [("a", "1", "words"), ("b", "2", "words")]
    assert examples[problems[1].id].solution == "two"
    again, _ = make_problems([("b", "2")], "words")
    assert again[0].id == problems[1].id


@pytest.mark.parametrize("example", [("", "1"), ("a", ""), ("a", 1), ("a",), 3])
def test_bad_examples_are_named(example):
    with pytest.raises(ValueError, match="example 1 of words"):
        make_problems([("a", "1"), example], "words")


def test_held_out_problems_are_not_learnt_from():
    problems, _ = make_problems([("a", "1"), ("b", "2")], "words")
    check_apart(problems[:1], problems[1:])
    with pytest.raises(ValueError, match="for example 'b'"):
        check_apart(problems, problems[1:])
    with pytest.raises(ValueError, match="no problems to learn from"):
        check_apart([], problems)


def test_supervised_rows_teach_the_response_and_its_end():
    tokenizer = character_tokenizer(["ab\n", "c"])
    settings = TextSettings(warm_start_batch_size=3)
    batch = supervised_batch([("ab\n", "c"), ("b\n", "")], settings, tokenizer, seed=0, step=4)
    assert batch.tokens.shape == (3, 5)
    for tokens, mask in zip(batch.tokens, batch.loss_mask, strict=True):
        assert tokenizer.decode(tokens[mask], skip_special=False) in ("c\x03", "\x03")
    again = supervised_batch([("ab\n", "c"), ("b\n", "")], settings, tokenizer, seed=0, step=4)
    np.testing.assert_array_equal(batch.tokens, again.tokens)


def test_control_characters_of_the_table_are_refused_in_texts():
    with pytest.raises(ValueError, match="control characters"):
        character_tokenizer(["a\x03"])
