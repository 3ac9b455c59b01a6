"""Compares the update on packed trees with the one on a row for each response: loss, gradient, every metric.

`python -m tests.packed_equals_paths [--golden DIR]` goes through random trees and recorded searches under every loss
option and prints the largest relative differences; the exit code is 1 if one in float32 is past the tolerance. In
bfloat16 it prints the gap of the gradients beside that of two runs of the same responses in another order of rows and
in other micro-batches, which is what rounding alone does.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Nearly all of the time is compilation.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import jax
import jax.numpy as jnp
import numpy as np

from deepsearch_jax.objective import LossSettings, overlong_penalty
from deepsearch_jax.objective.settings import AGGREGATIONS
from deepsearch_jax.policy import ModelConfig, init_params, token_log_probs, tree_log_probs
from deepsearch_jax.training import (
    Batch,
    Paths,
    UpdateSettings,
    compute_log_probs,
    first_fit,
    init_train_state,
    pack_rows,
    token_tree,
    update,
)
from deepsearch_jax.types import PackedBatch, TokenBatch

TOLERANCE = 1e-5
DATA = pathlib.Path(__file__).parent / "data"
VOCABULARY = 61
UPDATE = UpdateSettings(learning_rate=1.0, warmup_steps=0, max_grad_norm=0, weight_decay=0)


@functools.cache
def log_prob_fn(config: ModelConfig):
    def of(params, *inputs):
        take = tree_log_probs if len(inputs) > 2 else token_log_probs
        return take(config, params, *inputs, chunk_size=128)

    return of


# ---------------------------------------------------------------------------------------------------------------- trees


def random_paths(seed: int, longest: int = 150) -> list[Paths]:
    """Problems whose responses branch at random depths; some are equal, some the beginning of others, one is empty."""
    rng = np.random.default_rng(seed)
    problems = []
    for _ in range(rng.integers(1, 4)):
        prompt = rng.integers(0, VOCABULARY, rng.integers(1, 12)).astype(np.int32)
        responses: list[np.ndarray] = []
        for _ in range(rng.integers(1, 9)):
            fresh = rng.integers(0, VOCABULARY, rng.integers(0 if len(responses) == 3 else 1, longest))
            if responses and rng.random() < 0.8:
                other = responses[rng.integers(len(responses))]
                shared = other[: rng.integers(0, len(other) + 1)]
                fresh = np.concatenate([shared, fresh[: rng.integers(0, max(longest - len(shared), 1))]])
            responses.append(fresh.astype(np.int32))
        problems.append(with_advantages(prompt, responses, rng))
    return problems


def with_advantages(prompt: np.ndarray, responses: Sequence[np.ndarray], rng: np.random.Generator) -> Paths:
    """Advantages that differ between the trajectories of a token, and along them; with a penalty for length."""
    lengths = np.array([len(response) for response in responses])
    limit = int(max(lengths.max(), 2))
    penalty = np.asarray(overlong_penalty(jnp.array(lengths), limit, limit // 2, 1.0))
    advantages = [
        np.where(rng.random(n) < 0.1, 0, rng.normal() + 0.3 * rng.normal(size=n) + penalty[m]).astype(np.float32)
        for m, n in enumerate(lengths)
    ]
    return Paths(prompt, responses, advantages, [None] * len(responses))


def recorded_paths(trace: dict) -> Paths:
    """The trajectories of a recorded search; its nodes' tokens are stand-ins, equal for the same node only."""
    nodes = trace["nodes"]
    rng = np.random.default_rng(trace["n_nodes"])
    drawn = [rng.integers(0, VOCABULARY, length).astype(np.int32) for length in nodes["valid_len"]]
    responses = [np.concatenate([drawn[slot] for slot in t["path_nodes"]]) for t in trace["trajectories"]]
    values = [np.repeat(t["values_raw"], [len(drawn[s]) for s in t["path_nodes"]]) for t in trace["trajectories"]]
    mean = np.mean([t["final_score"] for t in trace["trajectories"]])
    advantages = [(np.tanh(v) - mean).astype(np.float32) for v in values]
    return Paths(rng.integers(0, VOCABULARY, 9).astype(np.int32), responses, advantages, [None] * len(responses))


