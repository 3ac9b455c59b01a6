"""Tasks of the user's own and of reasoning-gym, up to what the trainer sees of them."""

import pathlib

import pytest

from deepsearch_jax.runtime.tasks import TaskSettings, build_task
from deepsearch_jax.runtime.verdicts import CORRECT_FROM
from tests.runtime.documented import DOCUMENT

TASK = """
from deepsearch_jax.runtime import Example, TextTask


class Capitals(TextTask):
    def __init__(self, seed=0, letters="abc"):
        super().__init__(seed)
        self.letters = letters

    def train(self):
        return [Example(f"write {c} large", c.upper(), solution=c.upper()) for c in self.letters]

    def heldout(self):
        return [Example("write z large", "Z", solution="Z")]

    def score(self, example, response):
        return 0.5 if response == example.question[6] else float(response == example.answer)


def make(model_path, seed):
    return object()


NOTHING = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "capitals.py"
    path.write_text(TASK)
    return path


def build(name, options="", **changes):
    return build_task(TaskSettings(name=name, options=options, **changes), "", seed=0)


def example_of_the_docs() -> str:
    """The Python block of docs/tasks.md."""
    page = (DOCUMENT.parent / "tasks.md").read_text("utf-8")
    return page.partition("```python\n")[2].partition("```")[0]


def test_a_task_of_ones_own_reads_characters_without_what_all_questions_share(file):
    task = build(f"{file}:Capitals")
    prompts = [task.tokenizer.decode(task.prompt(problem)) for problem in task.train_problems]
    assert prompts == ["a\n", "b\n", "c\n"]
    assert [problem.answer for problem in task.eval_problems] == ["Z"]


def test_scores_between_count_from_the_threshold_on(file):
    strict, lenient = build(f"{file}:Capitals"), build(f"{file}:Capitals", correct_from=0.5)
    for task, correct in ((strict, [True, False, False]), (lenient, [True, True, False])):
        problem = task.train_problems[0]
        verdicts = task.score([(problem, "A"), (problem, "a"), (problem, "")])
        assert [verdict.score >= CORRECT_FROM for verdict in verdicts] == correct
        assert task.statistics()["mean_score"] == 0.5


def test_the_warm_start_shows_solutions_of_training_problems_alone(file):
    task = build(f"{file}:Capitals")
    batch, learning_rate = task.warm_start(0)
    responses = {
        task.tokenizer.decode(row[mask]) for row, mask in zip(batch.tokens, batch.loss_mask, strict=True)
    }  # fmt: skip
    assert responses == {"A", "B", "C"}
    assert learning_rate == 2e-3
    assert task.warm_start(299) is not None
    assert task.warm_start(300) is None


def test_a_policy_of_characters_that_was_saved_is_read_with_the_same_table(file, tmp_path):
    """Without the examples of a warm start, which it does not draw."""
    (tmp_path / "saved").mkdir()
    first = build(f"{file}:Capitals")
    again = build_task(TaskSettings(name=f"{file}:Capitals"), str(tmp_path / "saved"), seed=0)
    assert again.tokenizer == first.tokenizer
    assert [again.prompt(p) for p in again.train_problems] == [first.prompt(p) for p in first.train_problems]
    assert again.warm_start(0) is None


def test_a_module_is_found_where_the_user_stands(file, monkeypatch):
    monkeypatch.syspath_prepend(str(file.parent))
    assert len(build("capitals:Capitals", "letters='ab'").train_problems) == 2


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("{file}:Capital", "", "has no class or function 'Capital'"),
        ("{file}:NOTHING", "", "has no class or function 'NOTHING'"),
        ("{file}x.py:Capitals", "", "there is no file"),
        ("no_such_module:Capitals", "", "start from the folder that holds the module"),
        ("{file}:Capitals", "size=3", "unexpected keyword argument 'size'"),
        ("{file}:Capitals", "letters='az'", "both held out and to be learned"),
        ("{file}:make", "", "which has no train_problems"),
    ],
)
def test_mistakes_name_themselves(file, name, options, words):
    with pytest.raises(ValueError, match=r"task|question") as error:
        build(name.format(file=file), options)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "reasoning_gym"}, "reasoning_gym:chain_sum"),
        ({"name": "maths"}, "choose one of arithmetic, countdown, math"),
        ({"name": "a:b", "options": "x"}, "every value needs a name"),
        ({"options": "x=1"}, "has no use for name='arithmetic'"),
        ({"name": "a:b", "correct_from": 0.0}, "must lie in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, words):
    with pytest.raises(ValueError, match=r"name|options|correct_from") as error:
        TaskSettings(**values)
    assert words in str(error.value)


def test_the_example_of_the_docs_is_thirty_lines_and_scores(tmp_path):
    source = example_of_the_docs()
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 30
    path = tmp_path / "backwards.py"
    path.write_text(source)
    task = build(f"{path}:Backwards", "letters='ab', length=2")
    problem = next(p for p in (*task.train_problems, *task.eval_problems) if p.question == "ba")
    assert len(task.train_problems) == len(task.eval_problems) == 2
    scores = [verdict.score for verdict in task.score([(problem, "ab"), (problem, "bb"), (problem, "b")])]
    assert scores == [1.0, 0.5, 0.0]


def test_a_dataset_of_reasoning_gym_is_a_task():
    pytest.importorskip("reasoning_gym")
    settings = TaskSettings(name="reasoning_gym:chain_sum", options="max_terms=2, max_digits=1")
    task = build_task(settings, "", seed=0)
    try:
        assert len(task.eval_problems) == 64
        assert 0 < len(task.train_problems) <= 256
        assert not {p.question for p in task.eval_problems} & {p.question for p in task.train_problems}
        problem = task.train_problems[0]
        assert len(task.prompt(problem)) == len("1 + 2\n")
        verdicts = task.score([(problem, problem.answer), (problem, "+0" + problem.answer), (problem, "x")])
        assert verdicts[0].score == 1.0
        assert verdicts[2].score < 1.0
        batch, _ = task.warm_start(0)
        assert batch.tokens.shape[0] == 64
    finally:
        task.close()


def test_paths_of_the_user_stay_out_of_the_name():
    """A name with a drive or several colons splits at the last one."""
    with pytest.raises(ValueError, match="there is no file"):
        build(f"{pathlib.Path('a:b.py')}:Task")
