import re

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from deepsearch_jax.data.arithmetic import (
    ALPHABET,
    EOS,
    ArithmeticSettings,
    ArithmeticTask,
    Chains,
    WarmStartStage,
    check_solution,
    generate_problems,
    gold_solution,
    is_heldout,
    sample_chains,
    write_prompts,
    write_solutions,
)
from deepsearch_jax.data.prompts import encode_prompts
from deepsearch_jax.data.warm_start import (
    noisy_values,
    num_warm_start_steps,
    row_length,
    stage_at,
    warm_start_batch,
)

DEFAULT = ArithmeticSettings()


def slow_check(prompt, response):
    """An oracle that walks the response with its own arithmetic instead of comparing texts."""
    value, rest = int(re.match(r"\d+", prompt)[0]), response[: -len(EOS)] if response.endswith(EOS) else response
    for sign, operand in re.findall(r"([+-])(\d+)", prompt):
        head = f"{sign}{operand}="
        if not rest.startswith(head):
            return False
        value = value + int(operand) if sign == "+" else value - int(operand)
        rest = rest[len(head) :]
        if not rest.startswith(str(value)) or rest[len(str(value)) :][:1].isdigit():
            return False
        rest = rest[len(str(value)) :]
    return rest == ""


@pytest.mark.parametrize(
    ("prompt", "response", "right"),
    [
        ("27+8-3:", "+8=35-3=32$", True),
        ("27+8-3:", "+8=35-3=32", True),  # decoding dropped the EOS
        ("27+8-3:", "+8=36-3=32$", False),  # lucky: the final value is right, a step is not
        ("27+8-3:", "+8=36-3=33$", False),
        ("27+8-3:", "+8=35-3=33$", False),
        ("27+8-3:", "+8=35$", False),  # stops early
        ("27+8-3:", "-3=24+8=32$", False),  # another order
        ("27+8-3:", "+5=32$", False),  # a short cut
        ("27+8-3:", "+8=35-3=32-0=32$", False),
        ("27+8-3:", "+8=35-3=32$$", False),
        ("27+8-3:", "+8=035-3=32$", False),
        ("27+8-3:", "+8=35 -3=32$", False),
        ("27+8-3:", "+8=35-3=３２$", False),  # digits of another script
        ("27+8-3:", "32$", False),
        ("27+8-3:", "", False),
        ("27+8-3:", "$+8=35-3=32", False),
    ],
)
def test_only_the_exact_derivation_is_right(prompt, response, right):
    assert check_solution(prompt, response) is right
    assert slow_check(prompt, response) is right


@settings(deadline=None, max_examples=200)
@given(data=strategies.data())
def test_the_check_agrees_with_the_oracle_on_edited_solutions(data):
    seed = data.draw(strategies.integers(0, 2**32 - 1))
    chains = sample_chains(np.random.default_rng(seed), np.array([data.draw(strategies.integers(1, 8))]), DEFAULT)
    (prompt,) = write_prompts(chains)
    gold = gold_solution(prompt)
    assert gold == write_solutions(chains, chains.values)[0]
    assert check_solution(prompt, gold)
    assert slow_check(prompt, gold)
    at = data.draw(strategies.integers(0, len(gold) - 1))
    replacement = data.draw(strategies.text(ALPHABET + EOS, max_size=3))
    edited = gold[:at] + replacement + gold[at + data.draw(strategies.integers(0, 3)) :]
    assert check_solution(prompt, edited) == slow_check(prompt, edited)
    assert check_solution(prompt, edited) == (edited.removesuffix(EOS) == gold.removesuffix(EOS))


def test_other_prompts_are_refused():
    for prompt in ("27+8-3", "27:", "27*8:", "+8:", "", "27+8:+8=35", "٢٧+8:"):
        with pytest.raises(ValueError, match="is no arithmetic prompt"):
            gold_solution(prompt)


