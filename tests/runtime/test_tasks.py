"""The tasks that ship with the project."""

import json

import pytest

from deepsearch_jax.data.problems import ProblemSettings
from deepsearch_jax.data.prompts import PromptSettings
from deepsearch_jax.data.tokenizers import CharTokenizer
from deepsearch_jax.runtime import tasks
from deepsearch_jax.runtime.tasks import MathSettings, TaskSettings, build_task
from deepsearch_jax.verify import VerifySettings
from tests.runtime.conftest import ARITHMETIC


@pytest.fixture
def math_task(tmp_path, monkeypatch):
    """A math task whose two files use the same ids, as files without ids of their own often do."""
    for name in ("train", "test"):
        rows = [
            {"id": i, "question": f"{name} question {i} {'long ' * 20 * (i == 2)}", "answer": str(i)} for i in range(3)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alphabet = "abcdefghijklmnopqrstuvwxyz 0123456789"
    monkeypatch.setattr(tasks, "HFTokenizer", lambda path: CharTokenizer(alphabet, eos="$"))
    settings = MathSettings(
        train=ProblemSettings(paths=(str(tmp_path / "train.jsonl"),)),
        evaluation=ProblemSettings(paths=(str(tmp_path / "test.jsonl"),)),
        prompt=PromptSettings(template="{question}", chat=False, max_prompt_length=40),
        verify=VerifySettings(mode="math"),
    )
    task = build_task(TaskSettings(name="math", math=settings), "anywhere", seed=0)
    yield task
    task.close()


def test_equal_ids_in_both_files_keep_their_own_prompts(math_task):
    decode = math_task.tokenizer.decode
    assert [decode(math_task.prompt(p)).strip() for p in math_task.train_problems] == [
        "train question 0", "train question 1",
    ]  # fmt: skip
    assert [decode(math_task.prompt(p)).strip() for p in math_task.eval_problems] == [
        "test question 0", "test question 1",
    ]  # fmt: skip


def test_prompts_beyond_the_limit_are_skipped_and_counted(math_task):
    assert math_task.statistics()["skipped_prompts"] == 2


def test_math_verdicts_tell_wrong_from_unanswered(math_task):
    problem = math_task.train_problems[1]
    verdicts = math_task.score([(problem, r"so \boxed{1}"), (problem, r"so \boxed{7}"), (problem, "it is 1")])
    assert [(v.score, v.is_answered) for v in verdicts] == [(1.0, True), (0.0, True), (0.0, False)]


def test_the_arithmetic_task_has_a_warm_start_that_ends():
    task = build_task(TaskSettings(arithmetic=ARITHMETIC), "", seed=0)
    batch, learning_rate = task.warm_start(0)
    assert batch.tokens.shape[0] == 16
    assert learning_rate == 1e-2
    assert task.warm_start(59) is not None
    assert task.warm_start(60) is None
    problem = task.train_problems[0]
    assert [v.score for v in task.score([(problem, "nonsense")])] == [0.0]
