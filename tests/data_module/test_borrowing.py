import re

import numpy as np
import pytest

from deepsearch_jax.data.arithmetic import (
    ArithmeticSettings,
    Chains,
    WarmStartStage,
    check_solution,
    generate_problems,
)
from deepsearch_jax.data.borrowing import borrows, fits_forgotten, forgotten
from deepsearch_jax.data.tokenizers import CharTokenizer
from deepsearch_jax.data.warm_start import warm_start_batch

# 32-5=27, 27+4=31, 31-1=30, 30-3=27: the first and the last subtraction borrow.
CHAIN = Chains(np.array([32, 90]), np.array([[-5, 4, -1, -3], [-2, 9, 0, 0]]), np.array([4, 2]))


def test_borrowing_by_hand():
    np.testing.assert_array_equal(borrows(CHAIN), [[True, False, False, True], [True, False, False, False]])
    np.testing.assert_array_equal(forgotten(CHAIN.values, borrows(CHAIN)), [[37, 41, 40, 47], [98, 107, 107, 107]])
    only_last = np.array([[False, False, False, True], [False] * 4])
    np.testing.assert_array_equal(forgotten(CHAIN.values, only_last), [[27, 31, 30, 37], [88, 97, 97, 97]])
    np.testing.assert_array_equal(fits_forgotten(CHAIN, 99), [True, False])


def column_arithmetic(value, operand):
    """Subtraction column by column by someone who never borrows."""
    tens, units = divmod(value, 10)
    return 10 * tens + (units - operand) % 10 if units < operand else value - operand


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_forgetful_rows_are_those_of_columns_without_borrowing(share):
    stage = WarmStartStage(num_steps=5, learning_rate=1e-3, lengths=(3, 6), forget_borrow=share)
    settings = ArithmeticSettings(warm_start_stages=(stage,), warm_start_batch_size=200)
    tokenizer = CharTokenizer("0123456789+-=:", eos="$")
    counts = {True: 0, False: 0}
    for step in range(3):
        for row in warm_start_batch(settings, step).tokens:
            text = tokenizer.decode(row.tolist())
            prompt, rest = text.split(":")
            value = int(re.match(r"\d+", rest)[0])
            for sign, operand, result in re.findall(r"([+-])(\d)=(\d+)", rest):
                right = value + int(operand) if sign == "+" else value - int(operand)
                forgot = right if sign == "+" else column_arithmetic(value, int(operand))
                assert int(result) in (right, forgot)
                assert 10 <= int(result) <= 99
                if right != forgot:
                    counts[int(result) == forgot] += 1
                value = int(result)
    assert counts[True] / sum(counts.values()) == pytest.approx(share, abs=0.04)
    assert sum(counts.values()) > 300


def test_problems_have_the_borrowings_asked_for():
    settings = ArithmeticSettings(problem_lengths=(4, 5), min_borrows=2, num_train_problems=50)
    for problem in generate_problems(settings, heldout=False):
        value = forgetful = int(re.match(r"\d+", problem.question)[0])
        wrong = 0
        for operand in re.findall(r"[+-]\d", problem.question):
            before, value = value, value + int(operand)
            forgetful = forgetful + int(operand) if operand[0] == "+" else column_arithmetic(forgetful, int(operand[1]))
            wrong += operand[0] == "-" and column_arithmetic(before, int(operand[1])) != value
            assert forgetful <= 99
        assert wrong >= 2
        assert forgetful == value + 10 * wrong
        assert not check_solution(problem.question, f"={forgetful}")


def test_settings_are_checked():
    with pytest.raises(ValueError, match="min_borrows=4 do not fit into chains of 3 steps"):
        ArithmeticSettings(min_borrows=4)
    with pytest.raises(ValueError, match=r"forget_borrow=1.5 must lie in \[0, 1\]"):
        WarmStartStage(num_steps=1, learning_rate=1.0, lengths=(1,), forget_borrow=1.5)
    with pytest.raises(ValueError, match=r"forget_borrow=0.5 cannot be beside plus_noise=0.1"):
        WarmStartStage(num_steps=1, learning_rate=1.0, lengths=(1,), forget_borrow=0.5, plus_noise=0.1)
