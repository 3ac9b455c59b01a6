"""Rollouts on the device: what is sampled depends on the problem and on nothing else."""

import dataclasses

import jax
import numpy as np
import pytest

from deepsearch_jax.runtime import build_mesh, build_policy, device
from deepsearch_jax.runtime.debug import DebugSettings, hot_steps
from deepsearch_jax.runtime.memory import page_bytes
from deepsearch_jax.runtime.rollouts import Purpose, Sampler, outcome_of
from deepsearch_jax.runtime.tasks import Verdict
from deepsearch_jax.tree import SearchSettings
from deepsearch_jax.types import Outcome
from tests.runtime.conftest import tiny_settings
from tests.runtime.parity import ParityTask

SEARCH = SearchSettings(segment_length=3, max_depth=3, expansion_width=2, num_trajectories=3, capacity=15)


@pytest.fixture(scope="module")
def policy():
    settings = tiny_settings()
    return build_policy(settings.model, ParityTask(), SEARCH, seed=3)


def make_sampler(policy, *, num_slots=4, num_devices=1, task=None, search=SEARCH, temperature=1.0, page_pool_gib=0.0):
    rollout = dataclasses.replace(
        tiny_settings().rollout, num_slots=num_slots, temperature=temperature, page_pool_gib=page_pool_gib
    )
    return Sampler(
        task or ParityTask(), policy[0], search, rollout, run_key=jax.random.key(5),
        mesh=build_mesh(num_devices), check_stop=lambda: None, advance=lambda done, detail: None,
    )  # fmt: skip


def by_problem(groups):
    return {group.problem.id: [response.tokens.tolist() for response in group.responses] for group in groups}


@pytest.fixture(scope="module")
def searched(policy):
    sampler = make_sampler(policy)
    groups, statistics = sampler.search(policy[1], sampler.task.train_problems[:6], (0, 1))
    return sampler, groups, statistics


def test_a_search_credits_terminals_with_true_verdicts(searched):
    sampler, groups, statistics = searched
    assert [group.problem.id for group in groups] == [f"p{i}" for i in range(6)]
    responses = [(group.problem, response) for group in groups for response in group.responses]
    assert len(responses) >= 6
    outcomes = set()
    for problem, response in responses:
        (verdict,) = sampler.task.score([(problem, response.text)])
        cut_off = int(response.tokens[-1]) not in sampler.task.tokenizer.eos_ids
        assert response.outcome == outcome_of(verdict, cut_off)
        assert response.reward == (1.0 if response.outcome == Outcome.CORRECT else -1.0)
        assert response.node_values[-1] == response.reward
        assert len(response.tokens) == response.segment_lengths.sum() == len(response.log_probs)
        outcomes.add(response.outcome)
    assert len(outcomes) > 1  # or this test would see one kind of answer only
    assert statistics.trees == 6
    assert statistics.solved == sum(group.num_correct > 0 for group in groups)
    assert statistics.tokens == sampler.generated_tokens


def test_the_log_probs_of_a_search_are_those_of_the_policy(policy, searched):
    from deepsearch_jax.policy import token_log_probs

    _, groups, _ = searched
    model, params = policy
    for group in groups[:2]:
        for response in group.responses[:2]:
            tokens = np.array([[*group.prompt, *response.tokens]], np.int32)
            log_probs, _ = token_log_probs(model, params, tokens, np.ones_like(tokens), chunk_size=64)
            np.testing.assert_allclose(log_probs[0, len(group.prompt) :], response.log_probs, atol=1e-4)


@pytest.mark.parametrize(("num_slots", "num_devices"), [(8, 1), (8, 8)])
def test_trees_do_not_depend_on_slots_order_or_devices(policy, searched, num_slots, num_devices):
    sampler = make_sampler(policy, num_slots=num_slots, num_devices=num_devices)
    problems = list(reversed(sampler.task.train_problems[:6]))
    groups, _ = sampler.search(policy[1], problems, (0, 1))
    assert by_problem(groups) == by_problem(searched[1])


DISTINCT = dataclasses.replace(
    SEARCH, expansion="lazy", siblings="distinct", frontier_entropy="excess", frontier_entropy_weight=-1.0,
    picks_per_step=2, num_trajectories=6, expansion_width=4, capacity=40,
)  # fmt: skip


@pytest.mark.parametrize("siblings", ["distinct", "independent"])
def test_distinct_siblings_differ_in_every_tree(policy, siblings):
    changes = {} if siblings == "distinct" else {"siblings": siblings, "frontier_entropy": "path"}
    # Cold, so that independent children are often equal.
    sampler = make_sampler(policy, search=dataclasses.replace(DISTINCT, **changes), temperature=0.2)
    groups, _ = sampler.search(policy[1], sampler.task.train_problems[:6], (0, 1))
    sizes = [len(group.responses) for group in groups]
    found = [len({tuple(response.tokens) for response in group.responses}) for group in groups]
    assert min(sizes) > 3
    assert (found == sizes) == (siblings == "distinct")


@pytest.mark.slow
def test_distinct_trees_do_not_depend_on_slots_order_or_devices(policy):
    alone = make_sampler(policy, search=DISTINCT)
    problems = alone.task.train_problems[:6]
    groups, _ = alone.search(policy[1], problems, (0, 1))
    spread = make_sampler(policy, search=DISTINCT, num_slots=8, num_devices=8)
    others, _ = spread.search(policy[1], list(reversed(problems)), (0, 1))
    assert by_problem(groups) == by_problem(others)


