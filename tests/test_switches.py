"""Every switch of docs/method.md exists in the config, and each value given there changes what is computed."""

import ast
import contextlib
import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax import tree as search
from deepsearch_jax.cache import group_fill, init_cache, insert_many, next_subset
from deepsearch_jax.config import from_config, setting_names, to_config
from deepsearch_jax.data.degenerate import is_degenerate
from deepsearch_jax.objective import reduce_loss, tree_advantages, tree_grpo_loss
from deepsearch_jax.policy import ModelConfig
from deepsearch_jax.runtime import RunSettings
from deepsearch_jax.runtime.groups import drop_unteachable, node_advantages, pack
from deepsearch_jax.runtime.learning import Learner
from deepsearch_jax.runtime.rollout_step import sample_step
from deepsearch_jax.runtime.rollouts import grafting
from deepsearch_jax.runtime.state import Position
from deepsearch_jax.runtime.trainer import Trainer
from deepsearch_jax.types import Outcome
from tests.runtime.test_groups import group, response, shared_group
from tests.tree.test_by_hand import at, expand, segments, two_levels

DOCUMENT = pathlib.Path(__file__).resolve().parent.parent / "docs" / "method.md"


def documented():
    """Key to values of every table that has values."""
    found = {}
    for line in DOCUMENT.read_text("utf-8").splitlines():
        cells = line.split("|")
        if len(cells) == 5 and (key := re.fullmatch(r"\s*`([a-z_.]+)`\s*", cells[2])):
            found[key[1]] = tuple(ast.literal_eval(value) for value in re.findall(r"`([^`]+)`", cells[3]))
    return found


# ---------------------------------------------------------------------------------------------------------- the search


@functools.cache
def small_tree():
    """Root 0 with children 1, 2; 2 has 3, 4; 1 has the wrong terminals 5 (more confident) and 6, and is the current."""
    tree, _ = two_levels()
    slots = jnp.arange(9)
    return dataclasses.replace(
        at(tree, 1),
        is_terminal=(slots == 5) | (slots == 6),
        outcome=jnp.where((slots == 5) | (slots == 6), Outcome.INCORRECT, 0).astype(tree.outcome.dtype),
        value=jnp.array([9.0, 0.5, 0.2, 0.7, -0.4, 0, 0, 0, 0]),
        visit_count=jnp.array([3, 2, 1, 1, 1, 0, 0, 0, 0], jnp.int32),
    )


def scores(settings):
    return search.frontier_scores(small_tree(), settings.search)[1:7]


def one_pass(settings):
    tree, info = search.backup_passes(small_tree(), jax.random.key(1), settings.search)
    return tree.value, tree.status, info.chosen, info.next_node


def after_a_right_one(settings):
    """The pass that credits terminal 5, if it were right."""
    tree = small_tree()
    right = dataclasses.replace(tree, outcome=tree.outcome.at[5].set(Outcome.CORRECT))
    return search.backup_passes(right, jax.random.key(1), settings.search)[0].status


def after_backup(settings):
    """Of the terminal as it is, wrong, and as if it were right."""
    tree = small_tree()
    right = dataclasses.replace(tree, outcome=tree.outcome.at[5].set(Outcome.CORRECT))
    return [search.backup(each, jnp.int32(5), settings.search).value for each in (tree, right)]


# ----------------------------------------------------------------------------------------------- advantages and losses


def advantages(settings):
    """Two paths of two nodes; of four terminals one was right."""
    return tree_advantages(
        jnp.array([[0.5, 1.0], [-0.3, -1.0]]), jnp.ones((2, 2), bool), jnp.array([1.0, -1.0]), jnp.array([5, 8]),
        jnp.ones(2, bool), settings.advantage, segment_lengths=jnp.array([[2, 3], [4, 4]]),
        terminal_rewards=jnp.array([1.0, -1, -1, -1]), is_terminal=jnp.ones(4, bool),
    )  # fmt: skip


