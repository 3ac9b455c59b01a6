"""Trees for the viewer's tests: the real search on scripted segments, whole and with all its iterations."""

import jax
import numpy as np

from deepsearch_jax.data.problems import Problem
from deepsearch_jax.runtime.responses import Group, Response
from deepsearch_jax.runtime.tree_records import Lesson, TreeRecord, Words, path_to, record_of
from deepsearch_jax.runtime.watch import WatchedTree, _change, _frame
from deepsearch_jax.tree import SearchSettings, init_tree, search_step
from deepsearch_jax.types import Outcome, Segments

# Words end where a bar stands.
LINE = (
    "We| need| the| number| of| ways| so| let| x| =| 3|k| +| 1|.| Then| x|^2| leaves| remainder| 1|,| and| the| sum|"
    " is| at| most| 12|,| which| gives| k| =| 4|.| Check|:| 4| ·| 3| +| 1| =| 13| ✓|.| But| wait|,| the| case| k| =| 0|"
    " is| missing|.\n|Therefore| the| answer| is| \\boxed{|13|}|.\n"
)


class WordTokenizer:
    """One id a word; 0 ends a response."""

    eos_ids = (0,)

    def __init__(self, words):
        self.words = ["", *words]

    def decode(self, ids, skip_special=True):
        return "".join("<|end|>" if i == 0 and not skip_special else self.words[i] for i in ids)

    def token_bytes(self):
        return [word.encode() for word in self.words]


def line_tokenizer() -> WordTokenizer:
    return WordTokenizer(LINE.split("|"))


def grown_record(
    *, num_nodes: int, segment_length: int, max_depth: int, width: int = 4, num_trajectories: int = 24, seed: int = 0,
    end_share: float = 0.25, correct_share: float = 0.25, name: str = "residues-7",
    tokenizer: WordTokenizer | None = None,
) -> TreeRecord:  # fmt: skip
    """The record of a search that fills `num_nodes` nodes, or finds its trajectories before.

    Args:
      end_share: chance of a segment at half the depth or below to end its response.
      correct_share: of the ends; one in seven is cut off.
    """
    search = SearchSettings(
        segment_length=segment_length, max_depth=max_depth, expansion_width=width, capacity=num_nodes,
        num_trajectories=num_trajectories, frontier_value_weight=0.4, frontier_depth_weight=0.01,
    )  # fmt: skip
    tokenizer, draw = tokenizer or line_tokenizer(), np.random.default_rng(seed)
    step, frame = jax.jit(search_step, static_argnames="settings"), jax.jit(_frame, static_argnames="search")
    tree = init_tree(search)
    seen = jax.device_get(frame(tree, search=search))
    changes = [_change(None, seen)]
    while int(tree.status) == 0:
        depth = int(tree.depth[int(tree.current)])
        is_eos = (depth + 1 >= max_depth / 2) & (draw.random((1, width)) < end_share)
        is_eos |= depth + 1 >= max_depth
        short = draw.integers(segment_length // 2 + 1, segment_length + 1, (1, width))
        lengths = np.where(is_eos, short, segment_length)[..., None]
        places = np.arange(segment_length)
        # Consecutive words of the line from anywhere, then the end.
        tokens = 1 + (draw.integers(0, len(tokenizer.words), (1, width, 1)) + places) % (len(tokenizer.words) - 1)
        tokens = np.where((places >= lengths) | (is_eos[..., None] & (places == lengths - 1)), 0, tokens)
        unsure = draw.exponential(0.15, tokens.shape) * (draw.random(tokens.shape) < 0.35)
        log_probs = np.where(places < lengths, -unsure * draw.uniform(0.3, 4, (1, width, 1)), 0.0)
        kinds = [Outcome.CORRECT, Outcome.INCORRECT, Outcome.INCOMPLETE]
        verdicts = draw.choice(kinds, (1, width), p=[correct_share, 0.85 - correct_share, 0.15])
        lengths = lengths[..., 0]
        segments = Segments(
            tokens=tokens.astype(np.int32), lengths=lengths.astype(np.int32), log_probs=log_probs.astype(np.float32),
            sampling_log_probs=log_probs.astype(np.float32), is_eos=is_eos,
        )  # fmt: skip
        outcomes = np.where(is_eos, verdicts, Outcome.NONE).astype(np.int32)
        tree = step(tree, segments, outcomes, jax.random.key(0), settings=search)
        now = jax.device_get(frame(tree, search=search))
        changes.append(_change(seen, now))
        seen = now
    group = _group(WatchedTree(jax.device_get(tree), changes), tokenizer, name)
    # Every second wrong one is left out, as if it were garbled.
    is_taught = [r.reward > 0 or i % 2 == 1 for i, r in enumerate(group.responses)]
    advantages = [
        (r.node_values - 0.2).astype(np.float32) if taught else np.zeros(0, np.float32)
        for r, taught in zip(group.responses, is_taught, strict=True)
    ]
    lesson = Lesson([0 if taught else 1 for taught in is_taught], advantages)
    return record_of(group, lesson, {"step": 1, "round": 0}, Words(tokenizer))


def _group(watched: WatchedTree, tokenizer: WordTokenizer, name: str) -> Group:
    tree, responses = watched.tree, []
    for leaf in tree.credited[: int(tree.num_credited)]:
        path = path_to(tree.parent, int(leaf))
        tokens = np.concatenate([tree.tokens[node, : tree.segment_lengths[node]] for node in path])
        outcome = Outcome(int(tree.outcome[leaf]))
        responses.append(
            Response(
                tokens=tokens, segment_lengths=tree.segment_lengths[path], node_values=tree.value[path], log_probs=None,
                reward=1.0 if outcome == Outcome.CORRECT else -1.0, outcome=outcome, text="", origin="search",
            )
        )  # fmt: skip
    question = "How many residues of squares modulo 13 are there below 13, counted with x = 3k + 1?"
    problem = Problem(7, name, question, "13")
    prompt = [1 + i % (len(tokenizer.words) - 1) for i in range(24)]
    return Group(problem, prompt, responses, tree=watched)