def test_a_search_with_a_right_answer_ends_early(policy):
    early = dataclasses.replace(DISTINCT, trajectories_if_solved=2, picks_per_step=1)
    sampler = make_sampler(policy, search=early)
    groups, _ = sampler.search(policy[1], sampler.task.train_problems[:6], (0, 1))
    lengths = set()
    for group in groups:
        right = [response.outcome == Outcome.CORRECT for response in group.responses]
        lengths.add(len(right))
        # It ends with the first right one, or with the one after it if that was the very first.
        assert len(right) == (max(right.index(True) + 1, 2) if any(right) else 6)
    assert len(lengths) > 1


def test_another_step_samples_anew(policy, searched):
    sampler = make_sampler(policy)
    groups, _ = sampler.search(policy[1], sampler.task.train_problems[:6], (0, 2))
    assert by_problem(groups) != by_problem(searched[1])


def test_direct_samples_differ_among_each_other_and_end_at_the_first_eos(policy):
    sampler = make_sampler(policy)
    groups = sampler.direct(policy[1], sampler.task.train_problems[:5], 4, Purpose.DIRECT, (0, 0))
    assert [len(group.responses) for group in groups] == [4] * 5
    eos = sampler.task.tokenizer.eos_ids[0]
    for group in groups:
        assert len({tuple(response.tokens) for response in group.responses}) > 1
        for response in group.responses:
            assert eos not in response.tokens[:-1]
            assert len(response.tokens) == SEARCH.max_response_length or response.tokens[-1] == eos
    assert sampler.generated_tokens == sum(len(r.tokens) for g in groups for r in g.responses)


@pytest.mark.parametrize("num_devices", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_direct_samples_do_not_depend_on_how_many_are_drawn_together(policy, monkeypatch, num_devices):
    whole = make_sampler(policy)
    problems = whole.task.train_problems[:5]
    expected = whole.direct(policy[1], problems, 5, Purpose.DIRECT, (0, 0))
    sizes, sample = [], device.sample_direct

    def counted(*arguments, decode, **rest):
        sizes.append(decode.num_samples)
        return sample(*arguments, decode=decode, **rest)

    monkeypatch.setattr(device, "sample_direct", counted)
    of_one = 4 // num_devices * page_bytes(policy[0], SEARCH.max_response_length) / 2**30
    # Room for four: as many calls as it takes, the samples shared equally, two chunks of problems. Room for none: one.
    for room, parts in {5: [5], 4: [3, 2], 2: [2, 2, 1], 0.5: [1] * 5}.items():
        sizes.clear()
        sampler = make_sampler(policy, num_devices=num_devices, page_pool_gib=room * of_one)
        params = sampler.put_everywhere(policy[1])
        with hot_steps(DebugSettings(transfer_guard=True)):
            groups = sampler.direct(params, problems, 5, Purpose.DIRECT, (0, 0))
        assert sizes == 2 * parts
        assert by_problem(groups) == by_problem(expected)
        assert sampler.generated_tokens == whole.generated_tokens
        for group, other in zip(groups, expected, strict=True):
            for response, same in zip(group.responses, other.responses, strict=True):
                np.testing.assert_allclose(response.log_probs, same.log_probs, atol=1e-5)
                assert (response.outcome, response.text) == (same.outcome, same.text)


def test_purposes_do_not_share_noise(policy):
    sampler = make_sampler(policy)
    problems = sampler.task.train_problems[:4]
    one = sampler.direct(policy[1], problems, 2, Purpose.DIRECT, (0, 0))
    other = sampler.direct(policy[1], problems, 2, Purpose.FILTER, (0, 0))
    assert by_problem(one) != by_problem(other)


def test_a_tree_that_solves_nothing_still_yields_its_trajectories(policy):
    sampler = make_sampler(policy, task=ParityTask(solvable=lambda problem: False))
    groups, statistics = sampler.search(policy[1], sampler.task.train_problems[:4], (0, 1))
    assert statistics.solved == 0
    assert all(group.responses for group in groups)
    assert {response.outcome for group in groups for response in group.responses} <= {
        Outcome.INCORRECT, Outcome.INCOMPLETE,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("score", "is_answered", "is_cut_off", "outcome"),
    [
        (1.0, True, False, Outcome.CORRECT),
        (1.0, True, True, Outcome.CORRECT),
        (0.0, True, True, Outcome.INCORRECT),
        (0.0, False, False, Outcome.INCORRECT),
        (0.0, False, True, Outcome.INCOMPLETE),
        (0.5, True, False, Outcome.INCORRECT),
    ],
)
def test_outcomes(score, is_answered, is_cut_off, outcome):
    assert outcome_of(Verdict(score, is_answered), is_cut_off) == outcome


def test_slots_that_do_not_divide_the_devices_are_refused(policy):
    with pytest.raises(ValueError, match="num_slots=6 cannot be shared by 8 devices; the next size that fits is 8"):
        make_sampler(policy, num_slots=6, num_devices=8)


def test_responses_beyond_the_models_positions_are_refused(policy):
    model, params = policy
    short = dataclasses.replace(model, max_position_embeddings=10)
    sampler = make_sampler((short, params))
    with pytest.raises(ValueError, match="max_position_embeddings=10"):
        sampler.search(params, sampler.task.train_problems[:2], (0, 1))


def test_direct_samples_are_not_refused_for_what_a_search_would_need(policy):
    model, params = policy
    short = dataclasses.replace(model, max_position_embeddings=10)
    sampler = make_sampler((short, params))
    (group,) = sampler.direct(params, sampler.task.train_problems[:1], 2, Purpose.DIRECT, (0, 1), max_length=4)
    assert max(len(response.tokens) for response in group.responses) <= 4


def test_a_stop_request_ends_a_search(policy):
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError

    sampler = make_sampler(policy)
    sampler._check_stop = stop
    with pytest.raises(InterruptedError):
        sampler.search(policy[1], sampler.task.train_problems[:6], (0, 1))