@pytest.mark.parametrize(
    "domain",
    [
        DEFAULT,
        ArithmeticSettings(min_value=0, max_value=999, min_operand=1, max_operand=99),
        ArithmeticSettings(min_value=3, max_value=8, min_operand=3, max_operand=40),
        ArithmeticSettings(min_value=0, max_value=1, min_operand=1, max_operand=1),
    ],
)
def test_chains_stay_in_their_domain(domain):
    lengths = np.arange(400) % 8 + 1
    chains = sample_chains(np.random.default_rng(0), lengths, domain)
    for start, operands, length in zip(chains.start, chains.operands, lengths):
        values = np.concatenate([[start], start + np.cumsum(operands[:length])])
        assert domain.min_value <= values.min() <= values.max() <= domain.max_value
        assert (np.abs(operands[:length]) >= domain.min_operand).all()
        assert (np.abs(operands[:length]) <= domain.max_operand).all()
        assert not operands[length:].any()


def test_steps_are_drawn_evenly_among_the_possible_ones():
    """From 12 with operands 1..9 above 10: nine additions and two subtractions, each in 1/11 of the draws."""
    chains = sample_chains(np.random.default_rng(0), np.ones(200_000, np.int64), DEFAULT)
    first = chains.operands[chains.start == 12, 0]
    counts = np.array([(first == o).sum() for o in (-2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9)])
    assert counts.sum() == first.size
    expected = first.size / 11
    assert ((counts - expected) ** 2 / expected).sum() < 29.6  # chi-square, 10 degrees of freedom, p = 0.001


def test_by_default_every_step_fills_one_segment():
    for problem in generate_problems(DEFAULT, heldout=True):
        gold = gold_solution(problem.question)
        assert len(gold) == 5 * problem.metadata["num_steps"] + 1
        assert problem.answer == gold[-3:-1]


def test_problem_sets_are_distinct_balanced_and_disjoint():
    sets = {
        (seed, heldout): generate_problems(ArithmeticSettings(seed=seed), heldout=heldout)
        for seed in (0, 1)
        for heldout in (False, True)
    }
    prompts = {name: {p.question for p in problems} for name, problems in sets.items()}
    assert [len(p) for p in prompts.values()] == [1024, 192, 1024, 192]
    assert not (prompts[0, False] | prompts[1, False]) & (prompts[0, True] | prompts[1, True])
    for (_, heldout), names in prompts.items():
        assert all(is_heldout(prompt, 0.1) == heldout for prompt in names)
    assert prompts[0, False] != prompts[1, False]
    assert sets[0, False] == generate_problems(ArithmeticSettings(), heldout=False)
    keys = [p.key for p in sets[0, False] + sets[0, True]]
    assert keys == list(range(1024 + 192))
    steps = [p.metadata["num_steps"] for p in sets[0, False]]
    assert {p.source for p in sets[0, True]} == {"3 steps", "4 steps", "5 steps"}
    assert np.bincount(steps)[3:].tolist() == [342, 341, 341]
    assert steps != sorted(steps)


def test_asking_for_more_problems_than_there_are_is_an_error():
    few = ArithmeticSettings(max_value=12, max_operand=2, problem_lengths=(1,), num_train_problems=100)
    with pytest.raises(ValueError, match=r"only \d of 100 distinct training chains of 1 steps found"):
        generate_problems(few, heldout=False)


def test_the_task_scores_and_sees_complete_attempts():
    task = ArithmeticTask(ArithmeticSettings(num_train_problems=6, num_heldout_problems=3))
    assert (len(task.train_problems), len(task.heldout_problems)) == (6, 3)
    problem = task.train_problems[0]
    gold = gold_solution(problem.question)
    assert task.render(problem) == problem.question + re.match(r"\d+", problem.question)[0]
    assert task.score(problem, gold) == 1.0
    assert task.score(problem, task.tokenizer.decode(task.tokenizer.encode(gold))) == 1.0
    assert task.score(problem, "+1=11$") == 0.0
    assert task.is_answered(problem, gold)
    assert task.is_answered(problem, "+1=11$")  # ended, though wrong
    assert task.is_answered(problem, "+1=11" * problem.metadata["num_steps"])
    assert not task.is_answered(problem, "+1=11" * (problem.metadata["num_steps"] - 1) + "+1=")
    assert not task.is_answered(problem, "")
    encoded = encode_prompts(task.train_problems, task.tokenizer, task.prompt_settings)
    assert encoded.num_skipped == 0
    assert encoded.lengths.max() <= task.prompt_settings.max_prompt_length
    assert task.max_response_length == 26
    assert task.tokenizer.vocab_size == 16


