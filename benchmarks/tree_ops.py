"""Time of one jitted search step for a batch of trees, against plain Python objects doing the same.

`python -m benchmarks.tree_ops` grows B trees with a scripted engine (nothing is decoded; lengths, log-probs, ends and
verdicts are drawn) from the root until their slots are used up, half full on average, and times every step: expansion
bookkeeping, choice of the terminal, backup, selection. The plain objects (`tests.tree.oracle`) grow some of the same
trees from the same draws in the same run. Searches that finish early would make steps cheap, so the number of
trajectories is out of reach. The last line is one JSON object: `value` is the median over the steps of the first case
(a step costs the same however full the trees are), `ratio` the objects' mean divided by it, both per tree and step.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from deepsearch_jax.tree import SearchSettings, SearchStatus, batched_search_step, init_tree
from deepsearch_jax.types import Outcome, Segments
from tests.tree.oracle import Child, Search

END_PROBABILITY = 0.15  # of a segment; with 8 children nearly every second expansion meets a terminal
CORRECT_PROBABILITY = 0.1  # of a terminal
CASES: dict[str, dict] = {
    "default": {},
    "entropy_log": {"frontier_entropy_weight": 0.4, "depth_bonus": "log"},
    "any_node": {"force_to_frontier": False},
    "uct": {"backtrace": "uct"},
    "lazy": {
        "expansion": "lazy",
        "picks_per_step": 2,
        "frontier_entropy": "path",
        "frontier_entropy_weight": -3.0,
        "frontier_depth_weight": 0.5,
    },
}


class Draws:
    """What the engine samples and the verifier says at every step of every tree."""

    def __init__(self, num_steps: int, batch: int, settings: SearchSettings) -> None:
        self.segment_length = settings.segment_length
        cursors = settings.picks_per_step, settings.children_per_expansion
        generator, shape = np.random.default_rng(0), (num_steps, batch, *cursors)
        self.is_eos = generator.random(shape) < END_PROBABILITY
        drawn = generator.integers(1, self.segment_length, shape)
        self.lengths = np.where(self.is_eos, drawn, self.segment_length).astype(np.int32)
        self.is_correct = generator.random(shape) < CORRECT_PROBABILITY
        self.log_prob = -generator.gamma(2.0, 0.25, shape).astype(np.float32)

    def arrays(self, step: int) -> tuple[Segments, jax.Array]:
        """One step as device arrays, Segments [B, F, C, S] and outcomes [B, F, C]."""
        in_segment = np.arange(self.segment_length) < self.lengths[step][..., None]
        log_probs = np.where(in_segment, self.log_prob[step][..., None], np.float32(0))
        tokens = np.where(in_segment, np.int32(7), np.int32(0))
        outcomes = np.where(self.is_correct[step], Outcome.CORRECT, Outcome.INCORRECT).astype(np.int32)
        return jax.device_put(
            (Segments(tokens, self.lengths[step], log_probs, log_probs.copy(), self.is_eos[step]), outcomes)
        )

    def objects(self, step: int, number: int) -> list[list[Child]]:
        """One step of one tree as the plain objects read it, by cursor."""
        at = (step, number)
        drawn = zip(self.lengths[at], self.log_prob[at], self.is_eos[at], self.is_correct[at])
        return [
            [
                Child([float(log_prob)] * int(length), bool(is_eos), "correct" if is_correct else "incorrect")
                for length, log_prob, is_eos, is_correct in zip(*rows)
            ]
            for rows in drawn
        ]


def time_arrays(draws: Draws, batch: int, num_steps: int, settings: SearchSettings) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each batched step [num_steps] and the node count of each tree at the end."""
    step = jax.jit(batched_search_step, static_argnames="settings", donate_argnames="trees")
    grow = jax.jit(lambda: jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape)), init_tree(settings)))
    keys = jax.random.split(jax.random.key(0), batch)
    jax.block_until_ready(step(grow(), *draws.arrays(0), keys, settings=settings))  # compiles
    trees, seconds = grow(), []
    for number in range(num_steps):
        inputs = jax.block_until_ready(draws.arrays(number))
        jax.block_until_ready(trees)
        start = time.perf_counter()
        trees = jax.block_until_ready(step(trees, *inputs, keys, settings=settings))
        seconds.append(time.perf_counter() - start)
    running = np.asarray(trees.status) == SearchStatus.RUNNING
    print(
        f"  {running.sum()} of {batch} trees still open, {np.asarray(trees.num_credited).mean():.0f} terminals credited"
    )
    return np.array(seconds), np.asarray(trees.num_nodes)


def time_objects(draws: Draws, count: int, num_steps: int, settings: SearchSettings) -> tuple[float, np.ndarray]:
    """Mean seconds per tree and step of the plain objects over the first `count` trees, and their node counts.

    Processor time: one thread that waits for nothing, so that other work on the machine does not flatter the ratio.
    """
    searches, seconds, steps = [Search(settings) for _ in range(count)], 0.0, 0
    for step in range(num_steps):
        for number, search in enumerate(searches):
            if search.status != "RUNNING":
                continue
            children = draws.objects(step, number)
            start = time.process_time()
            search.step(children)
            seconds += time.process_time() - start
            steps += 1
    return seconds / steps, np.array([len(search.nodes) for search in searches])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256, help="trees")
    parser.add_argument("--width", type=int, default=8, help="children per expansion")
    parser.add_argument("--capacity", type=int, default=1536, help="node slots per tree")
    parser.add_argument("--segment_length", type=int, default=256, help="tokens per segment")
    parser.add_argument("--object_trees", type=int, default=4, help="trees the plain objects grow")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    results = []
    for name in options.cases:
        settings = SearchSettings(
            expansion_width=options.width,
            capacity=options.capacity,
            segment_length=options.segment_length,
            num_trajectories=options.capacity,
            **CASES[name],
        )
        num_steps = (options.capacity - 1) // (settings.picks_per_step * settings.children_per_expansion)
        print(f"{name}: {num_steps} steps of {options.batch} trees", flush=True)
        draws = Draws(num_steps, options.batch, settings)
        seconds, sizes = time_arrays(draws, options.batch, num_steps, settings)
        object_seconds, object_sizes = time_objects(draws, options.object_trees, num_steps, settings)
        if not np.array_equal(sizes[: options.object_trees], object_sizes):
            raise SystemExit(
                f"the two forms grew other trees: {sizes[: options.object_trees]} and {object_sizes} nodes"
            )
        ours, theirs = float(np.median(seconds)) / options.batch * 1e3, object_seconds * 1e3
        results.append(
            {
                "case": name,
                "steps": num_steps,
                "value": round(ours, 5),
                "median_step_ms": round(float(np.median(seconds)) * 1e3, 3),
                "mean_step_ms": round(float(seconds.mean()) * 1e3, 3),
                "slowest_step_ms": round(float(seconds.max()) * 1e3, 3),
                "objects": round(theirs, 5),
                "ratio": round(theirs / ours, 1),
                "nodes_per_tree": float(sizes.mean()),
            }
        )
        print(" ", json.dumps(results[-1]), flush=True)
    first = results[0]
    sizes = {"batch": options.batch, "width": options.width, "capacity": options.capacity}
    sizes["segment_length"] = options.segment_length
    summary = {"name": "tree_ops", "value": first["value"], "unit": "ms per tree and step", "ratio": first["ratio"]}
    print(json.dumps({**summary, "case": first["case"], **sizes, "cases": results}))


if __name__ == "__main__":
    main()
