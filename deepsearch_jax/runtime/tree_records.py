"""Trees as a run keeps them: what a group of responses was made of, as flat arrays that numpy alone can read.

One file holds the trees of one step: WORKDIR/trees/step_000010.npz, arrays "0.parent", "1.parent" and so on, and under
"facts" the rest as JSON. Nothing in it is pickled.
"""

import dataclasses
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepsearch_jax.data.tokenizers import Tokenizer
from deepsearch_jax.runtime.responses import Group
from deepsearch_jax.runtime.watch import Change
from deepsearch_jax.tree import NO_NODE, ROOT, SearchStatus

FORMAT = 1
FOLDER = "trees"
# What became of a trajectory, by number: `fates` of a record.
FATES = ("trained", "degenerate", "no signal", "not needed")
ORIGINS = ("search", "direct", "cache")


@dataclasses.dataclass
class TreeRecord:
    """One tree of N nodes; slots in order of creation, slot 0 is the root. Groups without a tree have depth 1.

    Attributes:
      facts: plain values: "step", "round", "problem" (its id), "question", "answer", "kind" ("search" or "direct"),
        "status" (why the search ended).
      parent, depth, visit_count, outcome, segment_lengths: [N] int32, as in `Tree`.
      is_terminal: [N] bool. origin: [N] int32 index into ORIGINS.
      value, mean_nll, path_entropy: [N] float32, as in `Tree`; NaN where log-probs are not known.
      credit: [N] int32 place in the order of credited terminals, NO_NODE at other nodes.
      tokens, log_probs: [sum of segment_lengths] int32 and float32 the segments one behind the other.
      prompt: [P] int32 tokens of the root.
      advantages: [N] float32 mean over the trained trajectories through the node, NaN where there is none.
      num_trained: [N] int32 trained trajectories through the node.
      rewards: [M] float32, fates: [M] int32 (index into FATES), leaves: [M] int32 of the trajectories.
      path_advantages: [sum of the leaves' depths] float32 of the nodes on each trajectory; NaN where it is not trained.
      frame_nodes, frame_credits: [T] int32 nodes and credited terminals after each iteration, the state before the
        first one in front. frame_cursors: [T, F] int32 nodes to be expanded next.
      change_ends: [T] int32 where the changes of a frame end; change_nodes [X] int32, change_values, change_scores [X]
        float32, change_visits [X] int32: numbers of the nodes that changed. Scores are of the frontier, NaN off it.
      vocabulary: [U] int32 ids in use; vocabulary_ends: [U] int32; vocabulary_bytes: [...] uint8 the UTF-8 bytes that
        each adds to a text; vocabulary_special: [U] bool, then the bytes are a name and no text.
    """

    facts: dict[str, Any]
    parent: np.ndarray
    depth: np.ndarray
    visit_count: np.ndarray
    outcome: np.ndarray
    segment_lengths: np.ndarray
    is_terminal: np.ndarray
    origin: np.ndarray
    value: np.ndarray
    mean_nll: np.ndarray
    path_entropy: np.ndarray
    credit: np.ndarray
    tokens: np.ndarray
    log_probs: np.ndarray
    prompt: np.ndarray
    advantages: np.ndarray
    num_trained: np.ndarray
    rewards: np.ndarray
    fates: np.ndarray
    leaves: np.ndarray
    path_advantages: np.ndarray
    frame_nodes: np.ndarray
    frame_credits: np.ndarray
    frame_cursors: np.ndarray
    change_ends: np.ndarray
    change_nodes: np.ndarray
    change_values: np.ndarray
    change_visits: np.ndarray
    change_scores: np.ndarray
    vocabulary: np.ndarray
    vocabulary_ends: np.ndarray
    vocabulary_bytes: np.ndarray
    vocabulary_special: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """All but the facts, by name."""
        return {name: getattr(self, name) for name in ARRAYS}


