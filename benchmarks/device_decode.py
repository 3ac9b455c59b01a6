"""Tree decode on an accelerator: tokens per second and share of the memory bandwidth at the 0.5B and 1.5B shapes.

`python -m benchmarks.device_decode` expands a node on every one of 8 to 64 trees, 8 children of 256 tokens each, on
paths of 1k to 8k tokens, with random weights of the Qwen2.5 shapes in bfloat16, layers scanned. Bytes are those that a
step must move: the weights once, every tree's path once, every child's own tokens. Without an accelerator the same
programs are compiled ahead of time in float32 (CPU has no bfloat16 products of its own) and their memory analysis is
compared with the plan of `runtime.memory.decode_bytes`; `--save FILE` keeps it. The last line is one JSON object: on an
accelerator `value` is tokens per second of the largest case and `ratio` its share of the bandwidth; ahead of time
`value` is the largest case's memory in GiB and `ratio` that over the plan.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import finish, median, plain
from deepsearch_jax.decode import DecodeRequest, DecodeSettings, KVPages, decode_children, init_pages
from deepsearch_jax.policy import ModelConfig, init_params
from deepsearch_jax.runtime.memory import decode_bytes, page_bytes

SHAPES = {
    "0.5b": ModelConfig(),
    "1.5b": ModelConfig(hidden_size=1536, intermediate_size=8960, num_layers=28, num_heads=12, head_dim=128),
}
PROMPT, SEGMENT, SAMPLES = 256, 256, 8


@functools.partial(jax.jit, static_argnames=("config", "settings"), donate_argnames=("pages",))
def expand(params: Any, pages: KVPages, request: DecodeRequest, config: ModelConfig, settings: DecodeSettings) -> Any:
    return decode_children(config, params, pages, request, settings)[:2]


def request_for(trees: int, depth: int) -> DecodeRequest:
    """One node a tree at `depth`, every page of its path resident, its children kept behind all paths."""
    paths = jnp.arange(trees * depth, dtype=jnp.int32).reshape(trees, depth)
    children = trees * depth + jnp.arange(trees * SAMPLES, dtype=jnp.int32).reshape(trees, SAMPLES)
    return DecodeRequest(
        prompt_lengths=jnp.full(trees, PROMPT, jnp.int32), path_pages=paths, depth=jnp.full(trees, depth, jnp.int32),
        last_token=jnp.zeros(trees, jnp.int32), child_pages=children,
        row_keys=jax.random.split(jax.random.key(0), (trees, SAMPLES)), active=jnp.ones(trees, bool),
    )  # fmt: skip


def step_bytes(config: ModelConfig, trees: int, depth: int) -> float:
    """Mean bytes that one decode step must read: weights, each tree's prefix once, each child's own tokens."""
    token = page_bytes(config, 1)
    tokens = trees * (PROMPT + depth * SEGMENT) + trees * SAMPLES * SEGMENT / 2
    return config.num_parameters * config.dtypes[1].itemsize + tokens * token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=list(SHAPES))
    parser.add_argument("--trees", nargs="+", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--paths", nargs="+", type=int, default=[1024, 2048, 4096, 8192])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="bytes per second that the device can read")
    parser.add_argument("--save", type=pathlib.Path, help="file for all cases")
    options = parser.parse_args()
    on_device = jax.default_backend() != "cpu"
    settings = DecodeSettings(num_samples=SAMPLES, segment_length=SEGMENT, max_prompt_length=PROMPT)
    cases = []
    for shape in options.shapes:
        dtype = "bfloat16" if on_device else "float32"
        config = dataclasses.replace(SHAPES[shape], param_dtype=dtype, compute_dtype=dtype)
        make = functools.partial(init_params, config, jax.random.key(0))
        params = make() if on_device else jax.eval_shape(make)
        for trees in options.trees:
            for path in options.paths:
                depth = path // SEGMENT
                num_pages = trees * (depth + SAMPLES)
                plan = decode_bytes(
                    config, num_slots=trees, num_rows=trees, num_samples=SAMPLES, segment_length=SEGMENT,
                    prompt_length=PROMPT, path_bucket=depth, num_pages=num_pages,
                )  # fmt: skip
                case: dict[str, Any] = {"shape": shape, "trees": trees, "path": path}
                case["planned_gib"] = sum(plan.values()) / 2**30
                empty = functools.partial(init_pages, config, trees, num_pages, SEGMENT, PROMPT)
                request = functools.partial(request_for, trees, depth)
                if on_device:
                    case |= run(params, empty(), request(), config, settings, options)
                    case["bandwidth_share"] = (
                        step_bytes(config, trees, depth) * SEGMENT / case["seconds"] / options.bandwidth
                    )
                else:
                    lowered = expand.lower(params, jax.eval_shape(empty), jax.eval_shape(request), config, settings)
                    memory = lowered.compile().memory_analysis()
                    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
                    used += memory.output_size_in_bytes - memory.alias_size_in_bytes
                    case["compiled_gib"] = used / 2**30
                    case["planned_bfloat16_gib"] = sum(
                        value if part == "logits" else value / 2 for part, value in plan.items()
                    ) / 2**30  # fmt: skip
                cases.append(case)
                print(plain(case), flush=True)
        del params
    last = cases[-1]
    if options.save:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        options.save.write_text(json.dumps(plain(cases), indent=1) + "\n", "utf-8")
    if on_device:
        finish("device_decode", last["tokens_per_second"], "tokens per second", last["bandwidth_share"], cases=cases)
    else:
        finish("device_decode", last["compiled_gib"], "GiB", last["compiled_gib"] / last["planned_gib"],
               mode="ahead of time", cases=cases)  # fmt: skip


def run(
    params: Any, pages: KVPages, request: DecodeRequest, config: ModelConfig, settings: DecodeSettings, options: Any
) -> dict[str, float]:
    """Seconds of an expansion after one that compiles; the device's peak memory where it tells."""
    seconds = []
    for _ in range(options.runs + 1):
        start = time.perf_counter()
        pages, segments = expand(params, pages, request, config, settings)
        jax.block_until_ready(segments)
        seconds.append(time.perf_counter() - start)
    tokens = int(segments.lengths.sum())
    statistics = jax.devices()[0].memory_stats() or {}
    taken = median(seconds[1:])
    return {
        "seconds": taken, "tokens_per_second": tokens / taken,
        "peak_gib": statistics.get("peak_bytes_in_use", float("nan")) / 2**30,
    }  # fmt: skip


if __name__ == "__main__":
    main()
