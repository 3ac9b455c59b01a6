"""Samples of an evaluation on disk: every row says which problem and which weights it belongs to."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

from deepsearch_jax.data.problems import Problem, fingerprint
from deepsearch_jax.runtime.metrics import read_rows

_WAY_OUT = "choose another workdir, or remove that file to sample anew"


def origin(problem: Problem, weights: str) -> dict[str, str]:
    """What a row keeps of where its samples come from; `weights` as `weights_fingerprint` names them."""
    # Without the key: it may change as a set grows (two ids with one hash), and the samples are still of this problem.
    return {"problem": fingerprint([dataclasses.replace(problem, key=0)])[:16], "weights": weights}


def read_samples(path: pathlib.Path, problems: Iterable[Problem], weights: str) -> list[dict[str, Any]]:
    """Rows of these problems from the samples' file of a set; those of problems it does not name are left out.

    Raises:
      ValueError: samples of other weights or of another problem under the same id, or of a version that did not note
        either.
    """
    rows = read_rows(path)
    sampled = [row for row in rows if row["kind"] == "problem"]
    wanted = {problem.id: origin(problem, weights)["problem"] for problem in problems}
    if any("weights" not in row for row in sampled):
        raise ValueError(
            f"{path} is of a version that did not note which problems and weights its samples belong to; {_WAY_OUT}"
        )
    if others := {row["weights"] for row in sampled} - {weights}:
        raise ValueError(
            f"{path} holds samples of other weights ({min(others)}) than those at model.path now ({weights}); "
            f"{_WAY_OUT}"
        )
    if changed := [row["id"] for row in sampled if row["problem"] != wanted.get(row["id"], row["problem"])]:
        raise ValueError(
            f"{path} holds samples of other problems of the same name: question or answer of {changed[0]!r} (the first "
            f"of {len(changed)}) is not what it was; {_WAY_OUT}"
        )
    return _of_problems(rows, wanted)


def _of_problems(rows: list[dict[str, Any]], ids: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of some problems, and of the batches that one of them was in: a batch stands behind its problems."""
    kept, has_some, ids = [], False, set(ids)
    for row in rows:
        if row["kind"] == "problem" and row["id"] in ids:
            kept.append(row)
            has_some = True
        elif row["kind"] == "batch" and has_some:
            kept.append(row)
            has_some = False
    return kept
