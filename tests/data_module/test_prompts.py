import numpy as np
import pytest

from deepsearch_jax.data.problems import Problem
from deepsearch_jax.data.prompts import PromptSettings, encode_prompts, prompt_ids, prompt_messages, prompt_text
from deepsearch_jax.data.tokenizers import CharTokenizer, HFTokenizer

PLAIN = PromptSettings(template="{question}", chat=False, max_prompt_length=4)
TOKENIZER = CharTokenizer("abcd\n", eos="$", pad="_")


def problems(*questions):
    return [Problem(i, f"id-{i}", q, "1") for i, q in enumerate(questions)]


def test_the_default_is_the_published_form_and_braces_stay():
    question = r"Let $A = \{0\}$. Is {question} $\frac{1}{2}$?"
    (message,) = prompt_messages(question, PromptSettings())
    assert message["role"] == "user"
    expected = question + r" Let's think step by step and output the final answer within \boxed{}."
    assert message["content"] == expected
    assert PromptSettings().template.count("{question}") == 1


def test_a_system_prompt_comes_first():
    settings = PromptSettings(system_prompt="Be brief.")
    assert [m["role"] for m in prompt_messages("Q", settings)] == ["system", "user"]
    plain = PromptSettings(template="{question}", system_prompt="a", chat=False)
    assert prompt_ids("b", TOKENIZER, plain) == TOKENIZER.encode("a\n\nb")


def test_rows_are_padded_on_the_right_and_long_prompts_are_counted():
    got = encode_prompts(problems("ab", "abcda", "abcd", "c", "dddddd"), TOKENIZER, PLAIN)
    np.testing.assert_array_equal(got.tokens, [[2, 3, 0, 0], [2, 3, 4, 5], [4, 0, 0, 0]])
    np.testing.assert_array_equal(got.lengths, [2, 4, 1])
    np.testing.assert_array_equal(got.kept, [0, 2, 3])
    assert got.num_skipped == 2
    assert got.tokens.dtype == got.lengths.dtype == got.kept.dtype == np.int32


def test_nothing_that_fits_is_an_error():
    with pytest.raises(ValueError, match=r"all 2 prompts are longer than max_prompt_length=4 .* has 5, the longest 6"):
        encode_prompts(problems("abcda", "dddddd"), TOKENIZER, PLAIN)
    with pytest.raises(ValueError, match="no problems"):
        encode_prompts([], TOKENIZER, PLAIN)
    with pytest.raises(ValueError, match="problem 'id-1' has no tokens"):
        encode_prompts(problems("a", ""), TOKENIZER, PLAIN)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="exactly once"):
        PromptSettings(template="Solve it.")
    with pytest.raises(ValueError, match="exactly once"):
        PromptSettings(template="{question} {question}")
    with pytest.raises(ValueError, match="max_prompt_length=0"):
        PromptSettings(max_prompt_length=0)
    assert hash(PromptSettings()) == hash(PromptSettings())


def test_chat_prompts_go_through_the_template(byte_directory):
    tokenizer = HFTokenizer(byte_directory)
    settings = PromptSettings(template="{question}!", system_prompt="S", max_prompt_length=64)
    got = encode_prompts(problems("Q", "x" * 60), tokenizer, settings)
    assert got.num_skipped == 1
    expected = "<|start|>system\nS<|end|>\n<|start|>user\nQ!<|end|>\n<|start|>assistant\n"
    assert tokenizer.decode(got.tokens[0, : got.lengths[0]], skip_special=False) == expected
    assert (got.tokens[0, got.lengths[0] :] == tokenizer.pad_id).all()
    assert prompt_text("Q", settings) == "Q!"