def split_row(text):
    """`27+8:27+8=35` -> `27+8:` and `+8=35`: the start is repeated in front of the response."""
    start, rest, response = re.fullmatch(r"(\d+)(.*:)\1(.*)", text).groups()
    return start + rest, response


def rows_of(batch, task):
    return [task.tokenizer.decode(row) for row in np.asarray(batch.tokens)]


def test_warm_start_rows_by_hand():
    stage = WarmStartStage(num_steps=3, learning_rate=1e-3, lengths=(2,))
    small = ArithmeticSettings(warm_start_stages=(stage,), warm_start_batch_size=5)
    batch = warm_start_batch(small, 1)
    assert batch.tokens.shape == (5, row_length(stage, small)) == (5, 9 + 11)
    for row, mask, ids, text in zip(
        batch.tokens, batch.loss_mask, batch.segment_ids, rows_of(batch, ArithmeticTask(small))
    ):
        prompt, response = split_row(text)
        assert response == gold_solution(prompt).removesuffix(EOS)
        assert (
            mask.tolist() == [False] * 9 + [True] * 11
        )  # start, two operations, colon, start again; then the response
        assert row[-1] == 1  # EOS
        assert ids.all()
    assert not batch.advantages.any()


def test_warm_start_batches_depend_on_seed_and_step_only_and_hold_nothing_back():
    task = ArithmeticTask(DEFAULT)
    steps = [0, 1, 450, 599, 650, 699]
    rows = {step: rows_of(warm_start_batch(DEFAULT, step), task) for step in steps}
    assert rows == {step: rows_of(warm_start_batch(ArithmeticSettings(), step), task) for step in reversed(steps)}
    assert rows[0] != rows[1]
    assert rows[0] != rows_of(warm_start_batch(ArithmeticSettings(seed=1), 0), task)
    for step in steps:
        assert not any(is_heldout(text.partition(":")[0] + ":", 0.1) for text in rows[step])
    clean = [check_solution(*split_row(text)) for text in rows[450] + rows[599]]
    assert all(clean)
    assert not all(check_solution(*split_row(text)) for text in rows[699])


def test_padding_of_shorter_chains():
    batch = warm_start_batch(DEFAULT, 500)
    task = ArithmeticTask(DEFAULT)
    for row, mask, ids in zip(batch.tokens, batch.loss_mask, batch.segment_ids):
        end = row.tolist().index(1) + 1
        assert not row[end:].any()
        assert not mask[end:].any()
        assert ids.tolist() == [1] * end + [0] * (row.size - end)
        assert task.tokenizer.decode(row[mask], skip_special=False).endswith(EOS)
        assert re.search(r":\d\d$", task.tokenizer.decode(row[~mask]))


def test_stages_follow_each_other():
    assert num_warm_start_steps(DEFAULT) == 700
    stages = DEFAULT.warm_start_stages
    numbers = [stages.index(stage_at(DEFAULT, s)) for s in (0, 449, 450, 599, 600, 699)]
    assert numbers == [0, 0, 1, 1, 2, 2]
    for step in (-1, 700):
        with pytest.raises(ValueError, match="outside the warm start of 700 steps"):
            stage_at(DEFAULT, step)


