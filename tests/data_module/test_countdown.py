import itertools

import numpy as np
import pytest

from deepsearch_jax.data.arithmetic import EOS, is_heldout
from deepsearch_jax.data.countdown import (
    ALPHABET,
    CountdownSettings,
    CountdownTask,
    can_reach,
    check_solution,
    countdown_batch,
    generate_problems,
    sample_solved,
)

SETTINGS = CountdownSettings(num_train_problems=60, num_heldout_problems=20)


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("25*03=75,75+07=82$", True),
        ("25*03=75,75+07=82", True),  # decoding dropped the EOS
        ("03*25=75,07+75=82$", True),  # another order
        ("25*03=75,75+07=83$", False),  # a wrong step
        ("25*03=76,76+07=82$", False),
        ("25+07=32,32+03=35$", False),  # right steps, another number
        ("25*03=75$", False),  # not all numbers
        ("75+07=82$", False),  # a number that is not there
        ("25*03=75,25+07=32$", False),  # a number used twice
        ("25*03=75,75+07=82,82-00=82$", False),
        ("25*3=75,75+7=82$", False),
        ("", False),
    ],
)
def test_only_right_chains_to_the_target_count(response, right):
    assert check_solution("03,07,25>82:", response) is right


def test_equal_numbers_may_each_be_used_once():
    assert check_solution("05,05,10>20:", "05+05=10,10+10=20$")
    assert not check_solution("05,06,10>20:", "05+05=10,10+10=20$")


def test_no_countdown_prompt_is_an_error():
    with pytest.raises(ValueError, match="is no Countdown prompt"):
        check_solution("3,7>10:", "")


def brute_force(numbers, target, signs):
    """All orders and operations of three numbers: (a . b) . c and c . (a . b)."""
    do = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    for a, b, c in itertools.permutations(numbers):
        for one, two in itertools.product(signs, repeat=2):
            first = do[one](a, b)
            if 0 <= first <= 99 and target in (do[two](first, c), do[two](c, first)):
                return True
    return False


def test_reachable_targets_are_those_of_all_orders():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        numbers = tuple(rng.integers(1, 31, 3).tolist())
        target, signs = int(rng.integers(100)), ("+-", "+-*")[int(rng.integers(2))]
        found.append(can_reach(numbers, target, signs))
        assert found[-1] == brute_force(numbers, target, signs)
    assert 10 < sum(found) < 290


def test_problems_are_distinct_solvable_and_apart():
    train, heldout = (generate_problems(SETTINGS, heldout=side) for side in (False, True))
    assert [p.key for p in (*train, *heldout)] == list(range(80))
    assert len({p.question for p in (*train, *heldout)}) == 80
    for problem in (*train, *heldout):
        numbers, target = problem.question.removesuffix(":").split(">")
        three = tuple(map(int, numbers.split(",")))
        assert brute_force(three, int(target), "+-*")
        assert (problem.source == "plus and minus") == brute_force(three, int(target), "+-")
        assert is_heldout(problem.question, 0.1) == (problem in heldout)
    assert generate_problems(SETTINGS, heldout=False) == train


def test_too_few_problems_are_an_error():
    few = CountdownSettings(num_numbers=2, max_number=2, num_train_problems=100)
    with pytest.raises(ValueError, match="distinct training Countdown problems found; ask for fewer"):
        generate_problems(few, heldout=False)


def test_warm_start_rows_are_solutions_of_problems_that_are_not_held_out():
    task, batch = CountdownTask(SETTINGS), countdown_batch(SETTINGS, 5)
    assert batch.tokens.shape == (64, 12 + 18)
    for tokens, mask in zip(batch.tokens, batch.loss_mask, strict=True):
        text = task.tokenizer.decode(tokens[tokens > 0].tolist(), skip_special=False)
        prompt, response = text[: text.index(":") + 1], text[text.index(":") + 1 :]
        assert response.endswith(EOS)
        assert check_solution(prompt, response)
        assert not is_heldout(prompt, 0.1)
        assert mask.nonzero()[0].tolist() == list(range(len(prompt), len(text)))
    np.testing.assert_array_equal(countdown_batch(SETTINGS, 5).tokens, batch.tokens)
    assert (countdown_batch(SETTINGS, 6).tokens != batch.tokens).any()


def test_texts_fit_the_alphabet_and_the_segments():
    rng = np.random.default_rng(0)
    for _ in range(50):
        prompt, response = sample_solved(rng, SETTINGS)
        assert set(prompt + response) <= set(ALPHABET + EOS)
        assert (len(prompt), len(response)) == (SETTINGS.prompt_length, SETTINGS.response_length)
    task = CountdownTask(SETTINGS)
    assert task.is_answered(task.train_problems[0], "25*03=75,75+07=82")
    assert not task.is_answered(task.train_problems[0], "25*03=75,")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_numbers": 1}, "num_numbers=1"),
        ({"max_number": 100}, "max_number=100"),
        ({"heldout_share": 1.0}, "heldout_share=1.0"),
        ({"num_train_problems": 0}, "num_train_problems=0"),
        ({"warm_start_steps": -1}, "warm_start_steps=-1"),
        ({"warm_start_learning_rate": 0.0}, "warm_start_learning_rate=0.0"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        CountdownSettings(**change)
