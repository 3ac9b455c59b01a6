"""Siblings on one long path against as many independent sequences of that length, each with its own cache.

`python -m benchmarks.tree_decode --model DIR`: the same engine, float32, decodes K siblings behind one path (one row of
K children) and K rows of one child each, whose paths lie in pages of their own. Both gather their paths once per call,
feed the last token and sample the same number of tokens; the caches hold random numbers, which cost what real ones do,
and nothing is recomputed. CPU seconds of whole calls, medians over the runs, the two forms in turn.

A third form decodes the independent sequences as plain JAX code does (`plain_decode`): a cache of its own for every
sequence, jax.nn.dot_product_attention over it; its caches lie ready, so that it gathers nothing.

`ratio` of a case: CPU seconds of the independent sequences over those of the siblings; `plain_ratio`: the plain form's
over them. `attention_ratio`: as `ratio`, after taking off what a call with a path of one page costs in each form;
`ceiling`: `ratio` as it would be if the siblings' attention to their path took no time at all. `encoded_ratio`: as
`ratio`, with the encoding of the path before the call, once or (the same time again) for every sequence. Bytes
per token: keys and values that the attention of one step reads, over the K tokens made (own tokens half full on
average), without the gather, which is shown as bytes per call. The last line is one JSON object; `value` and `ratio`
are those of the path nearest 2,048.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import engine, plain_decode
from deepsearch_jax import decode
from deepsearch_jax.decode import DecodeRequest, DecodeSettings, KVPages
from deepsearch_jax.policy import ModelConfig, Params

TARGET_PATH, TARGET, FLOOR = 2048, 2.0, 0.95  # the floor is for the shortest path


class Form:
    """One of the two ways to decode `siblings` tokens a step behind `path` tokens: `rows` rows share them out."""

    def __init__(self, model: tuple[ModelConfig, Params], rows: int, siblings: int, path: int, length: int) -> None:
        self.config, self.params = model
        self.rows, each = rows, siblings // rows
        # The prompt takes one page's room, the path's nodes the rest.
        depth = path // length - 1
        self.settings = DecodeSettings(
            num_samples=each, segment_length=length, max_prompt_length=length, max_depth=max(depth, 1), recompute=False
        )
        heads, layers, size = self.config.num_kv_heads, self.config.num_layers, self.config.head_dim
        keys = jax.random.normal(jax.random.key(0), (layers, max(rows * depth, 1), heads, length, size))
        prompts = jax.random.normal(jax.random.key(1), (layers, rows, heads, length, size))
        self.pages = KVPages(keys, keys + 1, prompts, prompts + 1)
        self.request = DecodeRequest(
            prompt_lengths=jnp.full((rows,), length, jnp.int32),
            path_pages=jnp.arange(rows * depth, dtype=jnp.int32).reshape(rows, depth),
            depth=jnp.full((rows,), depth, jnp.int32),
            last_token=jnp.arange(1, rows + 1, dtype=jnp.int32),
            child_pages=jnp.full((rows, each), -1, jnp.int32),
            row_keys=jax.random.split(jax.random.key(2), (rows, each)),
            active=jnp.ones((rows,), bool),
        )

    def run(self) -> tuple[float, float]:
        """CPU and wall seconds of one call."""
        cpu, wall = time.process_time(), time.perf_counter()
        self.pages, segments, _ = engine.decode_children(
            self.config, self.params, self.pages, self.request, self.settings
        )
        jax.block_until_ready((self.pages, segments))
        return time.process_time() - cpu, time.perf_counter() - wall


class Plain:
    """Independent sequences as a plain JAX model decodes them; see plain_decode."""

    def __init__(self, model: tuple[ModelConfig, Params], siblings: int, path: int, length: int) -> None:
        self.config, self.params = model
        self.rows = siblings
        self.settings = DecodeSettings(num_samples=1, segment_length=length)
        shape = (siblings, path + length, self.config.num_kv_heads, self.config.head_dim)
        keys = jax.random.split(jax.random.key(0), self.config.num_layers)
        self.caches = [tuple(jax.random.normal(key, shape) + part for part in range(2)) for key in keys]
        self.length, self.tokens = jnp.int32(path - 1), jnp.arange(1, siblings + 1, dtype=jnp.int32)
        self.keys = jax.random.split(jax.random.key(2), siblings)

    def run(self) -> tuple[float, float]:
        """CPU and wall seconds of one call."""
        cpu, wall = time.process_time(), time.perf_counter()
        self.caches, tokens = plain_decode.sample(
            self.config, self.params, self.caches, self.length, self.tokens, self.keys, self.settings
        )
        jax.block_until_ready((self.caches, tokens))
        return time.process_time() - cpu, time.perf_counter() - wall


def encode(model: tuple[ModelConfig, Params], path: int) -> float:
    """CPU seconds in which a path of so many tokens is encoded, the second time."""
    config, params = model
    tokens, lengths = jnp.arange(1, path + 1, dtype=jnp.int32)[None], jnp.array([path], jnp.int32)
    for _ in range(2):
        pages = decode.init_pages(config, 1, 0, 1, path)
        start = time.process_time()
        jax.block_until_ready(engine.prefill(config, params, pages, tokens, lengths, jnp.ones((1,), bool)))
    return time.process_time() - start


def measure(model: tuple[ModelConfig, Params], path: int, options: argparse.Namespace) -> dict[str, Any]:
    siblings, length = options.siblings, options.new_tokens
    forms: dict[str, Form | Plain] = {
        "tree": Form(model, 1, siblings, path, length),
        "independent": Form(model, siblings, siblings, path, length),
        "plain": Plain(model, siblings, path, length),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    for number in range(options.runs + 1):
        for name, form in forms.items():
            taken = form.run()
            if number:  # the first one compiles
                seconds[name].append(taken)
    config = model[0]
    bytes_per_slot = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 4
    case: dict[str, Any] = {"path": path, "siblings": siblings, "new_tokens": length}
    for name, form in forms.items():
        cpu, wall = (statistics.median(values) for values in zip(*seconds[name]))
        case[f"{name}_cpu_s"], case[f"{name}_wall_s"] = round(cpu, 4), round(wall, 4)
        case[f"{name}_tokens_per_cpu_s"] = round(siblings * length / cpu, 2)
        case[f"{name}_kv_bytes_per_token"] = round(bytes_per_slot * (form.rows * path / siblings + length / 2))
        case[f"{name}_gathered_bytes"] = bytes_per_slot * form.rows * path if isinstance(form, Form) else 0
    case["ratio"] = round(case["independent_cpu_s"] / case["tree_cpu_s"], 3)
    case["plain_ratio"] = round(case["plain_cpu_s"] / case["tree_cpu_s"], 3)
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face directory")
    parser.add_argument("--paths", type=int, nargs="+", default=[128, 512, 1024, 2048, 4096], help="tokens")
    parser.add_argument("--siblings", type=int, default=8)
    parser.add_argument("--new_tokens", type=int, default=64, help="tokens per call; also the tokens of a page")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--encode", action=argparse.BooleanOptionalAction, default=True, help="time that too")
    options = parser.parse_args()
    for path in options.paths:
        if path % options.new_tokens or path < options.new_tokens:
            parser.error(f"a path of {path} tokens is no multiple of the page of {options.new_tokens} (--new_tokens)")
    config, loaded = engine.load(options.model)
    model = config, jax.block_until_ready(engine.arranged(config, loaded, options.siblings))
    del loaded
    base, cases = measure(model, options.new_tokens, options), []
    for path in options.paths:
        case = measure(model, path, options)
        more = {name: case[f"{name}_cpu_s"] - base[f"{name}_cpu_s"] for name in ("tree", "independent")}
        case["attention_ratio"] = round(more["independent"] / more["tree"], 2) if more["tree"] > 0 else None
        case["ceiling"] = round(case["independent_cpu_s"] / base["tree_cpu_s"], 3)
        if options.encode:
            case["encode_cpu_s"] = round(encode(model, path), 3)
            with_path = [times * case["encode_cpu_s"] for times in (options.siblings, 1)]
            both = [case[f"{name}_cpu_s"] + more for name, more in zip(("independent", "tree"), with_path)]
            case["encoded_ratio"] = round(both[0] / both[1], 3)
        cases.append(case)
        print(json.dumps(case), flush=True)
    shown = min(cases, key=lambda case: abs(case["path"] - TARGET_PATH))
    shortest = min(cases, key=lambda case: case["path"])
    summary = {
        "name": "tree_decode",
        "value": shown["tree_tokens_per_cpu_s"],
        "unit": "tokens per CPU second",
        "ratio": shown["ratio"],
        "plain_ratio": shown["plain_ratio"],
        "path": shown["path"],
        "reached": shown["ratio"] >= TARGET,
        "reached_floor": shortest["ratio"] >= FLOOR,
        "grows": all(first["ratio"] <= second["ratio"] for first, second in itertools.pairwise(cases)),
        "cores": len(os.sched_getaffinity(0)),
        "runs": options.runs,
        "cases": cases,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
