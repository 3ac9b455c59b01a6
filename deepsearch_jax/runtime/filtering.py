"""Which problems a round looks at and works on (Eq. 8-10), on the host's arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepsearch_jax.cache import FilterSettings, SolutionCache, is_hard, next_subset, remove
from deepsearch_jax.runtime.settings import RoundSettings


class Chosen(NamedTuple):
    """What direct samples of the candidates say.

    Attributes:
      subset: [N] bool, the problems of the round.
      num_correct: [N] int32, of the last direct samples of every problem; -1 where there were none.
      num_samples: [N] int32.
      passed: [M] int32 keys of the candidates that are not hard.
      num_hard: candidates that are.
      is_all: none was hard, and the round takes all of them.
    """

    subset: np.ndarray
    num_correct: np.ndarray
    num_samples: np.ndarray
    passed: np.ndarray
    num_hard: int
    is_all: bool


def candidate_pool(subset: np.ndarray, rounds: RoundSettings) -> np.ndarray:
    """[N] bool: the problems that the next round may take, of those of the last one or of all."""
    return np.ones(len(subset), bool) if rounds.refilter == "all" else subset


def draw_candidates(pool: np.ndarray, rounds: RoundSettings, seed: int, round_index: int) -> np.ndarray:
    """[C] numbers of the problems to sample, in order: the pool, or as many of it as may be looked at."""
    candidates = np.flatnonzero(pool)
    if 0 < rounds.max_candidates < len(candidates):
        draw = np.random.default_rng(np.random.SeedSequence((seed, round_index)))
        candidates = np.sort(draw.permutation(candidates)[: rounds.max_candidates])
    return candidates


def choose_problems(
    key: jax.Array, keys: np.ndarray, pool: np.ndarray, candidates: np.ndarray, correct: list[int],
    known: tuple[np.ndarray, np.ndarray], settings: FilterSettings,
) -> Chosen:  # fmt: skip
    """The problems of a round.

    Args:
      key: of the draw of the easy share.
      keys: [N] int32 of all problems.
      pool, candidates: as from the functions above.
      correct: right ones of `settings.num_samples` direct samples, of every candidate.
      known: [N] correct and [N] all of the last direct samples so far.
    """
    num_correct, num_samples = np.array(known[0]), np.zeros(len(keys), np.int32)
    num_correct[candidates] = correct
    num_samples[candidates] = settings.num_samples
    arrays = jnp.asarray(num_correct), jnp.asarray(num_samples)
    subset = np.asarray(next_subset(key, jnp.asarray(keys), *arrays, jnp.asarray(pool), settings))
    is_all = not subset.any()
    if is_all:  # rather than to work on nothing
        subset = np.isin(np.arange(len(keys)), candidates)
    hard = np.asarray(is_hard(*arrays, settings.threshold))[candidates]
    return Chosen(
        subset, num_correct, np.where(num_samples > 0, num_samples, known[1]),
        passed=keys[candidates][~hard], num_hard=int(hard.sum()), is_all=is_all,
    )  # fmt: skip


@jax.jit
def forget(cache: SolutionCache, problem_ids: jax.Array) -> SolutionCache:
    """The cache without problems that are not hard any more (Eq. 10); `problem_ids`: [M] int32 keys."""
    return jax.lax.scan(lambda carry, problem_id: (remove(carry, problem_id), None), cache, problem_ids)[0]
