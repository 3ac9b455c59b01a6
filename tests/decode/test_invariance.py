"""Whole searches give the same tokens whatever the slots, their order, the page pool, the buckets and the layers' form.

The search is scripted: which nodes are expanded next hangs on the problem and its tree alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsearch_jax.decode import assign_pages
from tests.decode.trees import CONFIG, Trees, encode, random_prompts, settings
from tests.decode.trees import make_request as build_request

HOW = settings(num_samples=2, recompute=True, recompute_chunk=5, eos_ids=(3, 4))
PROMPTS = random_prompts(6, 9, 2, 5, seed=4)
STEPS, PICKS, K = 4, 2, HOW.num_samples
NODES = 1 + STEPS * PICKS * K
assign = jax.jit(assign_pages, static_argnames="num_pages")


@dataclasses.dataclass(frozen=True)
class Layout:
    num_slots: int
    order: tuple[int, ...]  # in which the problems enter free slots
    num_pages: int  # all nodes of all slots that may be expanded would like about 17 pages a slot
    buckets: tuple[int, ...] = (3,)
    together: bool = True  # both picks of a step in one call
    unroll: bool = False


class Tree:
    """The nodes of one problem: parent, tokens (the first `length`) and log-probs; node 0 is the root."""

    def __init__(self, problem):
        self.rng = np.random.default_rng(problem)
        self.key = jax.random.fold_in(jax.random.key(11), problem)
        self.nodes = [(None, None, None, 0)]

    def path(self, node):
        return [] if node == 0 else [*self.path(self.nodes[node][0]), node]

    def picks(self):
        """Two different open nodes, or the root twice: children are added, never used up."""
        can = [i for i, (_, tokens, _, length) in enumerate(self.nodes) if tokens is None or length == 4]
        can = [i for i in can if len(self.path(i)) < 3 and (i == 0 or self.nodes[i][1][-1] not in HOW.eos_ids)]
        return [int(self.rng.choice(can[-3:])) for _ in range(PICKS)]


def run(layout):
    """{problem: nodes} and the number of tokens encoded again."""
    how = dataclasses.replace(HOW, unroll_layers=layout.unroll)
    B, waiting = layout.num_slots, list(layout.order)
    engine = Trees(how, [PROMPTS[layout.order[0]]] * B, pages_per_slot=0)
    engine.pages = type(engine.pages)(
        *(jnp.zeros((2, layout.num_pages, 2, 4, 6)),) * 2, engine.pages.prompt_keys, engine.pages.prompt_values
    )
    rng = np.random.default_rng(layout.num_pages)
    done, trees, steps, page_of = {}, [None] * B, [0] * B, np.full((B, NODES), -1, np.int32)
    recomputed = 0
    while waiting or any(trees):
        refresh = np.zeros(B, bool)
        for slot in range(B):
            if trees[slot] is None and waiting:
                problem = waiting.pop(0)
                trees[slot], steps[slot], refresh[slot] = Tree(problem), 0, True
                done[problem], engine.prompts[slot] = trees[slot], PROMPTS[problem]
        if refresh.any():
            tokens = np.stack([np.pad(p, (0, 9 - len(p))) for p in engine.prompts]).astype(np.int32)
            lengths = jnp.array([len(p) for p in engine.prompts])
            engine.pages = encode(
                CONFIG, engine.params, engine.pages, jnp.array(tokens), lengths, jnp.array(refresh), chunk_size=4
            )
        picks = [tree.picks() if tree else [0] * PICKS for tree in trees]
        for pick in [slice(0, PICKS)] if layout.together else [slice(i, i + 1) for i in range(PICKS)]:
            rows = [(slot, node) for slot in range(B) for node in picks[slot][pick]]
            recomputed += call(engine, layout, trees, rows, page_of, rng)
        for slot in range(B):
            steps[slot] += trees[slot] is not None
            if trees[slot] is not None and steps[slot] == STEPS:
                trees[slot], page_of[slot] = None, -1
    return {problem: tree.nodes for problem, tree in done.items()}, recomputed


def call(engine, layout, trees, rows, page_of, rng):
    """One call of the engine; priorities are noise, so that any nodes at all lose their pages."""
    paths = [trees[slot].path(node) if trees[slot] else [] for slot, node in rows]
    bucket = next(b for b in layout.buckets if b >= max(map(len, paths)))
    wanted, depth = np.zeros(page_of.shape, bool), np.zeros(page_of.shape, np.int32)
    children, used = [], [len(tree.nodes) if tree else 0 for tree in trees]
    for (slot, _), path in zip(rows, paths):
        wanted[slot, path] = True
        children.append(range(used[slot], used[slot] + K))
        if trees[slot]:
            used[slot] += K
            wanted[slot, children[-1]] = len(path) < 2
    priority = np.where(rng.random(page_of.shape) < 0.1, -np.inf, rng.normal(size=page_of.shape)).astype(np.float32)
    after = np.asarray(assign(page_of, priority, wanted, depth, num_pages=layout.num_pages)[0])
    keep_pages = np.full((len(rows), bucket), -1)
    child_pages, lists = np.full((len(rows), K), -1), []
    for row, ((slot, _), path) in enumerate(zip(rows, paths)):
        had, has = page_of[slot], after[slot]
        lists.append([(has[n] if has[n] == had[n] else -1, trees[slot].nodes[n][1]) for n in path])
        keep_pages[row, : len(path)] = [has[n] if has[n] != had[n] else -1 for n in path]
        if trees[slot]:
            child_pages[row] = has[list(children[row])]
    keys = [[jax.random.fold_in((trees[s] or Tree(0)).key, c) for c in ids] for (s, _), ids in zip(rows, children)]
    request = build_request(
        engine.prompts, lists, bucket, engine.settings, child_pages=child_pages, keep_pages=keep_pages,
        row_keys=jnp.stack([jnp.stack(row) for row in keys]), slots=[slot for slot, _ in rows],
        active=[trees[slot] is not None for slot, _ in rows],
    )  # fmt: skip
    segments = engine.serve(request)
    for row, (slot, node) in enumerate(rows):
        for k in range(K if trees[slot] else 0):
            trees[slot].nodes.append(
                (node, segments.tokens[row, k], segments.log_probs[row, k], int(segments.lengths[row, k]))
            )
    page_of[:] = after
    return int(np.sum(engine.recomputed))


@pytest.fixture(scope="module")
def everything_resident():
    nodes, recomputed = run(Layout(4, (0, 1, 2, 3), num_pages=4 * NODES))
    # Random priorities of -inf take some pages back even here.
    assert max(len(tree) for tree in nodes.values()) == NODES
    assert {length for tree in nodes.values() for *_, length in tree} >= {2, 4}  # some end early
    return nodes, recomputed


@pytest.mark.parametrize(
    "layout",
    [
        Layout(2, (3, 1, 0, 2), num_pages=4, buckets=(1, 3), together=False),  # about a tenth of the need
        pytest.param(Layout(1, (2, 3, 0, 1), num_pages=0), marks=pytest.mark.slow),
        Layout(3, (1, 0, 3, 2), num_pages=9, unroll=True),
    ],
    ids=["few pages", "no pages", "unrolled"],
)
def test_tokens_are_the_same_in_any_layout(layout, everything_resident):
    want, few = everything_resident
    got, recomputed = run(layout)
    assert recomputed > few
    assert got.keys() == want.keys()
    for problem, nodes in want.items():
        for node, (a, b) in enumerate(zip(got[problem], nodes, strict=True)):
            assert (a[0], a[3]) == (b[0], b[3])
            if node:
                np.testing.assert_array_equal(a[1], b[1])
                np.testing.assert_allclose(a[2], b[2], atol=1e-4)