ARRAYS = tuple(field.name for field in dataclasses.fields(TreeRecord) if field.name != "facts")


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What an update took of a group.

    Attributes:
      fates: of each response, indices into FATES.
      advantages: of the nodes of each trained response, [D] float32; empty for the others.
    """

    fates: Sequence[int]
    advantages: Sequence[np.ndarray]


def record_of(group: Group, lesson: Lesson, facts: dict[str, Any], words: "Words") -> TreeRecord:
    """The record of one group.

    Args:
      facts: those of the step.
      words: texts of token ids.
    """
    problem = group.problem
    facts = {**facts, "problem": problem.id, "question": problem.question, "answer": problem.answer}
    nodes = _search_nodes(group) if group.tree is not None else _direct_nodes(group)
    status = "" if group.tree is None else SearchStatus(int(group.tree.tree.status)).name.lower()
    facts |= {"kind": "direct" if group.tree is None else "search", "status": status}
    prompt = np.asarray(group.prompt, np.int32)
    learnt = _learnt(nodes["parent"], nodes["depth"], nodes["leaves"], lesson)
    rewards = np.array([response.reward for response in group.responses], np.float32)
    texts = words.of(np.unique(np.concatenate([nodes["tokens"], prompt])))
    fates = np.asarray(lesson.fates, np.int32)
    return TreeRecord(facts=facts, prompt=prompt, rewards=rewards, fates=fates, **nodes, **learnt, **texts)


def _search_nodes(group: Group) -> dict[str, np.ndarray]:
    assert group.tree is not None
    tree, changes = group.tree.tree, group.tree.changes
    count = int(tree.num_nodes)
    lengths = np.asarray(tree.segment_lengths[:count], np.int32)
    is_used = np.arange(tree.tokens.shape[1]) < lengths[:, None]
    leaves = np.asarray(tree.credited[: int(tree.num_credited)], np.int32)
    if len(leaves) != len(group.responses):
        raise ValueError(f"{len(leaves)} credited terminals, but {len(group.responses)} responses")
    is_direct = (np.arange(count) > ROOT) & (np.arange(count) <= int(np.sum(tree.num_grafted)))
    names = ("parent", "depth", "visit_count", "outcome", "is_terminal", "value", "mean_nll", "path_entropy")
    floats = ("value", "mean_nll", "path_entropy")
    nodes = {n: np.asarray(getattr(tree, n)[:count], np.float32 if n in floats else None) for n in names}
    return {
        **nodes, "segment_lengths": lengths, "origin": is_direct.astype(np.int32), "credit": _credits(count, leaves),
        "tokens": np.asarray(tree.tokens[:count], np.int32)[is_used],
        "log_probs": np.asarray(tree.log_probs[:count], np.float32)[is_used], "leaves": leaves, **_frames(changes),
    }  # fmt: skip


def _direct_nodes(group: Group) -> dict[str, np.ndarray]:
    """Whole responses as the children of the root, with one frame that holds them all."""
    responses, count = group.responses, 1 + len(group.responses)
    log_probs = [
        np.full(len(r.tokens), np.nan, np.float32) if r.log_probs is None else np.asarray(r.log_probs, np.float32)
        for r in responses
    ]
    nll = np.array([0.0, *(-part.mean() if part.size else 0.0 for part in log_probs)], np.float32)
    rewards = [response.reward for response in responses]
    value = np.array([sum(rewards), *rewards], np.float32)
    visits = np.array([len(responses)] + [1] * len(responses), np.int32)
    leaves = np.arange(1, count, dtype=np.int32)
    everything = np.arange(count, dtype=np.int32)
    no_scores = np.full(count, np.nan, np.float32)
    nowhere = np.full(1, NO_NODE, np.int32)
    return {
        "parent": np.array([NO_NODE] + [ROOT] * len(responses), np.int32),
        "depth": np.minimum(everything, 1), "visit_count": visits,
        "outcome": np.array([0, *(int(r.outcome) for r in responses)], np.int32),
        "segment_lengths": np.array([0, *(len(r.tokens) for r in responses)], np.int32),
        "is_terminal": everything > 0,
        "origin": np.array([0, *(ORIGINS.index(r.origin) for r in responses)], np.int32),
        "value": value, "mean_nll": nll, "path_entropy": nll, "credit": _credits(count, leaves),
        "tokens": np.concatenate([np.zeros(0, np.int32), *(np.asarray(r.tokens, np.int32) for r in responses)]),
        "log_probs": np.concatenate([np.zeros(0, np.float32), *log_probs]), "leaves": leaves,
        **_frames([Change(count, count - 1, nowhere, everything, value, visits, no_scores)]),
    }  # fmt: skip


def _credits(count: int, leaves: np.ndarray) -> np.ndarray:
    credit = np.full(count, NO_NODE, np.int32)
    credit[leaves] = np.arange(len(leaves))
    return credit


def _frames(changes: Sequence[Change]) -> dict[str, np.ndarray]:
    return {
        "frame_nodes": np.array([change.num_nodes for change in changes], np.int32),
        "frame_credits": np.array([change.num_credited for change in changes], np.int32),
        "frame_cursors": np.stack([change.cursors for change in changes]),
        "change_ends": np.cumsum([len(change.nodes) for change in changes], dtype=np.int32),
        "change_nodes": np.concatenate([change.nodes for change in changes]),
        "change_values": np.concatenate([change.value for change in changes]),
        "change_visits": np.concatenate([change.visit_count for change in changes]),
        "change_scores": np.concatenate([change.scores for change in changes]),
    }


def _learnt(parent: np.ndarray, depth: np.ndarray, leaves: np.ndarray, lesson: Lesson) -> dict[str, np.ndarray]:
    """Advantages of the nodes, from those on the trained paths."""
    sums, counts = np.zeros(len(parent), np.float32), np.zeros(len(parent), np.int32)
    on_paths = [np.zeros(0, np.float32)]
    for leaf, advantages in zip(leaves.tolist(), lesson.advantages, strict=True):
        path = path_to(parent, leaf)
        on_paths.append(advantages if len(advantages) else np.full(int(depth[leaf]), np.nan, np.float32))
        if len(advantages):
            sums[path] += advantages
            counts[path] += 1
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.float32(np.nan)).astype(np.float32)
    return {"advantages": means, "num_trained": counts, "path_advantages": np.concatenate(on_paths)}


def path_to(parent: np.ndarray, node: int) -> list[int]:
    """The nodes from below the root to `node`."""
    path = []
    while node > ROOT:
        path.append(node)
        node = int(parent[node])
    return path[::-1]


class Words:
    """Texts of the token ids of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._bytes: list[bytes] | None = None

    def of(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The vocabulary fields of a record that uses these ids."""
        if self._bytes is None:
            try:
                self._bytes = self._tokenizer.token_bytes()
            except ValueError:  # a tokenizer of an unknown kind still says what a single id reads like
                self._bytes = []
        parts, special = [], []
        for number in ids.tolist():
            text = self._bytes[number] if number < len(self._bytes) else b""
            special.append(not text and bool(self._bytes))
            parts.append(text or self._tokenizer.decode([number], skip_special=False).encode())
        return {
            "vocabulary": np.asarray(ids, np.int32),
            "vocabulary_ends": np.cumsum([len(part) for part in parts], dtype=np.int32),
            "vocabulary_bytes": np.frombuffer(b"".join(parts), np.uint8),
            "vocabulary_special": np.array(special, bool),
        }


def path_of(folder: pathlib.Path, step: int) -> pathlib.Path:
    """The file of one step."""
    return folder / f"step_{step:06d}.npz"


def recorded_steps(folder: pathlib.Path) -> list[int]:
    """The steps that have a file, in order; files of other names are not ours."""
    names = (path.stem.removeprefix("step_") for path in folder.glob("step_*.npz"))
    return sorted({int(name) for name in names if name.isascii() and name.isdigit() and name == f"{int(name):06d}"})


def write_trees(path: pathlib.Path, records: Sequence[TreeRecord]) -> None:
    """Writes the trees of a step so that a reader sees the old file or the new one, never half of it."""
    header = json.dumps({"format": FORMAT, "trees": [record.facts for record in records]}).encode()
    arrays = {f"{i}.{name}": value for i, record in enumerate(records) for name, value in record.arrays().items()}
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, facts=np.frombuffer(header, np.uint8), **arrays)  # type: ignore[arg-type]
    os.replace(temporary, path)


def read_trees(path: pathlib.Path) -> list[TreeRecord]:
    """Reads the trees of a step.

    Raises:
      ValueError: the file is damaged or of another version.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("no zip archive")
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            header = json.loads(file["facts"].tobytes())
            written = header["format"]
            if written == FORMAT:
                return [
                    TreeRecord(facts=facts, **{name: file[f"{i}.{name}"] for name in ARRAYS})
                    for i, facts in enumerate(header["trees"])
                ]
    except (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as recorded trees ({error}); delete it to go without it") from error
    raise ValueError(
        f"{path} has trees of format {written}, this version reads {FORMAT}; use the version of the project that "
        "wrote it"
    )
