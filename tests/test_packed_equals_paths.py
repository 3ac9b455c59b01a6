"""The short form of `python -m tests.packed_equals_paths`, and what surrounds it: micro-batches, devices, windows."""

import dataclasses

import jax
import numpy as np
import pytest

from deepsearch_jax.objective import LossSettings
from deepsearch_jax.training import compute_log_probs, first_fit, pack_rows, token_tree, without_idle_ends
from tests import packed_equals_paths as pep
from tests.policy.conftest import load_recorded

OPTIONS = list(pep.loss_options())


@pytest.fixture(scope="module")
def problems():
    """A recorded search and random ones."""
    recorded = next(pep.recorded_problems([pep.DATA / "tree_traces.json"], at_least=1, longest=110))[1]
    return recorded + [paths for seed in (1, 2) for paths in pep.random_paths(seed, longest=50)]


@pytest.mark.parametrize(
    "number", [35, pytest.param(6, marks=pytest.mark.slow), pytest.param(26, marks=pytest.mark.slow)]
)
def test_loss_gradient_and_metrics_are_those_of_the_responses(problems, number):
    """35: token means on policy, weights for the sampler and a pull to a reference; 6 and 26: off policy, entropy."""
    _, loss, on_policy = OPTIONS[number]
    shape = pep.Shape(width=128, rows=48, packed_length=1024, packed_rows=1)
    gradient, metrics, name, share = pep.compare(problems, *pep.small_policy()[::-1], loss, on_policy, shape)
    assert gradient <= pep.TOLERANCE
    assert metrics <= pep.TOLERANCE, name
    assert share < 0.8


@pytest.mark.parametrize(("num_devices", "micro_batch_rows"), [pytest.param(1, 2, marks=pytest.mark.slow), (8, 1)])
def test_micro_batches_and_devices_change_nothing(problems, num_devices, micro_batch_rows):
    (config, params), (_, loss, on_policy) = (
        pep.small_policy(),
        OPTIONS[43],
    )  # means of rows, on policy, all corrections
    rows = pep.sampled_log_probs(pep.response_batch(problems, 128, 48), params, config, 0.0)
    rows = pep.forget(problems, rows)
    packed = pep.packed_batch(problems, rows, loss, 384, 8)
    mesh = jax.make_mesh((8,), ("data",)) if num_devices == 8 else None
    settings = dataclasses.replace(pep.UPDATE, on_policy=on_policy)
    want = pep.gradient_and_metrics(params, rows, config, loss, settings)
    settings = dataclasses.replace(settings, micro_batch_rows=micro_batch_rows)
    got = pep.gradient_and_metrics(params, packed, config, loss, settings, mesh)
    assert pep.relative_error(got[0], want[0]) <= pep.TOLERANCE
    assert pep.metric_error(got[1], want[1])[0] <= pep.TOLERANCE


@pytest.mark.parametrize("number", [1, pytest.param(17, marks=pytest.mark.slow)])
def test_ends_without_an_advantage_add_nothing_to_the_gradient(problems, number):
    """Token means on policy; 17: means of rows. Advantages at a tenth of the tokens, as against siblings."""
    _, loss, on_policy = OPTIONS[number]
    config, params = pep.small_policy()
    rng = np.random.default_rng(3)
    sparse = [
        dataclasses.replace(
            paths, advantages=[np.where(rng.random(len(a)) < 0.1, a, 0).astype(np.float32) for a in paths.advantages]
        )
        for paths in problems
    ]
    rows = pep.sampled_log_probs(pep.response_batch(sparse, 128, 48), params, config, 1.6)
    settings = dataclasses.replace(pep.UPDATE, on_policy=on_policy)
    want, metrics = pep.gradient_and_metrics(params, rows, config, loss, settings)
    trees = [token_tree(paths, loss, 128) for paths in sparse]
    cut = [without_idle_ends(tree) for tree in trees]
    assert sum(map(len, cut)) < 0.8 * sum(map(len, trees))
    packed = pack_rows(cut, first_fit([len(tree) for tree in cut], 1024), 1, 1024)
    got, of_trees = pep.gradient_and_metrics(params, packed, config, loss, settings)
    assert pep.relative_error(got, want) <= pep.TOLERANCE
    np.testing.assert_allclose(of_trees["loss"], metrics["loss"], rtol=1e-5)


def test_old_log_probs_of_trees_are_those_of_the_responses(problems):
    """With a window of 8 in one of two layers; rows attend densely, trees by blocks."""
    recorded = load_recorded("gemma3")
    config, params = recorded.config, recorded.params
    fresh = pep.sampled_log_probs(pep.response_batch(problems, 128, 48), params, config, 0.0)
    packed = pep.packed_batch(problems, fresh, LossSettings(), 384, 8)
    got = np.asarray(compute_log_probs(params, packed, pep.log_prob_fn(config), pep.UPDATE))
    count = np.asarray(packed.sums.num_paths)
    np.testing.assert_allclose((got * count).sum(), fresh.old_log_probs.sum(), rtol=1e-5)
    want = {}
    for tokens, mask, log_probs in zip(fresh.tokens, fresh.loss_mask, fresh.old_log_probs):
        want |= {tuple(tokens[: i + 1]): log_probs[i] for i in np.flatnonzero(mask)}
    assert len(want) == (count > 0).sum()
    for row in range(8):
        paths = [()] * packed.tokens.shape[1]
        for i in np.flatnonzero(packed.tree_ids[row]):
            parent = packed.parents[row, i]
            paths[i] = (*(paths[parent] if parent >= 0 else ()), packed.tokens[row, i])
            if count[row, i]:
                np.testing.assert_allclose(got[row, i], want[paths[i]], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "llama3", "gemma3"])
def test_every_family_packs(family):
    """Gemma's first layer sees 8 tokens back; both forms attend by blocks."""
    recorded = load_recorded(family)
    config = dataclasses.replace(recorded.config, remat="full")
    problems = pep.random_paths(5, longest=60)
    shape = pep.Shape(width=192, rows=24, packed_length=512, packed_rows=2)
    gradient, metrics, name, _ = pep.compare(problems, recorded.params, config, LossSettings(), False, shape)
    assert gradient <= pep.TOLERANCE
    assert metrics <= pep.TOLERANCE, name


@pytest.mark.slow
def test_many_trees_under_every_option(capsys):
    assert pep.main([]) == 0
    assert "passed" in capsys.readouterr().out.splitlines()[-1]