def recorded_problems(files: Sequence[pathlib.Path], at_least: int, longest: int) -> Iterator[tuple[str, list[Paths]]]:
    """Recorded searches with several trajectories of at most `longest` tokens, the ones that share most first."""
    found = []
    for file in files:
        for trace in json.loads(file.read_text())["traces"]:
            if len(trace["trajectories"]) > 1 and max(t["response_len"] for t in trace["trajectories"]) <= longest:
                paths = recorded_paths(trace)
                tree = token_tree(paths, LossSettings(), longest)
                found.append((len(tree) / paths.lengths.sum(), trace["id"], paths))
    for _, name, paths in sorted(found, key=lambda item: item[:2])[:at_least]:
        yield name, [paths]


# -------------------------------------------------------------------------------------------------------------- batches


def response_batch(problems: Sequence[Paths], width: int, num_rows: int, order: np.ndarray | None = None) -> TokenBatch:
    """One row a response, written here without the project's own packing."""
    rows = [(p.prompt, r, a) for p in problems for r, a in zip(p.responses, p.advantages)]
    rows = rows if order is None else [rows[index] for index in order]
    tokens, segment_ids = np.zeros((num_rows, width), np.int32), np.zeros((num_rows, width), np.int32)
    mask, advantages = np.zeros((num_rows, width), bool), np.zeros((num_rows, width), np.float32)
    for row, (prompt, response, advantage) in enumerate(rows):
        text = [*prompt, *response]
        tokens[row, : len(text)], segment_ids[row, : len(text)] = text, 1
        mask[row, len(prompt) : len(text)] = True
        advantages[row, len(prompt) : len(text)] = advantage
    return TokenBatch(tokens, segment_ids, mask, advantages, np.zeros_like(advantages))


def sampled_log_probs(batch: TokenBatch, params, config: ModelConfig, gap: float) -> TokenBatch:
    """Old log-probs, a sampler's and a reference policy's: they differ from the policy's by numbers that depend on the
    path alone, as theirs would."""
    log_probs = np.asarray(compute_log_probs(params, batch, log_prob_fn(config), UPDATE))

    def shifted(factor: int, spread: float) -> np.ndarray:
        salt = np.cumsum(np.asarray(batch.tokens, np.int64) * factor + 13, axis=1) % 1009 / 1009
        return np.where(batch.loss_mask, log_probs + spread * (salt - 0.5), 0).astype(np.float32)

    return batch.replace(
        old_log_probs=shifted(7919, gap), sampler_log_probs=shifted(6007, 0.8), reference_log_probs=shifted(4999, 1.2)
    )


def is_sampled(row: int) -> bool:
    """Whether the sampler told the log-probs of the response in a row; it does not for one in three."""
    return row % 3 != 2


def forget(problems: Sequence[Paths], batch: TokenBatch) -> TokenBatch:
    """NaN in the rows that are not sampled, but where another response to the problem begins with the same tokens."""
    sampled, row = np.array(batch.sampler_log_probs), 0
    for paths in problems:
        texts = [response.tolist() for response in paths.responses]
        told = {tuple(text[: n + 1]) for m, text in enumerate(texts) if is_sampled(row + m) for n in range(len(text))}
        for m, text in enumerate(texts):
            for n in range(len(text)):
                if tuple(text[: n + 1]) not in told:
                    sampled[row + m, len(paths.prompt) + n] = np.nan
        row += len(texts)
    return batch.replace(sampler_log_probs=sampled)


