"""Draws problems of a reasoning-gym dataset; run as `python -m deepsearch_jax.verify.gym_problems`, a request on stdin.

A process of its own with a fixed hash seed: some generators walk through sets of strings, and a run that goes on must
find the problems it began with. It also keeps the library's imports out of the training process. Answers go to stdout
as JSON lines; the line {"error": TEXT} ends a request that cannot be met.
"""

import difflib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

DRAWS_PER_PROBLEM, MORE_DRAWS = 20, 1000  # how long distinct questions are looked for


def open_dataset(name: str, options: dict[str, Any], seed: int, size: int) -> Any:
    """A dataset of the library.

    Raises:
      ValueError: no such dataset, or options that it does not have or take.
    """
    import dataclasses

    from reasoning_gym.factory import DATASETS, create_dataset

    if name not in DATASETS:
        nearest = difflib.get_close_matches(name, DATASETS, n=3)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"it has {', '.join(sorted(DATASETS))}"
        raise ValueError(f"reasoning-gym has no dataset {name!r}; {hint}")
    known = [field.name for field in dataclasses.fields(DATASETS[name][1]) if field.name not in ("seed", "size")]
    for option in options:
        if option not in known:
            raise ValueError(f"dataset {name!r} has no option {option!r}; it has {', '.join(known)}")
    try:
        return create_dataset(name, seed=seed, size=size, **options)
    except (AssertionError, ValueError, TypeError) as error:  # what the library's own checks raise
        raise ValueError(f"dataset {name!r} does not take the options {options}: {error}") from error


def draw(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Problems of all parts of a request, one record each: part, question, answer, entry (see `packed`).

    Questions are distinct within a part, and none of the first part (the held-out problems) occurs in another one.
    Raises: ValueError as `open_dataset`, or where the generator itself fails.
    """
    held_out: set[str] = set()
    for part, (seed, count) in enumerate(request["parts"]):
        limit = DRAWS_PER_PROBLEM * count + MORE_DRAWS
        dataset = open_dataset(request["dataset"], request["options"], seed, limit)
        seen: set[str] = set()
        for index in range(limit if count else 0):
            try:
                entry = dataset[index]
            except Exception as error:  # the border to a hundred generators: tell which one failed, and how
                raise ValueError(
                    f"dataset {request['dataset']!r} with options {request['options']} cannot make problem {index}: "
                    f"{type(error).__name__}: {error}"
                ) from error
            question, answer = str(entry["question"]), entry["answer"]
            if question in held_out or question in seen or not question.strip():
                continue
            seen.add(question)
            try:
                entry_text = json.dumps(packed(entry))
            except (ValueError, TypeError) as error:
                raise ValueError(f"dataset {request['dataset']!r} cannot be scored here: {error}") from error
            yield {
                "part": part,
                "question": question,
                "answer": None if answer is None else str(answer),
                "entry": entry_text,
            }
            if len(seen) == count:
                break
        if part == 0:
            held_out = seen


def packed(value: Any) -> Any:
    """A record of the library as JSON values that `unpacked` turns back: its scorers tell tuples from lists.

    Raises: ValueError for a value of another kind.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [packed(item) for item in value]
    if isinstance(value, tuple | set | frozenset):
        name = "tuple" if isinstance(value, tuple) else "set"
        return {name: [packed(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[packed(key), packed(item)] for key, item in value.items()]}
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return packed(value.tolist())
    raise ValueError(f"it holds a {type(value).__name__}, which cannot be handed to the process that scores")


def unpacked(value: Any) -> Any:
    """What `packed` was given."""
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    if isinstance(value, dict):
        ((name, items),) = value.items()
        if name == "dict":
            return {unpacked(key): unpacked(item) for key, item in items}
        return (tuple if name == "tuple" else set)(unpacked(item) for item in items)
    return value


def main() -> None:
    # Whatever the library prints goes nowhere; the answers keep the real stdout.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        for record in draw(json.load(sys.stdin)):
            answers.write(json.dumps(record) + "\n")
    except (ValueError, ImportError) as error:
        answers.write(json.dumps({"error": str(error), "is_missing": isinstance(error, ImportError)}) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
