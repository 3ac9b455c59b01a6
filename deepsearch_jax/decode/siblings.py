"""Draws a segment that none of its siblings is: sampling without replacement, one token after the other.

Given siblings c, the distribution pi of segments is to be conditioned on x != c for all of them. While a row still
equals the beginnings of some siblings, the probability of a token loses what those that go on with it have left:

    P(x_t = v | x_<t)  ~  pi(v | x_<t) - sum over siblings c with c_<t = x_<t and c_t = v of pi(c_>=t | c_<t)

as in incremental sampling without replacement (Shi et al., arXiv 2002.09067). Behind the first token that differs from
all of them a row is an ordinary sample.
"""

import jax
import jax.numpy as jnp
from flax import struct

# A token whose siblings hold all but this share of its probability counts as used up: what is left may be rounding.
_ROUNDING = 2e-6


@struct.dataclass
class Siblings:
    """Segments that a row's continuation must differ from; R rows with room for W of them each.

    Attributes:
      tokens: [R, W, S] int32, 0 after the end.
      lengths: [R, W] int32.
      log_masses: [R, W, S] float32 log-prob, under the distribution sampled from, of the tokens from t to the end given
        those before t; -inf where there is no sibling.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_masses: jax.Array


def make_siblings(tokens: jax.Array, lengths: jax.Array, sampling_log_probs: jax.Array, exists: jax.Array) -> Siblings:
    """Siblings of tokens and sampling log-probs [..., W, S], 0 after the end, and lengths and exists [..., W]."""
    rest = jnp.cumsum(sampling_log_probs[..., ::-1], axis=-1)[..., ::-1]
    return Siblings(tokens, lengths, jnp.where(exists[..., None], rest, -jnp.inf))


def without_siblings(
    logits: jax.Array, normaliser: jax.Array, tokens: jax.Array, log_masses: jax.Array, is_last: jax.Array
) -> jax.Array:
    """Logits [V] of which the mass of siblings is taken; softmax gives the conditional distribution.

    The last token of a sibling that the row equals so far is excluded whatever the masses say, so that rounding makes
    no row one of its siblings. Before that, where rounding leaves no token at all, they are as without siblings. Only
    where no other token exists (a cut that keeps one) a segment comes twice.

    Args:
      logits: [V] float32 of the distribution sampled from, -inf at tokens it cannot give.
      normaliser: [] their log-sum-exp.
      tokens: [W] int32 next token of each sibling.
      log_masses: [W] float32 see `Siblings`; -inf for those that the row differs from already.
      is_last: [W] bool whether that token ends the sibling.
    """
    is_equal = ~jnp.isneginf(log_masses)
    same = tokens[:, None] == tokens[None]
    lost = jnp.sum(jnp.where(same, jnp.exp(log_masses)[None], 0.0), axis=1)
    ends = jnp.any(same & (is_equal & is_last)[None], axis=1)
    now = logits[tokens]
    before = jnp.exp(now - normaliser)  # [W]
    left = jnp.where(ends | (lost > before * (1 - _ROUNDING)), 0.0, before - lost)
    reduced = logits.at[tokens].set(jnp.where(lost > 0, jnp.log(left) + normaliser, now))
    only_ends = logits.at[tokens].set(jnp.where(ends, -jnp.inf, now))
    found = jnp.where(jnp.isneginf(reduced.max()), only_ends, reduced)
    return jnp.where(jnp.isneginf(found.max()), logits, found)
