"""Time of an update on packed trees against one row a response, and what the automatic choice makes of it.

`python -m benchmarks.update` trains a tiny decoder on problems with 8 responses of equal length that branch near one
depth, so that (tokens of all responses) / (tokens of the trees) is the sharing factor. Forms: rows with dense
attention (how rows were computed before there were blocks; up to 2048 tokens), rows, trees, and whichever of the two
`pack.trees = auto` takes. The decoder has one head of 64 at a width of 256: so narrow a model with more heads would
spend several times the share of its work in attention that one of 0.5B parameters does at the same length.
Forms run in turn, medians of `--runs`. The last line is one JSON object: `value` is the smallest time ratio of rows to
trees divided by the sharing factor, from 2048 tokens on and sharing above 1, `ratio` the smallest of rows to the
automatic choice over all cases.
`--prices` measures what `training/cost.py` and `policy/attention.py` say of attention instead.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import finish, median, plain
from deepsearch_jax.data.problems import Problem
from deepsearch_jax.objective import LossSettings
from deepsearch_jax.policy import ModelConfig, attention, blocks_for, init_params, row_attention
from deepsearch_jax.runtime.groups import PackSettings, pack
from deepsearch_jax.runtime.learning import _log_prob_fn
from deepsearch_jax.runtime.responses import Group, Response
from deepsearch_jax.training import UpdateSettings, init_train_state, update
from deepsearch_jax.types import Outcome, PackedBatch

RESPONSES = 8
MODEL = ModelConfig.tiny(
    512, hidden_size=256, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=64, intermediate_size=1024,
    max_position_embeddings=16384,
)  # fmt: skip
UPDATE = UpdateSettings(learning_rate=1e-4, on_policy=True)


def make_groups(length: int, sharing: float, num_problems: int, seed: int) -> list[Group]:
    """Problems whose responses each begin with a good part of an earlier one."""
    rng = np.random.default_rng(seed)
    share = (1 - 1 / sharing) * RESPONSES / (RESPONSES - 1)
    groups = []
    for key in range(num_problems):
        prompt, texts = [int(rng.integers(MODEL.vocab_size))], []
        for number in range(RESPONSES):
            text = rng.integers(0, MODEL.vocab_size, length - 1).astype(np.int32)
            text[0] = number  # without a beginning in common, not even by chance
            if texts:
                shared = int(share * length * rng.uniform(0.9, 1.1)) if sharing > 1 else 0
                shared = min(shared, length - 2)
                text[:shared] = texts[rng.integers(len(texts))][:shared]
            texts.append(text)
        groups.append(Group(Problem(key, str(key), "", ""), prompt, [as_response(text, rng) for text in texts]))
    return groups


def as_response(text: np.ndarray, rng: np.random.Generator) -> Response:
    lengths, reward = np.array([len(text)], np.int32), float(rng.normal())
    return Response(text, lengths, np.array([reward], np.float32), None, reward, Outcome.CORRECT, "", "search")


def time_case(length: int, sharing: float, path_tokens: int, runs: int, with_dense: bool) -> dict[str, Any]:
    """Medians of the forms of one case."""
    num_problems = max(path_tokens // (length * RESPONSES), 1)
    groups = make_groups(length, sharing, num_problems, seed=length)
    advantages = [[np.array([r.reward], np.float32) for r in group.responses] for group in groups]
    batches = {
        form: pack(
            groups, advantages, PackSettings(row_multiple=64, min_rows=1, trees=trees), LossSettings(), MODEL
        ).batch
        for form, trees in (("rows", "never"), ("trees", "always"), ("auto", "auto"))
    }
    lengths = sum(len(group.prompt) + len(r.tokens) for group in groups for r in group.responses)
    real = int(np.asarray(batches["trees"].tree_ids != 0).sum())
    is_packed = isinstance(batches.pop("auto"), PackedBatch)
    forms: dict[str, Callable[[], float]] = {form: updates_of(batch, MODEL) for form, batch in batches.items()}
    if with_dense and blocks_for(length) is not None:
        # Another config compiles another program; the limit is read while it is traced.
        dense = updates_of(batches["rows"], dataclasses.replace(MODEL, bos_id=0))
        kept, attention.DENSE_LENGTH["cpu"] = attention.DENSE_LENGTH["cpu"], length
        dense()
        attention.DENSE_LENGTH["cpu"] = kept
        forms["dense_rows"] = dense
    for run in forms.values():
        run()
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(runs):
        for form, run in forms.items():
            seconds[form].append(run())
    medians = {form: median(values) for form, values in seconds.items()}
    case = {
        "length": length, "sharing": lengths / real, "responses": num_problems * RESPONSES,
        "tokens": {form: int(batch.tokens.size) for form, batch in batches.items()},
        "seconds": medians, "ratio": medians["rows"] / medians["trees"],
        "per_sharing": medians["rows"] / medians["trees"] / (lengths / real),
        "auto": "trees" if is_packed else "rows",
        "auto_ratio": medians["rows"] / medians["trees"] if is_packed else 1.0,
    }  # fmt: skip
    if "dense_rows" in medians:
        case["ratio_to_dense"] = medians["dense_rows"] / medians["trees"]
    return case


def updates_of(batch: Any, config: ModelConfig) -> Callable[[], float]:
    """CPU seconds of one update of this batch, each time it is called; the state goes from call to call."""
    state = [init_train_state(init_params(config, jax.random.key(0)), UPDATE)]
    log_prob_fn, on_device = _log_prob_fn(config, 1024), jax.device_put(batch)

    def run() -> float:
        start = time.process_time()
        state[0], metrics = update(state[0], on_device, log_prob_fn, LossSettings(), UPDATE)
        jax.block_until_ready(metrics)
        return time.process_time() - start

    return run


def prices(runs: int) -> None:
    """Time of an operation of attention, forward and backward, by that of one of the layers' products."""

    def seconds(function: Callable, *arguments: jax.Array) -> float:
        compiled, found = jax.jit(function), []
        for number in range(runs + 1):
            start = time.process_time()
            jax.block_until_ready(compiled(*arguments))
            if number:
                found.append(time.process_time() - start)
        return median(found)

    def product(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return jnp.sum(jax.nn.silu(x @ up) @ down)

    tokens, size, inner = 4096, 256, 1024
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = [jax.random.normal(k, s) for k, s in zip(keys, ((tokens, size), (size, inner), (inner, size)))]
    linear = seconds(jax.grad(product, argnums=(0, 1, 2)), *inputs) / (12 * tokens * size * inner)
    print(f"products: {1e-9 / linear:.1f} GFLOP/s")
    cases = []
    for length in (64, 128, 256, 512, 1024, 2048):
        rows, heads = max(2048 // length, 1), 2
        query, key, value = (jax.random.normal(k, (rows, length, heads, 64)) for k in keys)
        ends = jnp.full((rows, length), length, jnp.int32)
        positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], ends.shape)
        blocks = blocks_for(max(length, 129))
        assert blocks is not None
        pairs = rows * (length // blocks.size) * (length // blocks.size + 1) // 2 * blocks.size**2
        work = {"dense": 12 * rows * length**2 * heads * 64, "blocks": 14 * max(pairs, 1) * heads * 64}
        case: dict[str, Any] = {"length": length}
        for form, chosen in (("dense", None), ("blocks", blocks)):

            def attend(query: jax.Array, key: jax.Array, value: jax.Array, chosen: Any = chosen) -> jax.Array:
                return jnp.sum(row_attention(query, key, value, ends, positions, None, chosen) ** 2)  # noqa: B023

            case[form] = seconds(jax.grad(attend, argnums=(0, 1, 2)), query, key, value)
            case[f"{form}_price"] = case[form] / work[form] / linear
        case["ratio"] = case["dense"] / case["blocks"]
        cases.append(case)
        print(json.dumps(plain(case)), flush=True)
    finish("attention_price", cases[-1]["blocks_price"], "times a product's operation", cases[-1]["ratio"], cases=cases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192], help="tokens of a path"
    )
    parser.add_argument("--sharing", type=float, nargs="+", default=[1, 1.5, 2, 4])
    parser.add_argument("--path_tokens", type=int, default=8192, help="tokens of all responses of a case, at least 8")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--prices", action="store_true")
    options = parser.parse_args()
    if options.prices:
        return prices(options.runs)
    cases = []
    for length in options.lengths:
        for sharing in options.sharing:
            with_dense = length <= 2048 and sharing == max(options.sharing)
            cases.append(time_case(length, sharing, options.path_tokens, options.runs, with_dense))
            print(json.dumps(plain(cases[-1])), flush=True)
    long = [case["per_sharing"] for case in cases if case["length"] >= 2048 and case["sharing"] > 1.1]
    finish(
        "tree_update", min(long, default=float("nan")), "time ratio per sharing factor",
        min(case["auto_ratio"] for case in cases), cases=cases,
    )  # fmt: skip


if __name__ == "__main__":
    main()
