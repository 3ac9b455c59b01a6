"""A small language model of the tests: the next token depends on the present one through an embedding."""

import jax
import jax.numpy as jnp
import numpy as np

from deepsearch_jax.types import TokenBatch

VOCABULARY, WIDTH = 7, 4


def init_params(seed=0):
    rng = np.random.default_rng(seed)
    draw = {"embed": rng.normal(size=(VOCABULARY, WIDTH)), "out": rng.normal(size=(WIDTH, VOCABULARY))}
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32), draw)


def log_prob_fn(params, tokens, segment_ids):
    log_softmax = jax.nn.log_softmax(params["embed"][tokens[:, :-1]] @ params["out"])
    taken = jnp.take_along_axis(log_softmax, tokens[:, 1:, None], axis=-1)[..., 0]
    entropy = -jnp.sum(jnp.exp(log_softmax) * log_softmax, axis=-1)
    real = segment_ids[:, 1:] != 0
    return tuple(jnp.pad(jnp.where(real, x, 0), ((0, 0), (1, 0))) for x in (taken, entropy))


def make_batch(seed=0, num_rows=16, num_tokens=9, off_policy=0.4):
    """Rows of uneven length: prompts of 2, one row without response, one of a single response token, one of filling."""
    rng = np.random.default_rng(seed)
    lengths = np.sort(rng.integers(2, num_tokens + 1, num_rows))
    lengths[:3] = [2, 3, 0]
    columns = np.arange(num_tokens)[None]
    segment_ids = (columns < lengths[:, None]).astype(np.int32)
    mask = (segment_ids != 0) & (columns >= 2)
    tokens = np.where(segment_ids != 0, rng.integers(0, VOCABULARY, segment_ids.shape), 0).astype(np.int32)
    log_probs = np.asarray(log_prob_fn(init_params(), jnp.array(tokens), jnp.array(segment_ids))[0])
    old = np.where(mask, log_probs + off_policy * rng.normal(size=mask.shape), 0).astype(np.float32)
    advantages = np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
    return TokenBatch(tokens, segment_ids, mask, advantages, old)