def test_length_weights_are_kept():
    stage = WarmStartStage(num_steps=1, learning_rate=1.0, lengths=(1, 3), weights=(3.0, 1.0))
    many = ArithmeticSettings(warm_start_stages=(stage,), warm_start_batch_size=4000)
    num_steps = [text.count("=") for text in rows_of(warm_start_batch(many, 0), ArithmeticTask(many))]
    assert set(num_steps) == {1, 3}
    assert np.mean(np.array(num_steps) == 3) == pytest.approx(0.25, abs=0.03)


def test_noise_is_calibrated_and_stays_in_the_domain():
    rng = np.random.default_rng(1)
    chains = sample_chains(rng, rng.integers(2, 9, 20_000), DEFAULT)
    written = noisy_values(rng, chains, 0.15, 0.4, DEFAULT)
    inside = np.arange(8) < chains.lengths[:, None]
    before = np.concatenate([chains.start[:, None], written[:, :-1]], axis=1)
    wrong = written != before + chains.operands  # against the value that is written before, not the exact one
    assert wrong[inside & (chains.operands > 0)].mean() == pytest.approx(0.15, abs=0.01)
    assert wrong[inside & (chains.operands < 0)].mean() == pytest.approx(0.4, abs=0.01)
    assert written[inside].min() >= 10
    assert written[inside].max() <= 99
    # The right value stays the most frequent one: 60 % against at most a few per cent for each wrong one.
    errors = (written - before - chains.operands)[wrong & inside]
    assert np.unique(errors, return_counts=True)[1].max() / errors.size < 0.03


def test_full_noise_makes_every_step_wrong():
    rng = np.random.default_rng(2)
    chains = sample_chains(rng, np.full(5000, 3), DEFAULT)
    written = noisy_values(rng, chains, 1.0, 1.0, DEFAULT)
    before = np.concatenate([chains.start[:, None], written[:, :-1]], axis=1)
    assert (written != before + chains.operands).all()


def test_without_noise_or_without_room_every_step_is_right():
    rng = np.random.default_rng(0)
    chains = sample_chains(rng, np.full(50, 6), DEFAULT)
    np.testing.assert_array_equal(noisy_values(rng, chains, 0.0, 0.0, DEFAULT), chains.values)
    narrow = ArithmeticSettings(min_value=0, max_value=1, max_operand=1)
    # 0+1-1: the rest of the chain takes up the whole range until the last step, whose value may be 0 or 1.
    full = Chains(np.array([0]), np.array([[1, -1, 1]]), np.array([3]))
    assert noisy_values(rng, full, 1.0, 1.0, narrow).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_value": -1}, "values must be >= 0"),
        ({"max_value": 10}, "max_value must be at least 11"),
        ({"min_operand": 5, "max_operand": 4}, "operands 5..4"),
        ({"problem_lengths": ()}, r"problem_lengths=\(\)"),
        ({"heldout_share": 0.0}, "heldout_share=0.0 must lie between"),
        ({"num_train_problems": 0}, "num_train_problems=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        ArithmeticSettings(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"lengths": ()}, r"lengths=\(\)"),
        ({"lengths": (0, 1)}, "each at least 1"),
        ({"weights": (1.0,)}, "one non-negative number for each"),
        ({"weights": (0.0, 0.0)}, "one non-negative number for each"),
        ({"plus_noise": 1.5}, r"plus_noise=1\.5"),
        ({"minus_noise": -0.1}, r"minus_noise=-0\.1"),
    ],
)
def test_stages_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        WarmStartStage(**{"num_steps": 1, "learning_rate": 1.0, "lengths": (1, 2), **change})


def test_a_domain_that_is_all_held_out_is_an_error():
    stage = WarmStartStage(num_steps=1, learning_rate=1.0, lengths=(1,))
    tiny = ArithmeticSettings(
        min_value=0,
        max_value=1,
        max_operand=1,
        heldout_share=1 - 1e-9,
        warm_start_stages=(stage,),
        warm_start_batch_size=2,
    )
    with pytest.raises(ValueError, match=r"found no training chains of lengths \[1\]"):
        warm_start_batch(tiny, 0)
