"""Parquet files in verl's layout, which the authors' problem files have: messages, reward_model, extra_info."""

import pyarrow
import pyarrow.parquet
import pytest

from deepsearch_jax.data.problems import load_problems
from deepsearch_jax.data.prompts import PromptSettings, prompt_text

SUFFIX = r" Let's think step by step and output the final answer within \boxed{}."
LAYOUT = pyarrow.schema(
    [
        ("data_source", pyarrow.string()),
        ("prompt", pyarrow.list_(pyarrow.struct([("content", pyarrow.string()), ("role", pyarrow.string())]))),
        ("ability", pyarrow.string()),
        ("reward_model", pyarrow.struct([("ground_truth", pyarrow.string()), ("style", pyarrow.string())])),
        ("extra_info", pyarrow.struct([("index", pyarrow.string()), ("difficulty", pyarrow.float64())])),
    ]
)


def row(index, question, answer="2", messages=None):
    return {
        "data_source": "zwhe99/DeepMath-103K",
        "prompt": messages or [{"content": question + SUFFIX, "role": "user"}],
        "ability": "math",
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"index": f"zwhe99--DeepMath-103K-{index}", "difficulty": 8.0},
    }


def write(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=LAYOUT), path)
    return path


def test_the_authors_problem_files_are_read_as_they_are(tmp_path):
    path = write(tmp_path / "train_0.parquet", [row(224, "What is $1+1$?"), row(7, "And $x^2$?", r"\infty")])
    first, second = load_problems(path)
    assert (first.id, first.question, first.answer) == ("zwhe99--DeepMath-103K-224", "What is $1+1$?" + SUFFIX, "2")
    assert (second.answer, second.source) == (r"\infty", "zwhe99/DeepMath-103K")
    assert second.metadata["extra_info"]["difficulty"] == 8.0
    assert prompt_text(first.question, PromptSettings()) == "What is $1+1$?" + SUFFIX


def test_indices_may_be_numbers_and_answers_lists_of_one(tmp_path):
    layout = {"prompt": [[{"content": "Q", "role": "user"}]], "reward_model": [{"ground_truth": ["72"]}],
              "extra_info": [{"index": 5}]}  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(layout), tmp_path / "gsm8k.parquet")
    (problem,) = load_problems(tmp_path / "gsm8k.parquet")
    assert (problem.id, problem.question, problem.answer, problem.source) == ("5", "Q", "72", "gsm8k")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q"}], "system message; take it out"),
        ([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "roles .*assistant.*of the user"),
        ([{"role": "user", "content": None}], "'prompt' must be text"),
        ([], "'prompt' must be text, got list"),
    ],
)
def test_other_messages_are_refused(messages, message, tmp_path):
    rows = [row(1, "Q")]
    rows[0]["prompt"] = messages
    with pytest.raises(ValueError, match=message):
        load_problems(write(tmp_path / "set.parquet", rows))


def test_an_instruction_that_the_question_holds_already_is_not_said_twice():
    settings = PromptSettings()
    assert prompt_text("Q?" + SUFFIX, settings) == prompt_text("Q?", settings) == "Q?" + SUFFIX
    assert prompt_text("Q?" + SUFFIX, PromptSettings(template="{question}")) == "Q?" + SUFFIX
