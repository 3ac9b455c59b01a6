"""Presets: what tells them apart is named, and with outcome scores the paper's update is DAPO's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepsearch_jax.config import differing_keys, from_config, to_config
from deepsearch_jax.policy import token_log_probs
from deepsearch_jax.runtime import RunSettings, build_policy
from deepsearch_jax.runtime.groups import PackSettings
from deepsearch_jax.runtime.learning import Learner
from deepsearch_jax.runtime.rollouts import Sampler
from experiments.presets import PAPER_TO_DAPO, set_dapo, set_outcome_scores, set_paper
from tests.runtime.conftest import tiny_settings
from tests.runtime.parity import ParityTask


def config_of(*presets, **changes):
    config = to_config(dataclasses.replace(tiny_settings(), **changes))
    for preset in presets:
        preset(config)
    return config


def test_the_differences_between_paper_and_dapo_are_those_named():
    paper, dapo = config_of(set_paper), config_of(set_paper, set_dapo)
    found = {line.split(":")[0] for line in differing_keys(paper.to_dict(), dapo.to_dict())}
    assert found == PAPER_TO_DAPO.keys()


def test_dapo_has_the_papers_numbers():
    """arXiv 2503.14476, section 4.1: clip 0.2 and 0.28, 4,096 of 20,480 tokens in the soft overlong punishment."""
    config = config_of()
    config.search.segment_length, config.search.max_depth = 256, 80
    set_dapo(config)
    settings = from_config(RunSettings, config)
    assert (settings.loss.clip_low, settings.loss.clip_high, settings.loss.aggregation) == (0.2, 0.28, "token_mean")
    advantage = settings.advantage
    assert (advantage.overlong_max_length, advantage.overlong_buffer, advantage.overlong_factor) == (20480, 4096, 1)
    assert settings.rounds.dynamic_sampling_batches > 1


@pytest.fixture(scope="module")
def grown():
    """The policy, and the trees of mixed outcomes that the paper's search grows with it."""
    config = config_of(set_paper)
    settings, task = from_config(RunSettings, config), ParityTask()
    policy = build_policy(settings.model, task, settings.search, seed=3)
    sampler = Sampler(
        task, policy[0], settings.search, settings.rollout, run_key=jax.random.key(5), mesh=None,
        check_stop=lambda: None, advance=lambda done, detail: None,
    )  # fmt: skip
    groups, _ = sampler.search(policy[1], task.train_problems[:6], (0, 1))
    return policy, [group for group in groups if 0 < group.num_correct < len(group.responses)]


def as_direct(group):
    """The same trajectories as direct rollouts: each is one node with the outcome for its value."""
    responses = [
        dataclasses.replace(
            r, segment_lengths=np.array([len(r.tokens)], np.int32), node_values=np.array([r.reward], np.float32),
            origin="direct",
        )
        for r in group.responses
    ]  # fmt: skip
    return dataclasses.replace(group, responses=responses, terminal_rewards=None)


def gradient(config, policy, groups, tmp_path):
    """The gradient of one update of the Learner, read off the first moment of an optimizer that has done nothing."""
    config.rounds.problems_per_step = len(groups)
    config.optimizer.max_grad_norm = 0.0
    settings = from_config(RunSettings, config)
    learner = Learner(settings, policy[0], None, tmp_path)
    state, values = learner.learn(learner.init(jax.tree.map(jnp.array, policy[1])), groups)
    assert values["trained_groups"] == len(groups)
    moments = optax.tree.get(state.opt_state, "mu")
    return jax.tree.map(lambda mu: np.asarray(mu, np.float64) / (1 - settings.optimizer.b1), moments), values


def dapo_gradient(policy, groups, overlong=None):
    """Gradient of Eq. 8 of DAPO written out, one response a row, by jax.grad."""
    model, params = policy
    rows, shares, old, mask = [], [], [], []
    num_tokens = sum(len(r.tokens) for group in groups for r in group.responses)
    for group in groups:
        lengths = np.array([len(r.tokens) for r in group.responses])
        rewards = np.array([r.reward for r in group.responses], np.float64)
        if overlong is not None:  # Eq. 13
            longest, buffer = overlong
            rewards = rewards + np.clip(((longest - buffer) - lengths) / buffer, -1, 0)
        for response, advantage in zip(
            group.responses, (rewards - rewards.mean()) / (rewards.std() + 1e-6), strict=True
        ):
            start, end = len(group.prompt), len(group.prompt) + len(response.tokens)
            row = np.zeros((4, 32))
            row[0, :end] = [*group.prompt, *response.tokens]
            row[1, start:end], row[2, start:end], row[3, start:end] = advantage, response.log_probs, 1
            for name, values in zip((rows, shares, old, mask), row, strict=True):
                name.append(values)
    tokens, advantages, old_log_probs, trained = map(np.array, (rows, shares, old, mask))

    @jax.jit
    def loss(params):
        new, _ = token_log_probs(model, params, tokens.astype(np.int32), (tokens > -1).astype(np.int32), chunk_size=64)
        ratio = jnp.exp(jnp.where(trained > 0, new - old_log_probs.astype(np.float32), 0))
        surrogate = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - 0.2, 1 + 0.28) * advantages)
        surrogate = jnp.where(advantages < 0, jnp.maximum(surrogate, 10.0 * advantages), surrogate)  # dual clip
        return -jnp.sum(surrogate * trained) / num_tokens

    return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize(
    ("trees", "overlong"), [pytest.param("always", False, marks=pytest.mark.slow), ("never", True)]
)
def test_with_outcome_scores_the_papers_gradient_is_that_of_dapo(grown, tmp_path, trees, overlong):
    policy, groups = grown
    assert len(groups) >= 3
    assert any(len(set(r.node_values.tolist())) > 1 for group in groups for r in group.responses)
    # Off policy, so that ratios and clips take part: what the sampler says is shifted from what the policy says, by
    # what follows from the prefix, since a token that responses share has one log-prob.
    shifts = np.array([-2.5, -0.1, 0, 0.1, 0.4], np.float32)

    def shifted(r):
        return dataclasses.replace(r, log_probs=r.log_probs + shifts[np.cumsum(r.tokens * 31 + 7) % 5])

    groups = [dataclasses.replace(group, responses=[shifted(r) for r in group.responses]) for group in groups]
    pack = PackSettings(row_multiple=16, min_rows=16, trees=trees)

    def settings_of(*presets):
        config = config_of(*presets, pack=pack)
        config.old_log_probs = "sampler"
        longest = config.search.max_depth * config.search.segment_length
        config.advantage.overlong_max_length, config.advantage.overlong_buffer = longest, 6 if overlong else 0
        return config

    paper, values = gradient(settings_of(set_paper, set_outcome_scores), policy, groups, tmp_path)
    direct = [as_direct(group) for group in groups]
    dapo, dapo_values = gradient(settings_of(set_dapo), policy, direct, tmp_path)
    assert values["pg_clipfrac"] > 0.05
    assert values["pg_clipfrac_lower"] > 0
    by_hand = dapo_gradient(policy, groups, (15, 6) if overlong else None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), paper, by_hand)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), paper, dapo)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(paper))
    assert largest > 1e-3  # 1e-6 is little
    assert values["loss"] == pytest.approx(dapo_values["loss"], abs=1e-6)
    # Without the outcome scores the papers' updates differ.
    other, _ = gradient(settings_of(set_paper), policy, groups, tmp_path)
    gap = max(float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(dapo), strict=True))
    assert gap > 1e-3
