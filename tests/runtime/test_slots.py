"""Continuous trees: the trees of a search depend on the problems alone, not on how they go through the slots."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deepsearch_jax.runtime import build_mesh, build_policy, learning, slots
from deepsearch_jax.runtime.debug import DebugSettings, hot_steps
from deepsearch_jax.runtime.memory import (
    decode_bytes,
    page_bytes,
    pool_pages,
    samples_at_once,
    settle_pool,
    training_bytes,
)
from deepsearch_jax.runtime.rollout_settings import RolloutSettings
from deepsearch_jax.runtime.rollouts import Purpose, Sampler
from deepsearch_jax.training import UpdateSettings
from deepsearch_jax.tree import SearchSettings
from deepsearch_jax.types import Outcome
from tests.runtime.conftest import tiny_settings
from tests.runtime.parity import ParityTask

EAGER = SearchSettings(segment_length=3, max_depth=5, expansion_width=2, num_trajectories=4, capacity=31)
LAZY = dataclasses.replace(EAGER, expansion="lazy", picks_per_step=2, frontier_entropy="path")
NUM_PROBLEMS = 11


@pytest.fixture(scope="module")
def policy():
    return build_policy(tiny_settings().model, ParityTask(), EAGER, seed=3)


def search(policy, settings, *, num_devices=1, reverse=False, task=None, debug=DebugSettings(), **rollout):  # noqa: B008
    """Trees of the first problems by problem id, and the statistics."""
    rollout = RolloutSettings(**({"num_slots": 4, "prompt_multiple": 8, "path_multiple": 5} | rollout))
    task = task or ParityTask()
    sampler = Sampler(
        task, policy[0], settings, rollout, run_key=jax.random.key(5), mesh=build_mesh(num_devices),
        check_stop=lambda: None, advance=lambda done, detail: None,
    )  # fmt: skip
    problems = list(task.train_problems)[:NUM_PROBLEMS]
    with hot_steps(debug):
        groups, statistics = sampler.search(policy[1], problems[::-1] if reverse else problems, (0, 1))
    assert [group.problem for group in groups] == (problems[::-1] if reverse else problems)
    trees = {
        group.problem.id: [(r.tokens.tolist(), r.outcome, r.node_values.tolist()) for r in group.responses]
        for group in groups
    }
    return trees, statistics


@pytest.fixture(scope="module", params=[EAGER, LAZY], ids=["eager", "lazy"])
def searched(policy, request):
    return request.param, *search(policy, request.param)


# Each way compiles anew, so only some of them are part of every run.
_WAYS = [
    ({"reverse": True, "half_batches": "yes", "num_slots": 16}, ()),  # more slots than problems
    ({"reverse": True, "num_slots": 3}, (pytest.mark.slow,)),
    ({"half_batches": "yes", "num_slots": 16}, (pytest.mark.slow,)),
    ({"num_devices": 2, "half_batches": "yes"}, (pytest.mark.slow,)),
    ({"num_devices": 2, "half_batches": "yes", "path_multiple": 1}, (pytest.mark.slow,)),
    ({"rows_at_once": 3}, ()),  # lots that the rows do not fill
    ({"rows_at_once": 1, "num_devices": 2}, (pytest.mark.slow,)),
    ({"num_slots": 16}, (pytest.mark.slow,)),
    ({"num_slots": 1}, (pytest.mark.slow,)),
    ({"half_batches": "yes"}, (pytest.mark.slow,)),
    ({"path_multiple": 1}, (pytest.mark.slow,)),
    ({"num_devices": 4}, (pytest.mark.slow,)),
]


@pytest.mark.parametrize("how", [pytest.param(how, marks=marks, id=str(how)) for how, marks in _WAYS])
def test_trees_do_not_depend_on_how_they_go_through_the_slots(policy, searched, how):
    settings, trees, statistics = searched
    again, other = search(policy, settings, **how)
    assert again == trees
    assert dataclasses.replace(other, slots=None) == dataclasses.replace(statistics, slots=None)
    assert (other.slots.fed_tokens, other.slots.prompt_tokens) == (
        statistics.slots.fed_tokens, statistics.slots.prompt_tokens,
    )  # fmt: skip


@pytest.fixture(scope="module")
def need(policy, searched):
    """Use of the slots where pages are counted: with a pool that is one page short of one for every node."""
    settings, one_page = searched[0], page_bytes(policy[0], searched[0].segment_length)
    return search(policy, settings, page_pool_gib=(4 * settings.capacity - 0.5) * one_page / 2**30)[1].slots


@pytest.mark.parametrize(
    "share", [pytest.param(1.0, marks=pytest.mark.slow), pytest.param(0.5, marks=pytest.mark.slow), 0.1,
              pytest.param(0.0, marks=pytest.mark.slow)],
)  # fmt: skip
def test_trees_do_not_depend_on_the_page_pool(policy, searched, need, share):
    settings, trees, statistics = searched
    one_page = page_bytes(policy[0], settings.segment_length)
    assert need.recomputed_tokens == need.evictions == 0
    assert need.peak_pages < 4 * settings.capacity  # nodes that nobody expands hold none
    gib = (int(share * need.peak_pages) + 0.5) * one_page / 2**30
    again, other = search(policy, settings, page_pool_gib=gib)
    assert again == trees
    assert dataclasses.replace(other, slots=None) == dataclasses.replace(statistics, slots=None)
    assert other.slots.peak_pages <= share * need.peak_pages
    assert (other.slots.recomputed_tokens > 0) == (share < 1)


def test_a_finished_tree_makes_room_at_once(policy):
    # Trees of one segment each end after the first expansion: every iteration must serve four new problems.
    short = dataclasses.replace(EAGER, max_depth=1, num_trajectories=1)
    _, statistics = search(policy, short)
    assert statistics.expansions == NUM_PROBLEMS
    assert statistics.slots.iterations == 4  # three with problems and one in which the last trees leave
    assert statistics.slots.busy_slots == NUM_PROBLEMS


def test_slots_stay_full_while_problems_wait(policy):
    used = search(policy, EAGER)[1].slots
    lockstep = sum(search_part(policy, EAGER, start, start + 4).slots.iterations for start in range(0, NUM_PROBLEMS, 4))
    assert used.iterations < lockstep
    assert used.busy_slots / used.slot_steps > 0.6


def search_part(policy, settings, start, end):
    task = ParityTask()
    task.train_problems = task.train_problems[start : min(end, NUM_PROBLEMS)]
    return search(policy, settings, task=task)[1]


def test_no_token_is_encoded_twice(policy, searched):
    _, _, statistics = searched
    used = statistics.slots
    assert used.recomputed_tokens == 0
    assert 0 < used.fed_tokens <= used.generated_tokens
    assert used.generated_tokens == statistics.tokens
    # All of a prompt but its last token, which each expansion of the root feeds.
    task = ParityTask()
    at_the_root = used.prompt_tokens - sum(len(task.prompt(p)) - 1 for p in task.train_problems[:NUM_PROBLEMS])
    assert at_the_root >= NUM_PROBLEMS
    # All of a segment but its last token while it is sampled; that one with each expansion of its node.
    segments = statistics.nodes - NUM_PROBLEMS
    assert used.fed_tokens == used.generated_tokens - segments + used.expansions - at_the_root


def test_the_verdicts_of_one_half_are_found_while_the_other_decodes(policy, monkeypatch):
    log = []
    dispatch, verdicts = slots.Slots._dispatch, slots.Slots._verdicts

    def logged_dispatch(self, params, batch, outcomes):
        log.append(("dispatch", id(batch)))
        return dispatch(self, params, batch, outcomes)

    def logged_verdicts(self, view):
        log.append(("verify", None))
        return verdicts(self, view)

    monkeypatch.setattr(slots.Slots, "_dispatch", logged_dispatch)
    monkeypatch.setattr(slots.Slots, "_verdicts", logged_verdicts)
    search(policy, EAGER, half_batches="yes")
    first, second = log[0][1], log[1][1]
    assert first != second  # both halves are under way before anything is verified
    kinds = [kind for kind, _ in log]
    assert kinds[:4] == ["dispatch", "dispatch", "verify", "dispatch"]
    assert log[3][1] == first


def test_samples_drawn_together_by_hand(policy):
    model = policy[0]
    gib = 5 * page_bytes(model, 9) / 2**30  # room for five responses of nine tokens
    together = [
        samples_at_once(model, slots, K, 9, pool_gib=gib) for slots, K in [(1, 5), (1, 6), (2, 5), (5, 4), (9, 4)]
    ]
    assert together == [5, 3, 2, 1, 1]
    assert samples_at_once(model, 8, 64, 9) == 64  # the small model fits whole


def test_weights_without_gradients_leave_more_to_the_pool(policy):
    model, size = policy[0], sum(leaf.size for leaf in jax.tree.leaves(policy[1]))
    pools = [
        settle_pool(tiny_settings().rollout, model, UpdateSettings(), None, memory=1e9, is_frozen=frozen).page_pool_gib
        for frozen in (True, False)
    ]
    # The weights and a copy; gradients, two moments and the five counters as well.
    np.testing.assert_allclose(pools, [(1e9 - 8 * size) / 2**31, (1e9 - 20 * size - 20) / 2**31])


def test_pages_by_hand(policy):
    model = policy[0]
    per_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * 4
    assert page_bytes(model, 3) == 3 * per_token
    assert pool_pages(model, EAGER, 4, pool_gib=10 * page_bytes(model, 3) / 2**30) == 10
    assert pool_pages(model, EAGER, 4, num_batches=2, pool_gib=10 * page_bytes(model, 3) / 2**30) == 5
    assert pool_pages(model, EAGER, 4) == 4 * EAGER.capacity  # the small model fits whole
    size = sum(leaf.size for leaf in jax.tree.leaves(policy[1]))
    # Weights, gradients, two moments, a copy for decoding; five counters of the state.
    assert training_bytes(model) == size * 4 * 5 + 5 * 4
    parts = decode_bytes(
        model, num_slots=4, num_rows=8, num_samples=2, segment_length=3, prompt_length=8, path_bucket=5, num_pages=10
    )
    assert parts == {
        "weights": 4 * size, "pool": 30 * per_token, "prompts": 32 * per_token,
        "gathered_paths": 8 * 23 * per_token, "own_tokens": 48 * per_token, "logits": 2 * 16 * model.vocab_size * 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"half_batches": "maybe"}, "half_batches='maybe' must be"),
        ({"page_pool_gib": -1.0}, "page_pool_gib=-1.0 must be 0"),
        ({"rows_at_once": -1}, "rows_at_once=-1 must be 0"),
    ],
)
def test_settings_without_sense_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        RolloutSettings(**settings)


def test_halves_need_slots_to_share(policy):
    with pytest.raises(ValueError, match="the next such size is 4"):
        search(policy, EAGER, num_slots=3, half_batches="yes")
    assert RolloutSettings(num_slots=3).num_batches("gpu", 1) == 1
    assert RolloutSettings(num_slots=4).num_batches("gpu", 1) == 2
    assert RolloutSettings(num_slots=4).num_batches("gpu", 4) == 1
    assert RolloutSettings(num_slots=4).num_batches("cpu", 1) == 1
    assert np.array_equal(RolloutSettings(num_slots=4, half_batches="no").num_batches("gpu", 1), 1)


def test_how_many_nodes_are_expanded_together(monkeypatch):
    assert RolloutSettings().lot_size("cpu", LAZY, 32) == 8
    assert RolloutSettings().lot_size("cpu", LAZY, 6) == 6
    assert RolloutSettings().lot_size("cpu", EAGER, 32) == RolloutSettings().lot_size("gpu", LAZY, 32) == 32
    assert RolloutSettings(rows_at_once=3).lot_size("gpu", EAGER, 32) == 3
    # Weights are laid out for the rows of most products: those of a lot, or of direct samples where none is searched.
    monkeypatch.setattr(learning, "decoding_params", lambda params, rollout, model, rows, **_: rows)
    lazy = dataclasses.replace(tiny_settings(), search=LAZY, rollout=RolloutSettings(num_slots=16), num_devices=1)
    assert learning.sampling_params(None, lazy, None, backend="cpu") == 8
    outcome = dataclasses.replace(lazy.advantage, level="outcome")
    grpo = dataclasses.replace(lazy, method="grpo", advantage=outcome)
    assert learning.sampling_params(None, grpo, None, backend="cpu") == 16 * lazy.rounds.group_size


def test_stop_strings_end_responses_of_searches_and_direct_samples(policy):
    rollout = RolloutSettings(num_slots=4, prompt_multiple=8, path_multiple=5, stop_strings=("7", "31"), entropy=True)
    task = ParityTask()
    sampler = Sampler(
        task, policy[0], EAGER, rollout, run_key=jax.random.key(5), mesh=None, check_stop=lambda: None,
        advance=lambda done, detail: None,
    )  # fmt: skip
    problems = task.train_problems[:8]
    groups, statistics = sampler.search(policy[1], problems, (0, 1))
    groups += sampler.direct(policy[1], problems, 4, Purpose.DIRECT, (0, 1))
    ended_there = 0
    for response in (response for group in groups for response in group.responses):
        text = response.text
        assert "7" not in text[:-1]
        assert "31" not in text[:-1]
        if text.endswith(("7", "31")):
            ended_there += 1
            assert response.outcome != Outcome.INCOMPLETE  # it ended by itself, like at an end of sequence
    assert ended_there > 5
    # The policy of random weights knows 12 ids and prefers none by much.
    mean_entropy = statistics.slots.entropy / statistics.slots.generated_tokens
    assert 0.5 * np.log(12) < mean_entropy <= np.log(12) + 1e-4


@pytest.mark.parametrize("num_devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_rollouts_move_nothing_to_the_device_unasked(policy, num_devices, monkeypatch):
    debug, mesh = DebugSettings(transfer_guard=True), build_mesh(num_devices)
    params = jax.device_put(policy[1], None if mesh is None else NamedSharding(mesh, PartitionSpec()))
    search((policy[0], params), EAGER, num_devices=num_devices, debug=debug)
    # The guard is there: a host array that is left to the compiled call is refused.
    monkeypatch.setattr(slots.Slots, "_placed", lambda self, arrays: arrays)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        search(policy, EAGER, debug=debug)
