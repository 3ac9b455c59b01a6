"""The sampling half of a step: which problems are searched, which are cached, which are sampled directly."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from deepsearch_jax.cache import SolutionCache, choose_cached, group_fill, insert_many, lookup
from deepsearch_jax.data.problems import Problem
from deepsearch_jax.runtime.device import problem_keys
from deepsearch_jax.runtime.rollouts import Group, Purpose, Response, Sampler, SearchStatistics
from deepsearch_jax.runtime.settings import RunSettings
from deepsearch_jax.types import Outcome

_insert = jax.jit(insert_many, donate_argnums=(0,))


@dataclasses.dataclass
class StepRollouts:
    """What the sampling half of a step gives.

    Attributes:
      groups: one a problem, in the order of the problems.
      cache: with the solutions found in this step.
      statistics: of the searches.
      num_cached: problems whose cached paths were used.
      sampled: by problem id, the correct ones among the direct samples drawn in this step, and how many were drawn.
      entropy_weight: lambda2 of the searches, None where there was none.
    """

    groups: list[Group]
    cache: SolutionCache
    statistics: SearchStatistics
    num_cached: int
    sampled: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    entropy_weight: float | None = None


def sample_step(
    sampler: Sampler, params: Any, cache: SolutionCache, problems: Sequence[Problem], counters: tuple[int, int],
    settings: RunSettings, *, is_hard: Sequence[bool] = (),
    entropy_weight_of: Callable[[Sequence[Group]], float] | None = None,
) -> StepRollouts:  # fmt: skip
    """Groups of responses to the problems of one step.

    DeepSearch completes the cached solutions of a problem with direct rollouts (Eq. 11-12) and searches those without
    one: all of them, or as rounds.search_when says. The baselines sample all directly. A problem that comes twice in a
    round counts as cached the second time, while the paper, which visits a problem once a round, asks the filter first.

    Args:
      is_hard: of each problem; read where search_when is "hard".
      entropy_weight_of: lambda2 of the searches, given the direct groups that this step has sampled before them; by
        default search.frontier_entropy_weight.
    """
    if settings.method != "deepsearch":
        groups = sampler.direct(params, problems, settings.rounds.group_size, Purpose.DIRECT, counters)
        return StepRollouts(groups, cache, SearchStatistics(), 0)
    found = _cached_responses(sampler, cache, problems, counters, settings)
    num_cached = sum(map(bool, found))
    searched = [problem for problem, cached in zip(problems, found, strict=True) if not cached]
    direct = _direct_first(sampler, params, searched, counters, settings, set(_ids(problems, is_hard)))
    by_id = {group.problem.id: group for group in direct}
    samples: list[Group] = []
    if settings.rounds.search_when == "no_signal":
        samples = [group for group in direct if not group.num_correct]
        searched = [group.problem for group in samples]
    else:
        searched = [problem for problem in searched if problem.id not in by_id]
    groups, statistics, weight = [], SearchStatistics(), None
    if searched:
        weight = entropy_weight_of(direct) if entropy_weight_of else settings.search.frontier_entropy_weight
        groups, statistics = sampler.search(params, searched, counters, entropy_weight=weight, samples=samples or None)
    by_id |= {group.problem.id: group for group in groups}
    # Cached problems are sampled together with those that have as many cached paths: K is a static shape.
    for size in sorted({len(cached) for cached in found if cached}):
        alike = [(problem, cached) for problem, cached in zip(problems, found, strict=True) if len(cached) == size]
        num_direct = settings.rounds.group_size - size
        part = [problem for problem, _ in alike]
        fresh = (
            sampler.direct(params, part, num_direct, Purpose.DIRECT, counters)
            if num_direct
            else [Group(problem, sampler.task.prompt(problem), []) for problem in part]
        )
        direct += fresh
        for group, (problem, cached) in zip(fresh, alike, strict=True):
            by_id[problem.id] = dataclasses.replace(group, responses=[*cached, *group.responses])
    if settings.uses_cache:
        cache = _remember(sampler, cache, groups, counters[0], settings)
    sampled = {group.problem.id: (group.num_correct, len(group.responses)) for group in direct if group.responses}
    return StepRollouts([by_id[p.id] for p in problems], cache, statistics, num_cached, sampled, weight)


def _ids(problems: Sequence[Problem], chosen: Sequence[bool]) -> list[str]:
    return [problem.id for problem, is_chosen in zip(problems, chosen, strict=False) if is_chosen]


def _direct_first(
    sampler: Sampler, params: Any, problems: list[Problem], counters: tuple[int, int], settings: RunSettings,
    hard: set[str],
) -> list[Group]:  # fmt: skip
    """Groups of direct rollouts to those problems that search_when does not search at once."""
    if settings.rounds.search_when == "always":
        return []
    if settings.rounds.search_when == "hard":
        problems = [problem for problem in problems if problem.id not in hard]
    if not problems:
        return []
    size, probe = settings.rounds.group_size, settings.rounds.first_samples
    if settings.rounds.search_when != "no_signal" or probe == size:
        return sampler.direct(params, problems, size, Purpose.DIRECT, counters)
    groups = sampler.direct(params, problems, probe, Purpose.DIRECT, counters)
    mixed = [group.problem for group in groups if 0 < group.num_correct < len(group.responses)]
    if not mixed:
        return groups
    more = sampler.direct(params, mixed, size - probe, Purpose.FILL_UP, counters)
    added = {group.problem.id: group.responses for group in more}
    return [
        dataclasses.replace(group, responses=[*group.responses, *added.get(group.problem.id, [])]) for group in groups
    ]


@functools.partial(jax.jit, static_argnames=("group_size", "min_direct"))
def _choose(
    cache: SolutionCache, problem_keys_: jax.Array, ids: jax.Array, group_size: int, min_direct: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens [B, P, L] and lengths [B, P] of each problem's cached paths, and which to use: [B, P] rows, -1 behind."""

    def one(key: jax.Array, problem_id: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        paths = lookup(cache, problem_id)
        used = group_fill(paths.num_paths, group_size, min_direct).num_cached
        return paths.tokens, paths.lengths, choose_cached(key, paths.num_paths, used, cache.lengths.shape[1])

    return jax.vmap(one)(problem_keys_, ids)


def _cached_responses(
    sampler: Sampler, cache: SolutionCache, problems: Sequence[Problem], counters: tuple[int, int],
    settings: RunSettings,
) -> list[list[Response]]:  # fmt: skip
    """The cached correct paths that each problem's group starts with; empty lists for problems to be searched."""
    if not settings.uses_cache:
        return [[] for _ in problems]
    ids = np.array([problem.key for problem in problems], np.int32)
    keys = problem_keys(sampler.run_key, int(Purpose.CACHE), counters, ids)
    keys, ids = sampler.put_everywhere((keys, ids))
    tokens, lengths, rows = jax.device_get(
        _choose(cache, keys, ids, settings.rounds.group_size, settings.filter.min_direct)
    )
    return [
        [_response(sampler, tokens[i, row, : lengths[i, row]]) for row in rows[i] if row >= 0]
        for i in range(len(problems))
    ]


def _response(sampler: Sampler, tokens: np.ndarray) -> Response:
    return Response(
        tokens=tokens, segment_lengths=np.array([len(tokens)], np.int32), node_values=np.ones(1, np.float32),
        log_probs=None, reward=sampler.reward(Outcome.CORRECT), outcome=Outcome.CORRECT,
        text=sampler.task.tokenizer.decode(tokens.tolist()), origin="cache",
    )  # fmt: skip


def _remember(
    sampler: Sampler, cache: SolutionCache, groups: Sequence[Group], round_index: int, settings: RunSettings
) -> SolutionCache:
    """Puts correct paths of searches into the cache (Eq. 10); the next filter removes problems not hard any more."""
    solved = [group for group in groups if group.num_correct]
    if not solved:
        return cache
    _, _, num_pages, page_length = cache.tokens.shape
    # As many rows as a step can have, so that the shapes do not depend on luck; the other rows keep nothing.
    shape = (settings.rounds.problems_per_step, settings.search.num_trajectories)
    tokens = np.zeros((*shape, num_pages * page_length), np.int32)
    lengths, keep = np.zeros(tokens.shape[:2], np.int32), np.zeros(tokens.shape[:2], bool)
    for g, group in enumerate(groups):
        for m, response in enumerate(group.responses):
            tokens[g, m, : len(response.tokens)] = response.tokens
            lengths[g, m] = len(response.tokens)
            keep[g, m] = response.outcome == Outcome.CORRECT
    ids = np.full(shape[0], -1, np.int32)
    ids[: len(groups)] = [group.problem.key for group in groups]
    return _insert(cache, *sampler.put_everywhere((ids, tokens, lengths, keep, np.int32(round_index))))
