"""Chunked log-probs: equal to the plain ones, and no logits of a whole batch anywhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from deepsearch_jax import policy

CONFIG = policy.ModelConfig.tiny(101, hidden_size=16, num_layers=1, num_heads=2)
ROWS, LENGTH, CHUNK = 6, 50, 32


@pytest.fixture(scope="module")
def params():
    return policy.init_params(CONFIG, jax.random.key(3))


@pytest.fixture(scope="module")
def batch():
    tokens = jax.random.randint(jax.random.key(4), (ROWS, LENGTH), 0, CONFIG.vocab_size)
    return tokens, (jnp.arange(LENGTH)[None] < jnp.array([[50], [1], [7], [49], [30], [0]])).astype(jnp.int32)


def plain(params, tokens, segment_ids, temperature=1.0):
    hidden = policy.hidden_states(CONFIG, params, tokens, segment_ids)
    table = jax.nn.log_softmax(policy.logits(params, hidden) / temperature)[:, :-1]
    taken = jnp.take_along_axis(table, tokens[:, 1:, None], axis=-1)[..., 0]
    entropy = -(jnp.exp(table) * table).sum(-1)
    keep = jnp.pad((segment_ids[:, 1:] != 0), ((0, 0), (1, 0)))
    return tuple(jnp.where(keep, jnp.pad(x, ((0, 0), (1, 0))), 0) for x in (taken, entropy))


@pytest.mark.parametrize(("chunk_size", "temperature"), [(1, 1.0), (32, 0.7), (1000, 1.0)])
def test_chunked_equals_plain_in_value_and_gradient(params, batch, chunk_size, temperature):
    def weighted(of):
        log_probs, entropy = of
        weights = jnp.arange(LENGTH, dtype=jnp.float32)[None] / LENGTH
        return (log_probs * weights).sum() + 0.1 * (entropy * weights).sum(), of

    def chunked(params):
        return weighted(policy.token_log_probs(CONFIG, params, *batch, chunk_size=chunk_size, temperature=temperature))

    (_, got), got_grads = jax.jit(jax.value_and_grad(chunked, has_aux=True))(params)
    (_, want), want_grads = jax.value_and_grad(lambda p: weighted(plain(p, *batch, temperature)), has_aux=True)(params)
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), got_grads, want_grads)


def all_shapes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (tuple(var.aval.shape) for var in equation.outvars)
        for sub in jaxprs_in_params(equation.params):
            yield from all_shapes(sub)


def test_no_array_holds_logits_of_more_than_one_chunk(batch):
    config = dataclasses.replace(CONFIG, vocab_size=2003)  # prime, so that no other axis can be mistaken for it

    def loss(params):
        log_probs, entropy = policy.token_log_probs(config, params, *batch, chunk_size=CHUNK)
        return log_probs.sum() + entropy.sum()

    params = policy.init_params(config, jax.random.key(0))
    with_vocabulary = [s for s in all_shapes(jax.make_jaxpr(jax.grad(loss))(params).jaxpr) if config.vocab_size in s]
    assert max(np.prod(shape) for shape in with_vocabulary) <= CHUNK * config.vocab_size
    memory = jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis()
    assert memory.temp_size_in_bytes < ROWS * LENGTH * config.vocab_size * 4
