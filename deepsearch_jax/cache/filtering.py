"""Which problems a round works on, and with what (DeepSearch, arXiv 2509.25454, Eq. 8-9 and 12)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class FilterSettings:
    """The hard subset and how a group is filled."""

    num_samples: int = 4  # K, direct samples per problem of the filter; costs that many rollouts per problem and round
    threshold: float = 0.25  # delta: a problem is hard if its success rate is below this
    easy_share: float = 0.0  # share of the other problems kept all the same; without any, easy ones are forgotten
    min_direct: int = 1  # direct rollouts a group gets at the least, however many solutions are cached

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples={self.num_samples} must be at least 1")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must be in (0, 1]: a success rate has to fall below it")
        if not 0 <= self.easy_share <= 1:
            raise ValueError(f"easy_share={self.easy_share} must be in [0, 1]")
        if self.min_direct < 0:
            raise ValueError(f"min_direct={self.min_direct} must be at least 0")


class GroupFill(NamedTuple):
    """num_cached [] int32 cached solutions used, num_direct [] int32 direct rollouts that complete the group."""

    num_cached: jax.Array
    num_direct: jax.Array


def is_hard(num_correct: jax.Array, num_samples: jax.Array | int, threshold: float) -> jax.Array:
    """Pass rate below delta (Eq. 8): [...] int32 counts to [...] bool. A problem without samples is not hard.

    With the paper's K = 4 and delta = 25 % only problems without any correct sample are hard.
    """
    num_samples = jnp.asarray(num_samples)
    # A correctly rounded quotient equals the rounded threshold exactly where the true rate equals it.
    rate = num_correct / jnp.maximum(num_samples, 1).astype(jnp.float32)
    return (num_samples > 0) & (rate < jnp.float32(threshold))


def keep_easy(key: jax.Array, problem_ids: jax.Array, easy_share: float) -> jax.Array:
    """Draws which easy problems stay: [X] int32 ids to [X] bool, each with chance `easy_share`.

    A problem's draw depends on the key and its id alone, never on its place or on the number of problems.
    """
    draw = jax.vmap(lambda problem_id: jax.random.uniform(jax.random.fold_in(key, problem_id)))
    return draw(problem_ids) < easy_share


def next_subset(
    key: jax.Array,
    problem_ids: jax.Array,
    num_correct: jax.Array,
    num_samples: jax.Array,
    in_subset: jax.Array,
    settings: FilterSettings,
) -> jax.Array:
    """Problems of the next round (Eq. 9): the hard ones of the present subset, and a share of its easy ones.

    Args:
      key: typed PRNG key of the round, read only if `easy_share` > 0.
      problem_ids: [X] int32.
      num_correct, num_samples: [X] int32 results of the filter's direct samples under the present policy.
      in_subset: [X] bool problems of the present round (Eq. 8 starts with all).
    Returns: [X] bool.
    """
    chosen = is_hard(num_correct, num_samples, settings.threshold)
    if settings.easy_share > 0:
        chosen |= (num_samples > 0) & keep_easy(key, problem_ids, settings.easy_share)
    return in_subset & chosen


def subset_indices(chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[X] bool to ([X] int32 indices of the chosen in order, -1 after the last; [] int32 how many)."""
    count = jnp.sum(chosen, dtype=jnp.int32)
    order = jnp.argsort(~chosen, stable=True).astype(jnp.int32)
    return jnp.where(jnp.arange(chosen.shape[0]) < count, order, -1), count


def group_fill(num_cached: jax.Array, group_size: int, min_direct: int = 1) -> GroupFill:
    """How many cached solutions and direct rollouts make a group (Eq. 12): the more cached, the fewer direct.

    Args:
      num_cached: [...] int32 solutions in the cache; 0 gives a group of direct rollouts only.
      group_size: G.
      min_direct: direct rollouts at the least; a group of cached solutions alone has nothing to compare them with.
    Raises:
      ValueError: min_direct does not fit into the group.
    """
    if not 0 <= min_direct <= group_size:
        raise ValueError(f"min_direct={min_direct} must be between 0 and the group_size={group_size}")
    used = jnp.minimum(num_cached, group_size - min_direct)
    return GroupFill(used, group_size - used)


def choose_cached(key: jax.Array, count: jax.Array, num_used: jax.Array, paths_per_problem: int) -> jax.Array:
    """Which of a problem's cached solutions a group uses: a uniform choice by key if there are more than fit.

    Args:
      key: typed PRNG key of (run, round, problem).
      count: [] int32 solutions in the cache, in rows 0..count-1.
      num_used: [] int32 of `group_fill`, <= count.
      paths_per_problem: P.
    Returns: [P] int32 rows in ascending order, -1 after the num_used-th.
    """
    rows = jnp.arange(paths_per_problem)
    # Rows past the count come last whatever they drew.
    draws = jnp.where(rows < count, jax.random.uniform(key, (paths_per_problem,)), 2.0)
    rank = jnp.argsort(jnp.argsort(draws))
    indices, _ = subset_indices((rank < num_used) & (rows < count))
    return indices
