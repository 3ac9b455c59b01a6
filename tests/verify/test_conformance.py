"""One suite for every scorer: both modes of ours and a fake. What the search relies on, whatever the task is."""

import pytest

from deepsearch_jax.verify import Status, VerifySettings, make_scorer
from tests.verify.fakes import LastWordScorer

MAKERS = {
    "math": lambda: make_scorer(VerifySettings(mode="math", num_workers=1)),
    "boxed": lambda: make_scorer(VerifySettings(mode="boxed")),
    "fake": LastWordScorer,
}
CASES = [
    (r"so \boxed{7}", "7", Status.CORRECT),
    (r"so \boxed{8}", "7", Status.INCORRECT),
    ("so 7", "7", Status.NO_ANSWER),
    ("", "7", Status.NO_ANSWER),
    (r"\boxed{6} no, \boxed{7}", "7", Status.CORRECT),
    (r"\boxed{7", "7", Status.NO_ANSWER),
]


@pytest.fixture(params=sorted(MAKERS))
def scorer(request):
    scorer = MAKERS[request.param]()
    yield scorer
    scorer.close()


def test_verdicts_come_in_the_order_asked(scorer):
    verdicts = scorer.score([case[:2] for case in CASES])
    assert [verdict.status for verdict in verdicts] == [case[2] for case in CASES]
    assert [verdict.score for verdict in verdicts] == [float(case[2] is Status.CORRECT) for case in CASES]


def test_a_verdict_does_not_depend_on_its_company(scorer):
    together = [verdict.status for verdict in scorer.score([case[:2] for case in reversed(CASES)])][::-1]
    alone = [scorer.submit(*case[:2]).result().status for case in CASES]
    assert together == alone


def test_the_answer_is_what_was_boxed_or_none(scorer):
    assert scorer.submit(r"\boxed{8}", "7").result().answer == "8"
    assert scorer.submit("8", "7").result().answer is None


def test_cases_are_counted(scorer):
    scorer.score([case[:2] for case in CASES])
    assert scorer.stats.cases == len(CASES)
    assert scorer.stats.timeouts == scorer.stats.errors == 0


def test_nothing_asked_nothing_said(scorer):
    assert scorer.score([]) == []


def test_what_is_no_text_is_refused(scorer):
    with pytest.raises(TypeError):
        scorer.submit(None, "7")


def test_a_closed_scorer_says_so_and_closes_twice(scorer):
    scorer.close()
    scorer.close()
    with pytest.raises(RuntimeError):
        scorer.submit(r"\boxed{7}", "7")
