"""Search only where it is needed: direct samples first, trees that start from them, and what a run keeps of it."""

import dataclasses

import jax
import numpy as np
import pytest

from deepsearch_jax.cache import init_cache
from deepsearch_jax.runtime import build_mesh, build_policy, processes, search_device
from deepsearch_jax.runtime.interrupt import Interrupted
from deepsearch_jax.runtime.rollout_step import sample_step
from deepsearch_jax.runtime.rollouts import Purpose, Sampler
from deepsearch_jax.runtime.settings import CacheSettings, RunSettings
from deepsearch_jax.types import Outcome
from tests.runtime.conftest import tiny_settings
from tests.runtime.parity import ParityTask
from tests.runtime.test_trainer import StopAt, assert_same_state, finish, make_trainer, rows

SETTINGS = tiny_settings()
SETTINGS = dataclasses.replace(
    SETTINGS,
    rounds=dataclasses.replace(SETTINGS.rounds, search_when="no_signal"),
    search=dataclasses.replace(SETTINGS.search, expansion="lazy", frontier_entropy="path", confidence="adaptive"),
    cache=CacheSettings(capacity=0),
)
COUNTERS = (0, 1)


def is_solvable(problem):
    return problem.key % 3 > 0


def make_sampler(policy, settings=SETTINGS, num_devices=1, kind=Sampler, **rollout):
    return kind(
        ParityTask(solvable=is_solvable), policy[0], settings.search, dataclasses.replace(settings.rollout, **rollout),
        run_key=jax.random.key(5), mesh=build_mesh(num_devices), check_stop=lambda: None, advance=lambda *_: None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def policy():
    return build_policy(SETTINGS.model, ParityTask(), SETTINGS.search, seed=3)


def step(policy, sampler, problems, settings=SETTINGS, **more):
    before = sampler.generated_tokens
    drawn = sample_step(sampler, policy[1], init_cache(1, 1, 1, 1), problems, COUNTERS, settings, **more)
    return drawn, sampler.generated_tokens - before


@pytest.fixture(scope="module")
def drawn(policy):
    sampler = make_sampler(policy)
    problems = sampler.task.train_problems
    direct = sampler.direct(policy[1], problems, 4, Purpose.DIRECT, COUNTERS)
    return (
        sampler,
        {group.problem.id: group for group in direct},
        *step(policy, sampler, problems, entropy_weight_of=lambda _: -2.0),
    )


def test_only_groups_without_a_right_answer_are_searched(drawn):
    _, direct, result, tokens = drawn
    all_wrong = [name for name, group in direct.items() if not group.num_correct]
    assert 4 <= len(all_wrong) < len(direct)  # those that cannot be solved, and not all
    assert result.statistics.trees == len(all_wrong)
    assert result.num_cached == 0
    sampled = sum(len(r.tokens) for group in direct.values() for r in group.responses)
    assert tokens == sampled + result.statistics.tokens
    assert result.statistics.tokens == result.statistics.slots.generated_tokens > 0
    assert result.sampled == {name: (group.num_correct, 4) for name, group in direct.items()}
    for group in result.groups:
        if group.problem.id not in all_wrong:
            assert group.terminal_rewards is None
            expected = [r.tokens.tolist() for r in direct[group.problem.id].responses]
            assert [r.tokens.tolist() for r in group.responses] == expected


@pytest.mark.slow
def test_a_probe_decides_and_only_mixed_groups_are_filled_up(policy, drawn):
    sampler = drawn[0]
    problems = sampler.task.train_problems
    settings = dataclasses.replace(SETTINGS, rounds=dataclasses.replace(SETTINGS.rounds, probe_size=2))
    probes = sampler.direct(policy[1], problems, 2, Purpose.DIRECT, COUNTERS)
    result, tokens = step(policy, sampler, problems, settings, entropy_weight_of=lambda _: -2.0)
    sizes = {0: [], 1: [], 2: []}
    for probe, group in zip(probes, result.groups, strict=True):
        assert group.problem == probe.problem
        sizes[probe.num_correct].append(len(group.responses))
        if probe.num_correct:
            assert group.terminal_rewards is None
            texts = [response.tokens.tolist() for response in group.responses]
            assert texts[:2] == [response.tokens.tolist() for response in probe.responses]
        else:
            assert group.terminal_rewards is not None
    assert result.statistics.trees == len(sizes[0]) > 0
    assert set(sizes[1]) == {SETTINGS.rounds.group_size}
    assert set(sizes[2]) <= {2}
    # The samples that were added are new ones: another purpose, other noise.
    filled = [group for probe, group in zip(probes, result.groups, strict=True) if probe.num_correct == 1]
    texts = [[response.tokens.tolist() for response in group.responses] for group in filled]
    assert any(group[2:] != group[:2] for group in texts)
    direct = sum(len(r.tokens) for group in result.groups if group.terminal_rewards is None for r in group.responses)
    searched = sum(len(r.tokens) for probe in probes if not probe.num_correct for r in probe.responses)
    assert tokens == direct + searched + result.statistics.tokens


def test_no_token_is_spent_on_a_search_where_every_group_has_a_right_answer(policy, drawn):
    sampler, direct, *_ = drawn
    problems = [group.problem for group in direct.values() if group.num_correct]
    result, tokens = step(policy, sampler, problems)
    assert tokens == sum(len(r.tokens) for problem in problems for r in direct[problem.id].responses)
    assert result.statistics.trees == result.statistics.tokens == result.statistics.slots.iterations == 0


def test_a_tree_starts_from_the_samples(drawn):
    _, direct, result, _ = drawn
    trees = [group for group in result.groups if group.terminal_rewards is not None]
    for group in trees:
        samples = direct[group.problem.id].responses
        first, *others = group.responses
        # The first trajectory is the most confident of the samples, cut into segments of five tokens.
        best = max(samples, key=lambda r: r.log_probs.mean(dtype=np.float64))
        assert first.tokens.tolist() == best.tokens.tolist()
        np.testing.assert_array_equal(first.log_probs, best.log_probs)
        assert first.origin == "direct"
        assert {r.origin for r in others} <= {"search"}
        assert first.segment_lengths.tolist() == [min(5, len(best.tokens) - s) for s in range(0, len(best.tokens), 5)]
        assert len(group.responses) <= SETTINGS.search.num_trajectories
        # All of them are verified terminals of the tree.
        ends = {tuple(r.tokens.tolist()): -r.log_probs.mean() for r in samples}
        assert len(group.terminal_rewards) >= len(ends) + len(others)
        np.testing.assert_allclose(group.terminal_nll[: len(ends)], list(ends.values()), rtol=1e-5)
    assert any(group.num_correct == 0 for group in trees)
    assert sum(len(group.responses) > 1 for group in trees) > len(trees) / 2


def test_what_a_grafted_search_samples_is_what_the_policy_says(policy, drawn):
    """Pages of samples do not exist when the search begins; they are computed from their tokens."""
    from deepsearch_jax.policy import token_log_probs

    _, _, result, _ = drawn
    assert result.statistics.slots.recomputed_tokens > 0
    found = [(group, r) for group in result.groups for r in group.responses if r.origin == "search"]
    for group, response in found[:2]:
        tokens = np.array([[*group.prompt, *response.tokens]], np.int32)
        log_probs, _ = token_log_probs(*policy, tokens, np.ones_like(tokens), chunk_size=64)
        np.testing.assert_allclose(log_probs[0, len(group.prompt) :], response.log_probs, atol=1e-4)


def by_problem(result):
    return {
        group.problem.id: [(r.tokens.tolist(), r.outcome, r.origin, r.node_values.tolist()) for r in group.responses]
        for group in result.groups
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [{"num_devices": 2, "half_batches": "yes"}, {"num_slots": 3, "page_pool_gib": 2e-5}, {"path_multiple": 1}],
    ids=str,
)
def test_steps_do_not_depend_on_slots_order_devices_or_pages(policy, drawn, how):
    sampler = make_sampler(policy, **how)
    problems = list(reversed(sampler.task.train_problems))
    result, tokens = step(policy, sampler, problems, entropy_weight_of=lambda groups: -2.0)
    assert by_problem(result) == by_problem(drawn[2])
    assert tokens == drawn[3]


def test_processes_exchange_what_trees_start_from(policy, drawn, monkeypatch):
    monkeypatch.setattr(processes, "exchange", lambda payload: [payload])  # one process that hears itself alone
    sampler = make_sampler(policy, kind=processes.SharedSampler)
    result, tokens = step(policy, sampler, sampler.task.train_problems, entropy_weight_of=lambda _: -2.0)
    assert by_problem(result) == by_problem(drawn[2])
    assert tokens == drawn[3]
    for group, other in zip(result.groups, drawn[2].groups, strict=True):
        np.testing.assert_array_equal(group.terminal_nll, other.terminal_nll)


def test_another_weight_of_confidence_needs_no_other_program(policy, drawn):
    sampler, _, result, _ = drawn
    compiled = search_device.search_iteration._cache_size()
    other, _ = step(policy, sampler, sampler.task.train_problems, entropy_weight_of=lambda groups: 3.0)
    assert search_device.search_iteration._cache_size() == compiled
    assert by_problem(other) != by_problem(result)


@pytest.mark.slow
def test_hard_problems_are_searched_and_the_others_sampled(policy, drawn):
    sampler = drawn[0]
    settings = dataclasses.replace(SETTINGS, rounds=dataclasses.replace(SETTINGS.rounds, search_when="hard"))
    problems = sampler.task.train_problems[:4]
    result, _ = step(policy, sampler, problems, settings, is_hard=[False, True, False, False])
    assert [group.terminal_rewards is None for group in result.groups] == [True, False, True, True]
    assert result.statistics.trees == 1
    assert result.sampled.keys() == {problems[i].id for i in (0, 2, 3)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, finish(make_trainer(workdir, SETTINGS, ParityTask(solvable=is_solvable)))


@pytest.mark.slow
def test_a_run_keeps_what_it_knows_of_problems_and_of_confidence(whole):
    workdir, trainer = whole
    trains = [row for row in rows(workdir) if row["kind"] == "train"]
    weights = [row["entropy_weight"] for row in trains if row["trees"]]
    assert weights[-1] != SETTINGS.search.frontier_entropy_weight
    assert len(set(weights)) == len(weights) > 1
    assert trainer.position.evidence["pairs"] > 0
    assert trains[-1]["confidence_slope"] is not None
    counts = np.asarray(trainer.arrays.num_samples)
    assert set(counts.tolist()) <= {0, 2, 4}  # never, by the filter, by a step
    assert 4 in counts
    assert (np.asarray(trainer.arrays.num_correct) <= counts).all()


@pytest.mark.slow
@pytest.mark.parametrize("looks", [6, 9])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(whole, tmp_path, looks):
    task = ParityTask(solvable=is_solvable)
    with pytest.raises(Interrupted):
        finish(make_trainer(tmp_path, SETTINGS, task, stop=StopAt(looks)))
    resumed = finish(make_trainer(tmp_path, SETTINGS, task))
    assert rows(tmp_path) == rows(whole[0])
    assert_same_state(resumed, whole[1])


@pytest.mark.parametrize(
    ("group", "changes", "words"),
    [
        ("rounds", {"search_when": "sometimes"}, "search_when='sometimes' is not known"),
        ("rounds", {"probe_size": 1}, "probe_size=1 must be between 2"),
        ("rounds", {"probe_size": 9}, "and group_size=4, or 0"),
        ("search", {"num_grafts": 2, "capacity": 100}, "search.num_grafts=2 is chosen by the run"),
        ("search", {"sample_credits": 4}, "search.sample_credits=4 leaves none of search.num_trajectories=4"),
    ],
)
def test_settings_without_sense_are_refused(group, changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SETTINGS, **{group: dataclasses.replace(getattr(SETTINGS, group), **changes)})


def test_the_default_is_the_papers():
    assert RunSettings().rounds.search_when == "always"
    assert RunSettings().search.confidence == "fixed"
    assert Outcome.NONE == 0  # what a graft puts at nodes that are no terminals