def packed_batch(
    problems: Sequence[Paths], batch: TokenBatch, settings: LossSettings, length: int, num_rows: int
) -> PackedBatch:
    """The same responses as trees, with the log-probs of the rows; the sampler's of rows that are sampled alone."""

    def packed(log_probs: np.ndarray | None, is_known=lambda row: True) -> PackedBatch:
        row, trees = 0, []
        for paths in problems:
            known = []
            for response in paths.responses:
                there = log_probs is not None and is_known(row)
                known.append(log_probs[row, len(paths.prompt) :][: len(response)] if there else None)
                row += 1
            trees.append(token_tree(dataclasses.replace(paths, log_probs=known), settings, batch.tokens.shape[1]))
        return pack_rows(trees, first_fit([len(tree) for tree in trees], length), num_rows, length)

    made = packed(batch.old_log_probs)
    if batch.sampler_log_probs is None:
        return made.replace(sampler_log_probs=None)
    return made.replace(
        sampler_log_probs=packed(batch.sampler_log_probs, is_sampled).sampler_log_probs,
        reference_log_probs=packed(batch.reference_log_probs).old_log_probs,
    )


def gradient_and_metrics(params, batch: Batch, config: ModelConfig, loss: LossSettings, settings=UPDATE, mesh=None):
    """Read off an update itself: AdamW's first mean of the gradient is (1 - b1) times it."""
    state = init_train_state(jax.tree.map(jnp.copy, params), settings, mesh)
    state, metrics = update(state, batch, log_prob_fn(config), loss, settings, mesh)
    moments = next(
        part.mu for part in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")
    )
    return jax.tree.map(lambda m: np.asarray(m, np.float64) / (1 - settings.b1), moments), jax.device_get(metrics)


def relative_error(got, want) -> float:
    """Length of the difference of two gradients by the length of the second."""
    difference = sum(np.sum((a - b) ** 2) for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)))
    return float(np.sqrt(difference / max(sum(np.sum(b**2) for b in jax.tree.leaves(want)), 1e-30)))


def metric_error(got: dict, want: dict) -> tuple[float, str]:
    """The largest difference of a metric, relative to its size but for numbers that are means around 0."""
    errors = {name: abs(float(got[name]) - float(want[name])) / max(abs(float(want[name])), 0.1) for name in want}
    name = max(errors, key=lambda name: errors[name])
    return errors[name], name


# -------------------------------------------------------------------------------------------------------------- options


def loss_options() -> Iterator[tuple[str, LossSettings, bool]]:
    """Name, settings and whether the update is on policy: all aggregations; caps, entropy, weights for the sampler's
    numerics and the pull to a reference on and off."""
    for aggregation, dual_clip, entropy, on_policy in itertools.product(
        AGGREGATIONS, (0.0, 1.5), (0.0, 0.02), (False, True)
    ):
        name = f"{aggregation} dual_clip={dual_clip} entropy={entropy} {'on' if on_policy else 'off'} policy"
        yield name, LossSettings(aggregation=aggregation, dual_clip=dual_clip, entropy_coefficient=entropy), on_policy
    for (number, aggregation), coefficient, on_policy in itertools.product(
        enumerate(AGGREGATIONS), (0.0, 0.1), (False, True)
    ):
        estimator = ("k3", "k1", "k2", "k3")[number]
        name = f"{aggregation} importance_cap=1.2 {estimator}={coefficient} {'on' if on_policy else 'off'} policy"
        yield (
            name,
            LossSettings(
                aggregation=aggregation, dual_clip=1.5, importance_cap=1.2, kl_coefficient=coefficient,
                kl_estimator=estimator, entropy_coefficient=0.2 * coefficient,
            ),
            on_policy,
        )  # fmt: skip


@dataclasses.dataclass
class Shape:
    """Padded sizes, the same for every case, so that few programs are compiled."""

    width: int
    rows: int
    packed_length: int
    packed_rows: int


def compare(
    problems, params, config, loss, on_policy, shape: Shape, gap: float = 1.6
) -> tuple[float, float, str, float]:
    """Gradient error, metric error and its name, and the share of tokens the trees keep."""
    settings = dataclasses.replace(UPDATE, on_policy=on_policy)
    rows = sampled_log_probs(response_batch(problems, shape.width, shape.rows), params, config, gap)
    rows = forget(problems, rows)
    packed = packed_batch(problems, rows, loss, shape.packed_length, shape.packed_rows)
    want = gradient_and_metrics(params, rows, config, loss, settings)
    got = gradient_and_metrics(params, packed, config, loss, settings)
    kept = np.asarray(packed.tree_ids != 0).sum() / np.asarray(rows.segment_ids != 0).sum()
    return relative_error(got[0], want[0]), *metric_error(got[1], want[1]), float(kept)


