"""Problem sets: records with a question and a text answer, read from files and checked line by line.

A file is one of .jsonl, .jsonl.gz, .json (a list of objects) and .parquet. Every complaint names file, line and field
and is raised while loading, before any model is touched.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deepsearch_jax.data.hub import hub_files
from deepsearch_jax.data.messages import answer_of, question_of
from deepsearch_jax.data.records import expand_paths, file_stem, kind, read_records

_ANSWER_MARK = "####"  # GSM8K as published: the rationale, then "#### 72"
_MOST_RATIO = 1000  # of two weights: who waits for a rare entry draws that many others
_MAX_KEY = 2**31 - 1  # keys are int32 on the device; negative numbers mark free places there


@dataclass(frozen=True)
class Problem:
    """One question with its known answer.

    Attributes:
      key: integer in [0, 2^31), unique within a problem set and stable from run to run; random keys and the solution
        cache use it.
      id: the name the problem has in its file.
      question: the problem text.
      answer: the known answer as text, never empty; what follows the last "####" of the field, if any.
      source: where it comes from, for reports by source.
      metadata: the remaining columns.
      component: which entry of a mixture it comes from (ProblemSettings.weights); 0 where nothing is mixed.
    """

    key: int
    id: str
    question: str
    answer: str
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)
    component: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Columns:
    """Where a record keeps its fields: names tried in order, a dot steps into a nested object ("reward_model.gold").

    The default prefers `answer_latex`, because Minerva's plain answers write 4.5e33, which a LaTeX parser misreads, and
    ends with the names in verl's parquet files, whose question is a chat message.
    """

    question: tuple[str, ...] = ("question", "problem", "prompt")
    answer: tuple[str, ...] = ("answer_latex", "answer", "reward_model.ground_truth")
    id: tuple[str, ...] = ("id", "extra_info.index")  # a file without it gets FILE-ROW
    source: tuple[str, ...] = ("source", "data_source")  # a file without it gets the file's name

    def __post_init__(self) -> None:
        for name in ("question", "answer", "id", "source"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, (value,))
            elif not value or not all(isinstance(v, str) and v for v in value):
                raise ValueError(f"columns.{name}={value!r} must be a column name or a non-empty tuple of column names")


@dataclass(frozen=True)
class ProblemSettings:
    """Which problems a run reads."""

    # Files, glob patterns, or datasets of the Hugging Face hub (hf:OWNER/NAME[:PATTERN]), read in this order.
    paths: tuple[str, ...] = ()
    # One for each entry of paths: its share of the problems of every step, on any scale; () mixes nothing: each problem
    # comes as often as any other. Ids then begin with the entry's number, so that datasets may use the same ones.
    weights: tuple[float, ...] = ()
    columns: Columns = Columns()
    exclude_file: str = ""  # JSON file with lists of ids to leave out; "" leaves nothing out
    exclude_lists: tuple[str, ...] = ()  # names of the lists used; () means all of them
    limit: int = 0  # problems kept, the first ones in file order (of each entry, where they are mixed); 0 keeps all

    def __post_init__(self) -> None:
        if isinstance(self.paths, str):
            object.__setattr__(self, "paths", (self.paths,))
        if self.limit < 0:
            raise ValueError(f"limit={self.limit} must be at least 0; 0 keeps all problems")
        if self.weights and (len(self.weights) != len(self.paths) or not all(0 < w < math.inf for w in self.weights)):
            raise ValueError(
                f"weights={self.weights} must be one positive number for each of the {len(self.paths)} entries of paths"
            )
        if self.weights and max(self.weights) > _MOST_RATIO * min(self.weights):
            raise ValueError(
                f"weights={self.weights} differ by more than a factor of {_MOST_RATIO}; leave out the entry that would "
                "hardly ever come"
            )


def load_problem_set(settings: ProblemSettings) -> list[Problem]:
    """Reads the problems the settings name. Raises: ValueError as `load_problems`, `hub_files`, `read_exclude_ids`."""
    exclude: Collection[str] = ()
    if settings.exclude_file:
        exclude = read_exclude_ids(settings.exclude_file, settings.exclude_lists)
    entries = [hub_files(path) for path in settings.paths]
    if not settings.weights:
        files = [file for entry in entries for file in entry]
        return load_problems(files, columns=settings.columns, exclude_ids=exclude, limit=settings.limit)
    mixed: list[Problem] = []
    for component, entry in enumerate(entries):
        loaded = load_problems(entry, columns=settings.columns, exclude_ids=exclude, limit=settings.limit)
        mixed += [replace(p, id=f"{component}/{p.id}", component=component) for p in loaded]
    keys = problem_keys([problem.id for problem in mixed])
    return [replace(problem, key=key) for key, problem in zip(keys, mixed, strict=True)]


def load_problems(
    paths: str | pathlib.Path | Iterable[str | pathlib.Path],
    *,
    columns: Columns | Mapping[str, str | tuple[str, ...]] | None = None,
    exclude_ids: Collection[str] = (),
    limit: int = 0,
) -> list[Problem]:
    """Reads problem files in order.

    Args:
      paths: a file, a glob pattern, or several of them.
      columns: where the fields are; a mapping replaces only the entries it has.
      exclude_ids: rows left out before their other fields are looked at.
      limit: problems kept, 0 for all.
    Raises:
      ValueError: missing, empty, damaged or malformed file, missing column, text expected, duplicate id.
    """
    if not isinstance(columns, Columns):
        known = set(Columns.__dataclass_fields__)
        if unknown := sorted(set(columns or {}) - known):
            raise ValueError(f"unknown field {unknown[0]!r} in the column mapping; known fields are {sorted(known)}")
        columns = Columns(**dict(columns or {}))  # type: ignore[arg-type]
    exclude = frozenset(exclude_ids)
    first_place: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    files = expand_paths(paths)
    for path in files:
        for place, index, record in read_records(path):
            row = _parse_record(record, place, path, index, columns, exclude)
            if row is None:
                continue
            if row["id"] in first_place:
                raise ValueError(
                    f"{place}: id {row['id']!r} was already used at {first_place[row['id']]}; ids must be unique over "
                    "all files (round-1 files repeat rows of round 0: load only one of them)"
                )
            first_place[row["id"]] = place
            rows.append(row)
            if limit and len(rows) == limit:
                break
        if limit and len(rows) == limit:
            break
    if not rows:
        raise ValueError(f"all problems of {', '.join(map(str, files))} are excluded; shorten the list of excluded ids")
    keys = problem_keys([row["id"] for row in rows])
    return [Problem(key=key, **row) for key, row in zip(keys, rows)]


def _parse_record(
    record: Any, place: str, path: pathlib.Path, index: int, columns: Columns, exclude: frozenset[str]
) -> dict[str, Any] | None:
    """Fields of one problem, or None if its id is excluded."""
    if not isinstance(record, dict):
        raise ValueError(f"{place}: expected an object with named fields, got {kind(record)}")
    stem = file_stem(path)
    id_column, id_value = _find(record, columns.id)
    if id_value is None:
        if columns.id != Columns.id:
            raise ValueError(f"{place}: no field {_names(columns.id)}; the record has {_names(record)}")
        id_value = f"{stem}-{index}"
    elif isinstance(id_value, int) and not isinstance(id_value, bool):
        id_value = str(id_value)
    if not isinstance(id_value, str) or not id_value:
        raise ValueError(f"{place}: field {id_column!r} must be text or a whole number, got {kind(id_value)}")
    if id_value in exclude:
        return None
    source_column, source = _find(record, columns.source)
    if source is None:
        source = stem
    used = {id_column, source_column}
    fields: dict[str, Any] = {"id": id_value, "source": _text(source, place, source_column)}
    for name in ("question", "answer"):
        column, value = _find(record, getattr(columns, name))
        if column is None:
            wanted = _names(getattr(columns, name))
            raise ValueError(f"{place}: no field {wanted} for the {name}; the record has {_names(record)}")
        value = question_of(value, place) if name == "question" else answer_of(value)
        fields[name] = _text(value, place, column)
        if name == "answer":
            fields[name] = fields[name].rpartition(_ANSWER_MARK)[2].strip()
        if not fields[name].strip():
            raise ValueError(f"{place}: field {column!r} is empty; mend the row or exclude its id {id_value!r}")
        used.add(column)
    fields["metadata"] = {k: v for k, v in record.items() if k not in used}
    return fields


def _find(record: Mapping[str, Any], names: Sequence[str]) -> tuple[str | None, Any]:
    """First of the names that has a value in the record, with it; else the first that is there but null, or None."""
    null_column = None
    for name in names:
        value: Any = record
        for part in [name] if name in record else name.split("."):
            if not isinstance(value, dict) or part not in value:
                break
            value = value[part]
        else:
            if value is not None:
                return name, value
            null_column = null_column or name
    return null_column, None


def _text(value: Any, place: str, column: str | None) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place}: field {column!r} must be text, got {kind(value)}; write it in quotation marks")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # a lone surrogate such as "\\ud800" would crash the tokenizer later
        raise ValueError(f"{place}: field {column!r} holds a character that is not valid Unicode ({error})") from error
    return value


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(n) for n in names) or "no fields"


def problem_keys(ids: Sequence[str]) -> list[int]:
    """Distinct keys in [0, 2^31) for distinct ids: a hash of the id, so a key survives additions to the set.

    Among 20,000 ids two hashes collide in one set out of ten. The id that sorts later is then hashed again with a salt,
    whatever the order of the ids.
    """
    if len(set(ids)) != len(ids):
        raise ValueError("problem ids must be unique to get distinct keys")
    keys: dict[str, int] = {}
    taken: set[int] = set()
    for name in sorted(ids):
        salt = 0
        while (key := _hash31(name, salt)) in taken:
            salt += 1
        keys[name] = key
        taken.add(key)
    return [keys[name] for name in ids]


def _hash31(text: str, salt: int = 0) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=4, salt=salt.to_bytes(16, "big")).digest()
    return int.from_bytes(digest, "big") & _MAX_KEY


def read_exclude_ids(path: str | pathlib.Path, lists: Collection[str] = ()) -> frozenset[str]:
    """Ids to leave out, from a JSON object of named lists of ids (or objects whose keys are the ids).

    Args:
      path: the file; names that begin with "_" are remarks.
      lists: names of the lists wanted; empty means all.
    Raises:
      ValueError: missing or malformed file, or a list it does not have.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"exclude file {path} does not exist")
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"exclude file {path} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"exclude file {path} must hold an object of named lists, got {kind(content)}")
    known = [name for name in content if not name.startswith("_")]
    if missing := [name for name in lists if name not in known]:
        raise ValueError(f"exclude file {path} has no list {missing[0]!r}; it has {_names(known)}")
    ids: set[str] = set()
    for name in lists or known:
        entries = content[name]
        if not isinstance(entries, list | dict) or not all(isinstance(entry, str) for entry in entries):
            raise ValueError(f"exclude file {path}: {name!r} must be a list of ids, got {kind(entries)}")
        ids.update(entries)
    return frozenset(ids)