def of_a_tree(settings):
    """A right and a wrong path of two nodes."""
    tree = group(response(1.0, (1, 1), [0.5, 1.0]), response(-1.0, (1, 1), [-0.3, -1.0], first_token=5))
    tree.terminal_rewards = np.array([1, -1], np.float32)
    return node_advantages([tree], settings.advantage)[0]


def loss(settings):
    """Ratios 1.4, .7, 20 and 1, two of them of the second row."""
    log_ratio, mask = jnp.log(jnp.array([[1.4, 0.7, 1.0], [20.0, 1.0, 1.0]])), jnp.array([[1, 1, 0], [1, 1, 1]], bool)
    old = jnp.full((2, 3), -1.0)
    return reduce_loss(
        tree_grpo_loss(
            old + log_ratio, old, jnp.array([[1.0, -1, 0], [-1, 2, 2]]), mask, jnp.ones((2, 3)), settings.loss,
            sampler_log_probs=old - 0.3, reference_log_probs=old - 0.2,
        )
    )[0]  # fmt: skip


MODEL = ModelConfig.tiny(vocab_size=32, hidden_size=128, num_heads=2)


def packed(settings):
    """Of responses that share nothing, and of such that share most."""
    groups, advantages = (
        [[shared_group(shared=n, own=256 - n)] * 4 for n in (0, 200)],
        [[np.ones(2, np.float32)] * 4] * 4,
    )
    return [type(pack(some, advantages, settings.pack, settings.loss, MODEL).batch).__name__ for some in groups]


# -------------------------------------------------------------------------------------------------------------- rounds


class Asked(Exception):
    """What the sampler was asked for."""


class FakeSampler:
    """Says what it is asked for, and ends there."""

    task = SimpleNamespace(prompt=lambda problem: [1], tokenizer=SimpleNamespace(decode=str))
    run_key = jax.random.key(0)
    generated_tokens = 0

    def direct(self, params, problems, num_samples, purpose, counters):
        raise Asked("direct", len(problems), num_samples)

    def search(self, params, problems, counters, **more):
        raise Asked("search", len(problems))

    def put_everywhere(self, tree):
        return tree

    def reward(self, outcome):
        return 1.0


def asked(function):
    with pytest.raises(Asked) as found:
        function()
    return [str(part) for part in found.value.args]


PROBLEMS = [SimpleNamespace(key=key, id=str(key), component=0) for key in range(8)]


def first_question(settings):
    """A step on two problems, both of which have a cached solution if there is a cache."""
    cache = init_cache(4, 2, 1, 4)
    one = jnp.ones((2, 2), jnp.int32)
    cache = insert_many(cache, jnp.arange(2), jnp.ones((2, 2, 4), jnp.int32), one, one > 0, jnp.int32(0))
    return asked(lambda: sample_step(FakeSampler(), None, cache, PROBLEMS[:2], (0, 0), settings))


