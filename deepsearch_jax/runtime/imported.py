"""Solutions that a run starts with: replay buffers of the authors' code, verified anew, in the solution cache."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepsearch_jax.cache import SolutionCache, insert_many
from deepsearch_jax.data.problems import Problem
from deepsearch_jax.data.replay import match_problems, merge, read_replay_buffer
from deepsearch_jax.runtime.processes import exchange
from deepsearch_jax.runtime.tasks import CORRECT_FROM, Task

_CHUNK = 32  # problems put into the cache by one call; the arrays of a call are this times a problem's solutions

_insert = jax.jit(insert_many, donate_argnums=(0,))


class Imported(NamedTuple):
    """What became of the responses of replay buffers.

    Attributes:
      solutions: by problem, token ids with the end of the sequence.
      num_wrong: responses that this task's verdict is not right for.
      num_too_long: responses that do not fit into the cache's pages.
      num_unknown: problems of the buffers that are not among those of the run.
    """

    solutions: list[tuple[Problem, list[list[int]]]]
    num_wrong: int
    num_too_long: int
    num_unknown: int

    def line(self, paths: Sequence[str]) -> str:
        count = sum(len(responses) for _, responses in self.solutions)
        return (
            f"imported {count} solutions of {len(self.solutions)} problems from {', '.join(paths)}; left out: "
            f"{self.num_wrong} responses as wrong, {self.num_too_long} as too long, {self.num_unknown} problems that "
            "the run does not have"
        )


def read_solutions(
    paths: Sequence[str], task: Task, problems: Sequence[Problem], *, max_length: int, paths_per_problem: int
) -> Imported:
    """Reads, verifies and encodes the responses of replay buffers; at most `paths_per_problem` a problem, in order.

    Args:
      max_length: most tokens of a solution, the end of the sequence counted. Their texts have lost that token; a
        response that has just this many without it was cut off, and is left out.

    Raises:
      ValueError: a file that cannot be read, or none of the solutions can be used.
    """
    buffer = merge(read_replay_buffer(path) for path in paths)
    matched = match_problems(buffer, problems)
    items = [(problem, text) for problem_id, problem in matched.items() for text in buffer[problem_id]]
    by_problem: dict[str, list[list[int]]] = {}
    num_wrong = num_too_long = 0
    end = task.tokenizer.eos_ids[0]
    is_right = bytes(verdict.score >= CORRECT_FROM for verdict in task.score(items))
    if jax.process_count() > 1:
        is_right = exchange(is_right)[0]  # a verdict may run into its time limit in one process alone
    for (problem, text), right in zip(items, is_right, strict=True):
        tokens = [*task.tokenizer.encode(text), end]
        if not right:
            num_wrong += 1
        elif len(tokens) > max_length:
            num_too_long += 1
        elif len(kept := by_problem.setdefault(problem.id, [])) < paths_per_problem:
            kept.append(tokens)
    by_id = {problem.id: problem for problem in matched.values()}
    solutions = [(by_id[problem_id], kept) for problem_id, kept in by_problem.items() if kept]
    found = Imported(solutions, num_wrong, num_too_long, len(buffer) - len(matched))
    if not solutions:
        raise ValueError(
            f"cache.import_paths: nothing of {', '.join(paths)} can be used: of {len(buffer)} problems "
            f"{found.num_unknown} are not in this run, {num_wrong} responses are wrong here and {num_too_long} longer "
            f"than {max_length} tokens; give the buffer of these problem files (the ids must agree), or none"
        )
    return found


def import_solutions(
    cache: SolutionCache, paths: Sequence[str], task: Task, problems: Sequence[Problem], tell: Callable[[str], None]
) -> SolutionCache:
    """The cache with the solutions of replay buffers, as of round 0.

    Raises:
      ValueError: as `read_solutions`, or the cache has no room for so many problems.
    """
    capacity, num_paths, num_pages, page_length = cache.tokens.shape
    width = num_pages * page_length
    found = read_solutions(paths, task, problems, max_length=width, paths_per_problem=num_paths)
    tell(found.line(paths))
    if len(found.solutions) > capacity:
        raise ValueError(
            f"cache.capacity={capacity} has no room for the {len(found.solutions)} problems of cache.import_paths; "
            f"set cache.capacity={len(found.solutions)} or more"
        )
    for begin in range(0, len(found.solutions), _CHUNK):
        chunk = found.solutions[begin : begin + _CHUNK]
        ids = np.full(_CHUNK, -1, np.int32)
        tokens = np.zeros((_CHUNK, num_paths, width), np.int32)
        lengths = np.zeros((_CHUNK, num_paths), np.int32)
        for row, (problem, responses) in enumerate(chunk):
            ids[row] = problem.key
            for column, response in enumerate(responses):
                tokens[row, column, : len(response)], lengths[row, column] = response, len(response)
        cache = _insert(cache, ids, tokens, lengths, lengths > 0, jnp.int32(0))
    return cache