def fingerprint(problems: Iterable[Problem]) -> str:
    """Hash of what the problems say and of their order; tells whether a saved position still fits the problem set."""
    digest = hashlib.sha256()
    for p in problems:
        digest.update(json.dumps([p.key, p.id, p.question, p.answer]).encode() + b"\n")
    return digest.hexdigest()


def fingerprint_tokens(prompts: Iterable[Sequence[int]]) -> str:
    """Hash of prompts as tokens; tells whether tokenizer and chat template are still those of a saved position."""
    digest = hashlib.sha256()
    for tokens in prompts:
        digest.update(json.dumps(list(map(int, tokens))).encode() + b"\n")
    return digest.hexdigest()


def split_problems(problems: Sequence[Problem], num_validation: int, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Holds out `num_validation` problems: (training, validation), both in the given order.

    The choice depends on seed and ids alone, so neither reordering the file nor adding problems reshuffles it.
    """
    if not 0 <= num_validation < len(problems):
        raise ValueError(
            f"num_validation={num_validation} of {len(problems)} problems leaves nothing to train on; "
            f"choose a number from 0 to {len(problems) - 1}"
        )

    def rank(problem: Problem) -> tuple[bytes, str]:
        return hashlib.blake2b(f"{seed}\n{problem.id}".encode(), digest_size=8).digest(), problem.id

    held_out = {p.id for p in sorted(problems, key=rank)[:num_validation]}
    return [p for p in problems if p.id not in held_out], [p for p in problems if p.id in held_out]