def draws(settings):
    """How often a step draws problems until their groups are mixed; none is."""
    calls = []

    def step(sampler, params, cache, problems, counters, settings, **more):
        calls.append(settings.method == "deepsearch")
        return SimpleNamespace(groups=[SimpleNamespace(num_correct=0, responses=[1]) for _ in problems])

    trainer = stub(settings, _batches=SimpleNamespace(__next__=None))
    trainer._batches = iter([[0], [1], [2]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deepsearch_jax.runtime.trainer.sample_step", step)
        Trainer._sample(trainer)
    return calls


def stub(settings, **more):
    """What the methods of a trainer need of it."""
    phase = SimpleNamespace(phase=lambda *_: contextlib.nullcontext(), line=print)
    subset = jnp.arange(8) < 5
    return SimpleNamespace(
        settings=settings, problems=PROBLEMS, reporter=phase, _sampler=FakeSampler(), _sampling_params=lambda: None,
        position=Position(round_index=more.pop("round_index", 0)),
        arrays=SimpleNamespace(cache=None, subset=subset, num_correct=jnp.zeros(8, jnp.int32),
                               num_samples=jnp.zeros(8, jnp.int32)),
        task=SimpleNamespace(mixture=()), _save=lambda wait: None, _entropy_weight=None, **more,
    )  # fmt: skip


def credited_samples(settings):
    """Two direct samples that a tree starts from."""
    settings = grafting(settings.search, 2)
    tokens = jnp.zeros((2, settings.max_response_length), jnp.int32).at[:, 0].set(jnp.arange(1, 3))
    one = jnp.ones(2, jnp.int32)
    samples = search.Samples(tokens, one, -1.0 * tokens, -1.0 * tokens, one * Outcome.INCORRECT)
    return search.graft_samples(search.init_tree(settings), samples, jax.random.key(0), settings).credited


def is_filtered(settings):
    calls = []
    Trainer._choose_problems(stub(settings, _filter=lambda: calls.append("filter")))
    return calls


def hard_ones(settings):
    """Two samples each: 0, 1 and 2 of them right."""
    num_correct, ids = jnp.array([0, 1, 2]), jnp.arange(3)
    two, all_of_them = jnp.full(3, 2), jnp.ones(3, bool)
    return next_subset(jax.random.key(0), ids, num_correct, two, all_of_them, settings.filter)


class Case(NamedTuple):
    """What a switch is seen by, and the settings it is seen under beside itself."""

    observe: Callable
    base: Mapping = MappingProxyType({})


CASES = {
    "search.incomplete_score": Case(lambda s: search.rewards_of(jnp.array([Outcome.INCOMPLETE]), s.search)),
    "search.negative_choice": Case(one_pass),
    "search.min_depth_weight": Case(after_backup),
    "search.root_counts_in_depth_weight": Case(after_backup),
    "search.backup_rule": Case(after_backup),
    "search.exploration": Case(lambda s: search.uct_scores(small_tree(), jnp.int32(0), s.search)),
    "search.backtrace": Case(one_pass),
    "search.force_to_frontier": Case(one_pass),
    "search.frontier_value_weight": Case(scores),
    "search.frontier_entropy_weight": Case(scores),
    "search.frontier_entropy": Case(
        scores, {"search.frontier_entropy_weight": -3.0, "search.expansion": "lazy", "search.siblings": "distinct"}
    ),
    "search.confidence": Case(scores, {"search.frontier_entropy_weight": -3.0}),
    "search.frontier_depth_weight": Case(scores),
    "search.depth_bonus": Case(scores),
    "search.frontier_own_value_weight": Case(scores),
    "search.expansion": Case(scores),
    "search.picks_per_step": Case(lambda s: search.init_tree(s.search).cursors),
    "search.siblings": Case(
        lambda s: search.init_tree(s.search).cursors, {"search.expansion": "lazy", "search.picks_per_step": 2}
    ),
    "search.trajectories_if_solved": Case(after_a_right_one),
    "search.sample_credits": Case(credited_samples),
    "search.min_width": Case(lambda s: search.width_at_depth(jnp.arange(4), s.search)),
    "search.num_trajectories": Case(one_pass),
    "search.node_budget": Case(one_pass),
    "search.token_budget": Case(one_pass),
    "search.reference_quirks": Case(
        lambda s: search.child_is_terminal(at(small_tree(), 3), segments([2, 2], is_eos=[True, False]), s.search)
    ),
    "search.reference_eos_is_pad": Case(
        lambda s: expand(at(two_levels()[0], 3), segments([1, 2], [-1.0, -2.0]), settings=s.search).path_entropy
    ),
    "advantage.level": Case(of_a_tree),
    "advantage.normalisation": Case(advantages, {"advantage.alpha": 0.5, "advantage.baseline": "terminal_rewards"}),
    "advantage.baseline": Case(advantages, {"advantage.overlong_max_length": 8, "advantage.overlong_buffer": 4}),
    "advantage.soft_clip_max": Case(advantages),
    "advantage.soft_clip_temperature": Case(advantages),
    "advantage.overlong_buffer": Case(advantages, {"advantage.overlong_max_length": 8}),
    "advantage.overlong_factor": Case(advantages, {"advantage.overlong_max_length": 8, "advantage.overlong_buffer": 4}),
    "advantage.drop_uniform": Case(
        lambda s: [len(drop_unteachable([group(response(1.0), response(1.0))], s.advantage, s.degenerate)[0])]
    ),
    "loss.clip_low": Case(loss),
    "loss.clip_high": Case(loss),
    "loss.dual_clip": Case(loss),
    "loss.aggregation": Case(loss, {"loss.norm_length": 7}),
    "loss.entropy_coefficient": Case(loss),
    "loss.importance_cap": Case(loss),
    "loss.kl_coefficient": Case(loss),
    "loss.kl_estimator": Case(loss, {"loss.kl_coefficient": 0.1}),
    "old_log_probs": Case(lambda s: [Learner(s, MODEL, None, pathlib.Path())._update_settings.on_policy]),
    "pack.trees": Case(packed),
    "method": Case(draws, {"advantage.level": "outcome", "rounds.dynamic_sampling_batches": 2}),
    "cache.capacity": Case(first_question),
    "rounds.search_when": Case(first_question, {"cache.capacity": 0}),
    "rounds.probe_size": Case(first_question, {"cache.capacity": 0, "rounds.search_when": "no_signal"}),
    "rounds.filter_problems": Case(is_filtered),
    "rounds.filter_first_round": Case(is_filtered),
    "rounds.refilter": Case(lambda s: asked(lambda: Trainer._filter(stub(s, round_index=1)))),
    "filter.num_samples": Case(lambda s: asked(lambda: Trainer._filter(stub(s)))),
    "filter.threshold": Case(hard_ones),
    "filter.easy_share": Case(hard_ones),
    "filter.min_direct": Case(lambda s: group_fill(jnp.int32(8), 8, s.filter.min_direct)),
    "degenerate.max_bad_share": Case(lambda s: [is_degenerate("\ufffd" * 9 + "so 4 then 5", s.degenerate)]),
    "degenerate.min_repeated_chars": Case(lambda s: [is_degenerate("and again " * 60, s.degenerate)]),
}

# The small tree's sizes, but for what the case itself changes; a default is that of the settings classes.
SIZES = {"search": {"expansion_width": 2, "max_depth": 4, "segment_length": 2, "num_trajectories": 3, "capacity": 9}}


def settings_with(changes):
    nested = to_config(RunSettings()).to_dict()
    for group_name, sizes in SIZES.items():
        nested[group_name] |= sizes
    for key, value in changes.items():
        *path, name = key.split(".")
        functools.reduce(dict.__getitem__, path, nested)[name] = value
    return from_config(RunSettings, nested)


def differ(one, other):
    one, other = (jax.tree.map(np.asarray, jax.tree.leaves(x)) for x in (one, other))
    return len(one) != len(other) or any(not np.array_equal(a, b) for a, b in zip(one, other))


def test_the_tables_and_the_cases_are_about_the_same_settings():
    assert set(documented()) == set(CASES)
    assert set(CASES) <= set(setting_names(RunSettings))


@pytest.mark.parametrize("key", CASES)
def test_the_first_value_is_the_default_and_every_other_changes_the_result(key):
    default, *others = documented()[key]
    found = functools.reduce(getattr, key.split("."), RunSettings())
    assert found == default
    assert type(found) is type(default)
    case = CASES[key]
    before = case.observe(settings_with({**case.base, key: default}))
    for value in others:
        after = case.observe(settings_with({**case.base, key: value}))
        assert differ(after, before), f"{key}={value!r} does what {default!r} does"
