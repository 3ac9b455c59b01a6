"""Replay buffers of the authors' code: one JSON object a file, from the id of a problem to its correct responses.

Their `register_replay_buffer.py` writes `{"zwhe99--DeepMath-103K-<row>": [text, ...], ...}`: texts without special
tokens, of the problem in that row of DeepMath-103K. The ids are those of `extra_info.index` in their parquet files.
"""

import collections
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from deepsearch_jax.data.problems import Problem
from deepsearch_jax.data.records import kind


def read_replay_buffer(path: str | pathlib.Path) -> dict[str, list[str]]:
    """Correct responses by problem id, empty and repeated ones left out.

    Raises:
      ValueError: no such file, or not an object of lists of texts.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"replay buffer {path} does not exist")
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:  # bad JSON and bad UTF-8
        raise ValueError(f"replay buffer {path} is not valid JSON ({error}); write it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"replay buffer {path} must hold an object of lists of responses, got {kind(content)}")
    for problem_id, responses in content.items():
        if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
            raise ValueError(
                f"replay buffer {path}: {problem_id!r} must have a list of response texts, got {kind(responses)}"
            )
    return {key: list(dict.fromkeys(filter(None, texts))) for key, texts in content.items()}


def match_problems(ids: Iterable[str], problems: Sequence[Problem]) -> dict[str, Problem]:
    """The problem that each id names, for those that name one.

    An id names the problem of that id; else the only one in the same row of a set of the same name, where
    capitals, punctuation and what stands before the name do not count: "zwhe99--DeepMath-103K-224" is
    "deepmath103k-224".
    """
    by_id = {problem.id: problem for problem in problems}
    by_row: dict[str, list[tuple[str, Problem]]] = collections.defaultdict(list)
    for problem in problems:
        name, row = _name_and_row(problem.id)
        if name:
            by_row[row].append((name, problem))
    found: dict[str, Problem] = {}
    for problem_id in ids:
        if problem_id in by_id:
            found[problem_id] = by_id[problem_id]
            continue
        name, row = _name_and_row(problem_id)
        alike = [p for other, p in by_row.get(row, []) if name and (name.endswith(other) or other.endswith(name))]
        if len(alike) == 1:
            found[problem_id] = alike[0]
    return found


def _name_and_row(problem_id: str) -> tuple[str, str]:
    """("zwhe99deepmath103k", "224") of "zwhe99--DeepMath-103K-224"; two empty texts for an id of another form."""
    match = re.fullmatch(r"(.*)-0*(\d+)", problem_id)
    return (re.sub(r"[^a-z0-9]", "", match[1].casefold()), match[2]) if match else ("", "")


def merge(buffers: Iterable[Mapping[str, list[str]]]) -> dict[str, list[str]]:
    """Responses of several buffers together; those of later files, which a later policy wrote, first."""
    merged: dict[str, list[str]] = {}
    for buffer in buffers:
        for problem_id, texts in buffer.items():
            merged[problem_id] = list(dict.fromkeys([*texts, *merged.get(problem_id, [])]))
    return merged
