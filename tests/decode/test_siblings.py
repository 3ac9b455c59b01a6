"""Segments drawn without replacement: against all segments counted out by hand, and through the engine."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from deepsearch_jax.decode import DecodeSettings, make_siblings, sample_token
from tests.decode.trees import CONFIG, Trees, make_request, random_params, random_prompts, settings

V, S, DRAWS = 5, 3, 30_000


def a_policy(temperature=1.0):
    """Logits [V^(t), V] of a policy of three tokens, token 0 ends: by prefix, and the probabilities of all segments."""
    rng = np.random.default_rng(3)
    logits = {prefix: 2 * rng.normal(size=V) for t in range(S) for prefix in itertools.product(range(V), repeat=t)}

    def tokens(prefix):
        weights = np.exp(logits[prefix] / temperature)
        return weights / weights.sum()

    segments = {}
    for segment in itertools.product(range(V), repeat=S):
        cut = segment[: segment.index(0) + 1] if 0 in segment else segment
        segments[cut] = float(np.prod([tokens(cut[:t])[token] for t, token in enumerate(cut)]))
    return logits, tokens, segments


def draw_segments(logits, tokens, siblings, settings, seed):
    """DRAWS segments one after the other token, by the library's sampler, as the engine calls it."""
    table = np.zeros((S, V**S, V), np.float32)
    for prefix, row in logits.items():
        table[len(prefix), int(sum(x * V**i for i, x in enumerate(prefix)))] = row
    table = jnp.array(table)
    padded = np.zeros((len(siblings), S), np.int32)
    log_probs = np.zeros((len(siblings), S), np.float32)
    for number, sibling in enumerate(siblings):
        padded[number, : len(sibling)] = sibling
        log_probs[number, : len(sibling)] = [np.log(tokens(sibling[:t])[x]) for t, x in enumerate(sibling)]
    lengths = jnp.array([len(sibling) for sibling in siblings])
    made = make_siblings(jnp.array(padded), lengths, jnp.array(log_probs), jnp.ones(len(siblings), bool))

    def one(key):
        masses, place, is_open, out, said = made.log_masses, jnp.int32(0), jnp.bool_(True), [], []
        for t in range(S):
            drawn = sample_token(
                jax.random.fold_in(key, t),
                table[t, place],
                settings,
                (made.tokens[:, t], masses[:, t], lengths == t + 1),
            )
            masses = jnp.where((made.tokens[:, t] != drawn.token)[:, None], -jnp.inf, masses)
            out.append(jnp.where(is_open, drawn.token, 0))
            said.append(jnp.where(is_open, drawn.sampling_log_prob, 0.0))
            is_open &= drawn.token != 0
            place = place + drawn.token * V**t
        return jnp.stack(out), jnp.stack(said)

    return jax.device_get(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), DRAWS)))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_segments_follow_the_policy_given_that_they_are_none_of_the_siblings(temperature):
    logits, tokens, segments = a_policy(temperature)
    likely = sorted(segments, key=segments.get, reverse=True)
    # The three likeliest, one that shares two tokens with another, one that ends early, an unlikely one.
    long = next(s for s in likely if len(s) == 3)
    shared = next(s for s in likely if s != long and s[:2] == long[:2])
    siblings = list(dict.fromkeys([*likely[:3], long, shared, (0,), likely[-1]]))
    drawn, said = draw_segments(logits, tokens, siblings, DecodeSettings(temperature=temperature), seed=5)
    names = [tuple(row[: row.tolist().index(0) + 1]) if 0 in row else tuple(row) for row in drawn]
    assert not set(names) & set(siblings)
    left = [segment for segment in segments if segment not in siblings]
    want = np.array([segments[segment] for segment in left])
    want = DRAWS * want / want.sum()
    counts = np.array([names.count(segment) for segment in left])
    rare = want < 8  # together one class
    counts, want = (np.append(x[~rare], x[rare].sum()) for x in (counts, want))
    assert len(want) > 10
    assert stats.chisquare(counts, want).pvalue > 1e-3
    # What is said of them is the policy without a condition: the masses that later siblings exclude.
    for name, row in zip(names[:200], said):
        np.testing.assert_allclose(np.exp(row.sum()), segments[name], rtol=1e-4)


def test_children_of_a_node_are_all_of_its_segments_once():
    """As many as there are, one after the other: each of the 21 segments of up to two tokens comes exactly once."""
    config = dataclasses.replace(CONFIG, vocab_size=5)
    own = settings(segment_length=2, num_samples=1, temperature=0.7, eos_ids=(4,), max_depth=1)
    trees = Trees(own, random_prompts(4, vocab_size=5), pages_per_slot=0, config=config, params=random_params(config))
    room, every = 24, [(4,), *itertools.product(range(4), range(5))]
    tokens, log_probs, found = np.zeros((1, room, 2), np.int32), np.zeros((1, room, 2), np.float32), []
    for number in range(len(every)):
        key = jax.random.fold_in(jax.random.key(2), number)
        request = make_request(
            trees.prompts, [[]], 0, own, child_pages=np.full((1, 1), -1), row_keys=jax.random.split(key, (1, 1))
        )
        lengths = jnp.where(jnp.array(tokens)[..., 0] == 4, 1, 2)
        siblings = make_siblings(jnp.array(tokens), lengths, jnp.array(log_probs), jnp.arange(room)[None] < number)
        segments = trees.serve(dataclasses.replace(request, siblings=siblings))
        trees.check(segments, [[]])
        tokens[0, number], log_probs[0, number] = segments.tokens[0, 0], segments.sampling_log_probs[0, 0]
        found.append(tuple(segments.tokens[0, 0, : segments.lengths[0, 0]].tolist()))
    assert sorted(found) == sorted(every)


def test_masses_that_are_not_exact_make_no_segment_come_twice():
    """What a decoder computes of a token differs from call to call by rounding; in bfloat16 by a hundredth and more."""
    logits = jnp.array([6.0, 0.0, -1.0, -2.0])
    keys = jax.random.split(jax.random.key(0), 2000)

    @functools.partial(jax.vmap, in_axes=(0, None))
    def second_token(key, error):
        mass = jax.nn.log_softmax(logits)[0] + error
        return sample_token(key, logits, DecodeSettings(), (jnp.array([0]), mass[None], jnp.array([True]))).token

    for error in (0.0, 0.01, -0.01):
        drawn = np.bincount(second_token(keys, error), minlength=4)
        assert drawn[0] == 0
        assert stats.chisquare(drawn[1:], 2000 * np.asarray(jax.nn.softmax(logits[1:]), float)).pvalue > 1e-3


def test_a_temperature_of_zero_has_no_second_child():
    own = settings(num_samples=1, temperature=0.0)
    trees = Trees(own, random_prompts(3), pages_per_slot=0)
    keys = jax.random.split(jax.random.key(0), (1, 1))
    request = make_request(trees.prompts, [[]], 0, own, child_pages=np.full((1, 1), -1), row_keys=keys)
    none = make_siblings(
        jnp.zeros((1, 2, 4), jnp.int32), jnp.ones((1, 2), jnp.int32), jnp.zeros((1, 2, 4)), jnp.zeros((1, 2), bool)
    )
    with pytest.raises(ValueError, match="temperature=0"):
        trees.serve(dataclasses.replace(request, siblings=none))
