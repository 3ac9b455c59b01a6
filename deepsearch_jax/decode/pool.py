"""Which nodes hold the pages of the pool: array book-keeping, no keys or values."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class _Choice(NamedTuple):
    """A choice under way: what is in already, what may still fill the rest, and how many places the rest has."""

    taken: jax.Array  # bool
    tied: jax.Array  # bool
    room: jax.Array  # [] int32


def assign_pages(
    page_of: jax.Array, priority: jax.Array, is_wanted: jax.Array, depth: jax.Array, num_pages: int
) -> tuple[jax.Array, jax.Array]:
    """Gives the pages to the nodes that are worth most; the others lose theirs.

    All nodes that hold a page or want one share the pool if they fit, else the best `num_pages` by priority, then by
    smaller depth, then by lower tree and slot. Who keeps a page keeps its number; newcomers get free pages, which hold
    nothing of theirs yet: in the next DecodeRequest a node's path page is its page if it had it before this call, else
    -1 with its new page in `keep_pages`; a node that is only being sampled has its new page in `child_pages`.
    Nothing is evicted from the middle of a path as long as no node has a higher priority than its ancestors.
    Args:
      page_of: [B, N] int32 page of each node of the shard's trees, -1 for none; no page twice.
      priority: [B, N] float32; -inf gives the page back in any case.
      is_wanted: [B, N] bool nodes without a page that would have use for one.
      depth: [B, N] int32.
      num_pages: pages of the pool, static; may be 0.
    Returns: page_of [B, N] int32 and [] int32 how many nodes lost a page although their priority is above -inf.
    """
    chex.assert_equal_shape([page_of, priority, is_wanted, depth])
    if not num_pages:
        return jnp.full_like(page_of, -1), jnp.zeros_like(page_of, shape=())
    shape, page_of = page_of.shape, page_of.ravel()
    is_useful = priority.ravel() > -jnp.inf
    had_page = page_of >= 0
    asks = (had_page | is_wanted.ravel()) & is_useful

    def choose(asks: jax.Array) -> jax.Array:
        choice = _Choice(jnp.zeros_like(asks), asks, jnp.zeros_like(page_of, shape=()) + num_pages)
        # The order of non-negative float32 is that of their bits; below zero it is the reverse.
        bits = jax.lax.bitcast_convert_type(jnp.where(priority == 0, 0, priority).astype(jnp.float32), jnp.int32)
        ranks = jnp.where(bits >= 0, bits, bits ^ jnp.int32(0x7FFFFFFF)).ravel()
        choice = _take_largest(choice, ranks)
        choice = _take_largest(choice, -depth.ravel())
        return choice.taken | (choice.tied & (jnp.cumsum(choice.tied) <= choice.room))

    holds = jax.lax.cond(asks.sum() > num_pages, choose, lambda asks: asks, asks)
    stays = holds & had_page
    page_is_free = jnp.ones_like(page_of, shape=num_pages, dtype=bool)
    page_is_free = page_is_free.at[jnp.where(stays, page_of, num_pages)].set(False, mode="drop")
    number_of_free = jnp.where(page_is_free, jnp.cumsum(page_is_free) - 1, num_pages)
    pages = jnp.arange(num_pages, dtype=page_of.dtype)
    free_pages = jnp.zeros_like(page_of, shape=num_pages).at[number_of_free].set(pages, mode="drop")
    newcomer = jnp.cumsum(holds & ~had_page) - 1  # there are at least as many free pages
    new_page = free_pages[jnp.clip(newcomer, 0, num_pages - 1)]
    result = jnp.where(stays, page_of, jnp.where(holds, new_page, -1))
    return result.reshape(shape), jnp.sum(had_page & is_useful & ~holds, dtype=jnp.int32)


def _take_largest(choice: _Choice, ranks: jax.Array) -> _Choice:
    """Takes all tied candidates above the rank at which the room ends; those at that rank stay tied.

    The rank is found by bisection, which on CPU is much faster than a sort. With room for all of them, all are taken.
    """

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # more candidates than room are >= low, no more than room are >= high (or above its end)
        middle = (low & high) + ((low ^ high) >> 1)  # the mean without overflow
        too_many = jnp.sum(choice.tied & (ranks >= middle)) > choice.room
        return jnp.where(too_many, middle, low), jnp.where(too_many, high, middle)

    ends = jnp.iinfo(jnp.int32)
    none = jnp.zeros_like(choice.room)
    low, _ = jax.lax.fori_loop(0, 32, halve, (none + ends.min, none + ends.max))
    above = choice.tied & (ranks > low)
    return _Choice(choice.taken | above, choice.tied & (ranks == low), choice.room - above.sum())
