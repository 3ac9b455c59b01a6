"""reasoning-gym: problems drawn the same way every time, answers scored as the library does, hostile ones harmless."""

import json
import os
import time

import pytest

from deepsearch_jax.verify import GymPool, Status, draw_items
from deepsearch_jax.verify.gym import find_answer
from deepsearch_jax.verify.gym_problems import draw, open_dataset, packed, unpacked
from deepsearch_jax.verify.gym_worker import is_plain

pytest.importorskip("reasoning_gym")

OPTIONS = {"min_numbers": 2, "max_numbers": 2, "max_value": 9, "min_target": 2, "max_target": 18}


@pytest.fixture(scope="module")
def parts():
    return draw_items("countdown", OPTIONS, [(5, 8), (6, 24), (7, 4)])


def test_parts_have_distinct_questions_and_none_of_those_held_out(parts):
    questions = [[item.question for item in part] for part in parts]
    assert [len(part) for part in questions] == [8, 24, 4]
    assert all(len(set(part)) == len(part) for part in questions)
    assert not set(questions[0]) & {*questions[1], *questions[2]}


def test_another_process_draws_the_same_problems(parts):
    """The generators run here with a random hash seed: nothing of the choice may depend on it."""
    request = {"dataset": "countdown", "options": OPTIONS, "parts": [[5, 8], [6, 24], [7, 4]]}
    here = [(record["part"], record["question"], record["answer"]) for record in draw(request)]
    assert here == [(i, item.question, item.answer) for i, part in enumerate(parts) for item in part]


def test_held_out_questions_are_skipped_where_the_seeds_give_the_same_ones():
    """The library makes problem i from seed + i: neighbouring seeds share all but one."""
    request = {"dataset": "chain_sum", "options": {"max_terms": 2, "max_digits": 1}, "parts": [[5, 10], [6, 10]]}
    first, second = ([r["question"] for r in draw(request) if r["part"] == part] for part in (0, 1))
    assert len(second) == 10
    assert not set(first) & set(second)


def test_answers_get_the_librarys_own_score(parts, tmp_path):
    item, marker = parts[0][0], tmp_path / "written"
    library = open_dataset("countdown", OPTIONS, 0, 10)
    entry = unpacked(json.loads(item.entry))
    plain = [item.answer, "1 + 1", "nonsense (", "x + 1", str(entry["metadata"]["target"])]
    hostile = [
        f"__import__('os').system('touch {marker}')",
        f"open('{marker}', 'w')",
        f"{item.answer} + 0 * len(open('{marker}', 'w').name)",
        "(1).__class__.__base__.__subclasses__()",
        "(lambda: 1)()",
        "[x for x in (1, 2)]",
    ]
    with GymPool("countdown", OPTIONS, item, "all", num_workers=1, deadline_s=3.0, memory_mb=1024) as pool:
        verdicts = pool.score([(answer, item.entry) for answer in (*plain, *hostile)])
        assert [v.score for v in verdicts[: len(plain)]] == [library.score_answer(answer, entry) for answer in plain]
        assert (verdicts[0].score, verdicts[0].status) == (1.0, Status.CORRECT)
        assert all(verdict.score <= 0.05 for verdict in verdicts[len(plain) :])
        assert not marker.exists()
        # The number has a billion digits.
        assert pool.score([("9**9**9**9", item.entry)])[0].status in (Status.TIMEOUT, Status.ERROR)
        assert pool.score([("", item.entry)])[0].status is Status.NO_ANSWER


def test_formulas_with_variables_and_functions_get_their_score():
    """The library's own answers to these were refused, so nothing could be right."""
    for dataset in ("simple_integration", "intermediate_integration"):
        (item,) = draw_items(dataset, {}, [(2, 1)])[0]
        with GymPool(dataset, {}, item, "all", num_workers=1, deadline_s=10.0, memory_mb=1024) as pool:
            verdicts = pool.score([(item.answer, item.entry), (item.answer + " + x", item.entry)])
            assert ([verdict.score for verdict in verdicts], pool.stats.refused) == ([1.0, 0.0], 0)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Integer (1 )+Integer (2 )*Float ('2.5')", True),
        ("[['a', 1], (2, 3), {4}]", True),
        ("-1 ** 2 // 3", True),
        ("1 + (", True),  # compiling it fails by itself
        ("-Integer (5 )*x **Integer (9 )*sqrt (x )+C ", True),
        ("f(1)", False),
        ("x(1)", False),
        ("S('1')", False),
        ("sqrt(x=1)", False),
        ("xy", False),
        ("Integer", False),
        ("Symbol('x', commutative=False)", False),
        ("(1).real", False),
        ("[1][0]", False),
        ("f'{1}'", False),
        ("a := 1", True),
        ("from sympy import *", True),
        ("import os", False),  # no expression, but it runs
        ("a = len('x')\nb = 2", False),
        ("-" * 3900 + "1 + f(1)", False),  # too deep for the syntax tree, not for the compiler
        ("1 if 2 else 3", False),
        ("1+" * 3000 + "1", False),
    ],
)
def test_what_may_be_evaluated(source, expected):
    assert is_plain(source) is expected


def test_records_come_through_as_they_were():
    record = {"a": (1, [2.5, None], {"x"}), 3: {(1, 2): "text"}, "b": {"tuple": True}}
    assert unpacked(json.loads(json.dumps(packed(record)))) == record
    with pytest.raises(ValueError, match="holds a complex"):
        packed([1j])


def test_where_the_answer_stands():
    text = "<answer>1</answer> no, <answer> 2 </answer> or \\boxed{3}"
    assert [find_answer(text, how) for how in ("tag", "box", "all")] == ["2", "3", text]
    assert [find_answer("none", how) for how in ("tag", "box")] == [None, None]
    assert find_answer("x" * 30_000, "all") is None
    assert (
        find_answer("<answer>1 <answer>2</answer> <answer></answer><answer>3", "tag") is None
    )  # the last one is empty
    assert find_answer("<answer>1 <answer>2</answer> 3</answer><answer>4", "tag") == "1 <answer>2"


def test_tags_that_never_end_cost_one_pass():
    """Each of them looked for its end up to the end of the text: more than a minute of the asking thread."""
    begin = time.process_time()
    assert find_answer("<answer>" * 50_000, "tag") is None
    assert time.process_time() - begin < 0.5


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("countdwn", {}, "did you mean countdown"),
        ("countdown", {"numbers": 3}, "no option 'numbers'; it has min_numbers"),
        ("countdown", {"min_numbers": 1}, "min_numbers must be greater than 1"),
    ],
)
def test_mistakes_name_a_way_out(name, options, words):
    with pytest.raises(ValueError, match="dataset") as error:
        open_dataset(name, options, 0, 10)
    assert words in str(error.value)


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch):
    (tmp_path / "reasoning_gym.py").write_text("raise ModuleNotFoundError(\"No module named 'reasoning_gym'\")\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(ValueError, match="pip install reasoning-gym"):
        draw_items("countdown", {}, [(1, 1)])
