"""The fuzzing command, small here and large as slow; and properties that need no worker."""

import argparse
import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsearch_jax.verify import Status, Verdict, VerifySettings, final_answer, same_answer, score_boxed
from deepsearch_jax.verify.extract import last_complete_box
from deepsearch_jax.verify.judge import judge
from tests import verify_fuzz
from tests.hostile.grammar import FAMILIES, MEGABYTE, Bait, Case, case
from tests.hostile.strategies import answers_of, cases


def _run(capsys, *arguments):
    status = verify_fuzz.main(list(arguments))
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_a_small_run_finds_nothing(capsys):
    status, last = _run(capsys, "--cases", "32", "--sample", "6", "--jobs", "2", "--seed", "1")
    assert status == 0
    assert [last[name] for name in ("hangs", "crashes", "side_effects", "over_memory", "changed_verdicts")] == [0] * 5
    assert (last["cases"], last["not_asked"]) == (32, 0)
    assert last["symbolic"] > 8  # the workers were asked, not only the strings compared
    assert last["rechecked"] > 3


@pytest.mark.slow
def test_a_larger_run_finds_nothing(capsys):
    status, last = _run(capsys, "--cases", "3000", "--seed", "2")
    assert status == 0, last


@pytest.mark.parametrize("name", ["hangs", "failures", "over_memory", "changed_verdicts"])
def test_every_violation_fails_the_command(capsys, name):
    options = argparse.Namespace(cases=1, seed=0, jobs=1, deadline=1.0, memory=1024)
    good = verify_fuzz.Findings(cases=1)
    assert verify_fuzz.report(options, good, [], 1.0) == 0
    assert verify_fuzz.report(options, verify_fuzz.Findings(cases=1, **{name: 1}), [], 1.0) == 1
    assert verify_fuzz.report(options, verify_fuzz.Findings(cases=1, effects=["changed: 'x'"]), [], 1.0) == 1
    assert verify_fuzz.report(options, verify_fuzz.Findings(cases=0), [], 1.0) == 1
    assert verify_fuzz.report(options, good, ["job 0: exit status -11"], 1.0) == 1
    capsys.readouterr()


def test_a_job_that_dies_is_a_crash(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(verify_fuzz, "REPOSITORY", tmp_path)  # nothing to import there
    status, last = _run(capsys, "--cases", "10", "--jobs", "1")
    assert (status, last["crashes"], last["not_asked"]) == (1, 1, 10)


def test_a_verdict_that_changes_is_noticed():
    job = verify_fuzz.Job(VerifySettings(), 1, None)
    one = Case("x", "", "")
    job._compare(one, Status.CORRECT, Verdict(1.0, Status.CORRECT, "", 0.0))
    job._compare(one, Status.TIMEOUT, Verdict(1.0, Status.CORRECT, "", 0.0))
    assert job.found.changed_verdicts == 0
    job._compare(one, Status.INCORRECT, Verdict(1.0, Status.CORRECT, "", 0.0))
    assert job.found.changed_verdicts == 1


def test_a_seed_names_its_cases():
    bait = Bait()
    assert verify_fuzz.block(3, 1, 40, bait) == verify_fuzz.block(3, 1, 40, bait)
    assert verify_fuzz.block(3, 1, 40, bait) != verify_fuzz.block(4, 1, 40, bait)
    assert verify_fuzz.block(3, 3, 20, bait) == verify_fuzz.block(3, 3, 20, bait)  # hypothesis'
    some = [case(random.Random(number), bait) for number in range(3000)]
    assert {one.family for one in some} == {"identities", *FAMILIES}
    assert max(len(one.response) for one in some) > MEGABYTE


@settings(deadline=None, max_examples=200)
@given(one=cases())
def test_the_caller_decides_at_once_and_never_fails(one):
    begin = time.thread_time()
    answer = last_complete_box(one.response)
    if answer is not None:
        assert judge(answer, one.ground_truth) in (True, False, None)
        assert same_answer(answer, one.ground_truth) in (True, False)
    assert (final_answer(one.response) is None) == (answer is None or not answer.strip())
    assert score_boxed(one.response, one.ground_truth).score in (1.0, -1.0)
    assert time.thread_time() - begin < 2.0


@settings(deadline=None, max_examples=60)
@given(family=st.sampled_from(sorted(FAMILIES)), data=st.data())
def test_the_caller_survives_two_hostile_answers_against_each_other(family, data):
    one, other = data.draw(answers_of(family)), data.draw(answers_of(family))
    begin = time.thread_time()
    assert same_answer(one, other) in (True, False)
    assert time.thread_time() - begin < 2.0


@pytest.mark.parametrize(
    "char", ["\\", "{", "}", "\\{", "\\boxed", "\\boxed{", "\\boxed ", "\\\\boxed", " ", "$", "1,", "\\!"]
)
def test_long_runs_cost_no_more_than_linear_time(char):
    text = char * (MEGABYTE // 4 // len(char))
    begin = time.thread_time()
    for response in (text, f"\\boxed{{{text}}}", f"\\boxed{{{text}", text + "\\boxed{5}"):
        answer = last_complete_box(response)
        if answer:
            judge(answer, "5")
        score_boxed(response, "5")
    assert time.thread_time() - begin < 5.0  # quadratic would be hours