def small_policy(seed: int = 0) -> tuple[ModelConfig, dict]:
    """Fresh weights, whose log-probs spread by one nat."""
    config = ModelConfig.tiny(VOCABULARY, hidden_size=32, num_layers=2, num_heads=4)
    return config, init_params(config, jax.random.key(seed))


def bfloat16_gaps(problems, params, config, shape: Shape) -> str:
    """Gradient gaps on policy: packed against paths, paths against themselves in another order and in micro-batches."""
    low = dataclasses.replace(config, compute_dtype="bfloat16")
    rows = response_batch(problems, shape.width, shape.rows)
    order = np.random.default_rng(0).permutation(sum(len(p.responses) for p in problems))
    again = response_batch(problems, shape.width, shape.rows, order)
    packed = packed_batch(problems, rows, LossSettings(), shape.packed_length, shape.packed_rows)
    whole = dataclasses.replace(UPDATE, on_policy=True)
    pieces = dataclasses.replace(whole, micro_batch_rows=4)
    runs = ((rows, low, whole), (packed, low, whole), (again, low, pieces), (rows, config, whole))
    paths, trees, other, exact = (
        gradient_and_metrics(params, batch, model, LossSettings(), settings)[0] for batch, model, settings in runs
    )
    return (
        f"bfloat16: packed against paths {relative_error(trees, paths):.2g}, paths in another order and in "
        f"micro-batches {relative_error(other, paths):.2g}; to float32: packed {relative_error(trees, exact):.2g}, "
        f"paths {relative_error(paths, exact):.2g}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=pathlib.Path, help="folder of recorded searches; default: tests/data")
    parser.add_argument("--random", type=int, default=64, help="random batches of one to three trees")
    options = parser.parse_args(arguments)
    folder = options.golden or DATA
    files = [file for file in sorted(folder.glob("tree_traces*.json")) if "large" not in file.name]
    recorded = list(recorded_problems(files, at_least=16, longest=290))
    cases = [(f"random {seed}", random_paths(seed)) for seed in range(options.random)] + recorded
    shape = Shape(width=320, rows=24, packed_length=1536, packed_rows=2)
    config, params = small_policy()
    start, worst, failed, kept = time.monotonic(), {"gradient": 0.0, "metrics": 0.0}, 0, []
    every = list(loss_options())
    # Each tree goes through two of the options, each option through many trees; option by option, so that the programs
    # of a few are kept at a time: all together they need more mappings of memory than a process may have.
    tried = [(option % len(every), number) for number in range(len(cases)) for option in (number, 7 * number + 3)]
    before = 0
    for chosen, number in sorted(tried):
        (name, problems), option = cases[number], every[chosen]
        if chosen // 8 != before:
            before = chosen // 8
            jax.clear_caches()
        gradient, metrics, metric, share = compare(problems, params, config, *option[1:], shape)
        kept.append(share)
        worst = {"gradient": max(worst["gradient"], gradient), "metrics": max(worst["metrics"], metrics)}
        if not (gradient <= TOLERANCE and metrics <= TOLERANCE):
            failed += 1
            print(f"FAILED {name}, {option[0]}: gradient off by {gradient:.2g}, {metric} by {metrics:.2g}", flush=True)
    num_trees = sum(len(problems) for _, problems in cases)
    print(
        f"{num_trees} trees ({len(recorded)} recorded), {len(every)} options, {len(kept)} comparisons in "
        f"{time.monotonic() - start:.0f} s: {failed} failed; tokens kept {min(kept):.2f} to {max(kept):.2f}"
    )
    print(f"float32, largest relative error: gradient {worst['gradient']:.2g}, loss and metrics {worst['metrics']:.2g}")
    jax.clear_caches()
    for _, problems in cases[:8]:
        print(bfloat16_gaps(problems, params, config, shape), flush=True)
    print(f"passed {len(kept) - failed}, failed {failed}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
