"""Speed of an update of a real model, as a share of the measured rate of matrix products on the same cores.

`python -m benchmarks.update_rate --model DIR` updates the policy on rows of random tokens: forward, backward, clipping
and AdamW, in float32 on CPU and with bfloat16 products on an accelerator. Floating-point operations are those of the
model alone (6 for each parameter of a product and each token, and causal attention; what is computed twice to save
memory does not count), so that the share is the model FLOP utilisation (MFU, arXiv 2204.02311).
The bound is the best rate of one matrix product over several shapes, measured before and after each update, and both
are by wall seconds (and by CPU seconds, where nobody else's work on the machine counts). Medians of `--runs`. The last
line is one JSON object: `value` tokens a second, `ratio` the share by CPU seconds, by wall seconds on an
accelerator.
"""

import argparse
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import finish, median
from deepsearch_jax.objective import LossSettings
from deepsearch_jax.policy import ModelConfig, load_pretrained
from deepsearch_jax.runtime.learning import _log_prob_fn
from deepsearch_jax.runtime.progress import peak_memory_gib
from deepsearch_jax.training import UpdateSettings, init_train_state, update
from deepsearch_jax.types import TokenBatch


def model_flops(config: ModelConfig, num_parameters: int, rows: int, length: int) -> float:
    """Operations of one update without recomputation.

    6 a token and parameter of a product (an untied embedding is only looked up), and of causal attention 2 products of
    length / 2 keys on average, forward once and backward twice.
    """
    embedding = config.vocab_size * config.hidden_size
    in_products = num_parameters - (0 if config.tie_word_embeddings else embedding)
    attention = 12 * config.num_layers * config.num_heads * config.head_dim * length / 2
    return rows * length * (6 * in_products + attention)


def product_rate(dtype: Any, size: int, repeat: int = 4) -> Callable[[], tuple[float, float]]:
    """Measures operations per wall second and per CPU second of the fastest of a few shapes."""
    shapes = ((2048, 2048, 2048), (1024, 896, 4864), (2048, 4864, 896)) if size == 0 else ((size, size, size),)
    product = jax.jit(lambda x, y: jnp.matmul(x, y))
    inputs = [(jnp.ones((a, b), dtype), jnp.ones((b, c), dtype)) for a, b, c in shapes]
    for pair in inputs:
        product(*pair).block_until_ready()

    def measure() -> tuple[float, float]:
        wall_rates, cpu_rates = [], []
        for (a, b, c), pair in zip(shapes, inputs, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeat):
                result = product(*pair)
            result.block_until_ready()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            wall_rates.append(repeat * 2 * a * b * c / wall)
            cpu_rates.append(repeat * 2 * a * b * c / cpu)
        return max(wall_rates), max(cpu_rates)

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face directory")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--chunk", type=int, default=1024, help="tokens whose logits exist at a time")
    parser.add_argument("--micro_batch_rows", type=int, default=0)
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
    parser.add_argument(
        "--product", type=int, default=0, help="size of the bound's products; 0: shapes of a 0.5B model"
    )
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    on_cpu = jax.default_backend() == "cpu"
    compute = "float32" if on_cpu else "bfloat16"
    config, params = load_pretrained(options.model)
    config = dataclasses.replace(config, param_dtype="float32", compute_dtype=compute, remat=options.remat)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    settings = UpdateSettings(on_policy=True, micro_batch_rows=options.micro_batch_rows)
    state, log_prob_fn = init_train_state(params, settings), _log_prob_fn(config, options.chunk)
    del params
    rng, shape = np.random.default_rng(0), (options.rows, options.length)
    batch = TokenBatch(
        jnp.asarray(rng.integers(0, config.vocab_size, shape), jnp.int32), jnp.ones(shape, jnp.int32),
        jnp.ones(shape, bool), jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.zeros(shape),
    )  # fmt: skip
    flops, tokens = model_flops(config, num_parameters, *shape), shape[0] * shape[1]
    rate = product_rate(jnp.dtype(compute), options.product)
    found: dict[str, list[float]] = {name: [] for name in ("wall", "cpu", "wall_bound", "cpu_bound")}
    for run in range(options.runs + 1):
        before = rate()
        wall, cpu = time.perf_counter(), time.process_time()
        state, metrics = update(state, batch, log_prob_fn, LossSettings(), settings)
        jax.block_until_ready((state, metrics))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        after = rate()
        if run == 0:
            continue  # compiled
        for index, (name, value) in enumerate((("wall", wall), ("cpu", cpu))):
            found[name].append(value)
            found[f"{name}_bound"].append(max(before[index], after[index]))
        speeds = [1e-9 * rate for rate in (flops / wall, found["wall_bound"][-1], flops / cpu, found["cpu_bound"][-1])]
        print(
            f"run {run}: {tokens / wall:.1f} tokens/s, {tokens / cpu:.1f} per CPU second; {speeds[0]:.0f} of "
            f"{speeds[1]:.0f} GFLOP/s, {speeds[2]:.0f} of {speeds[3]:.0f} per CPU second", flush=True,
        )  # fmt: skip
    seconds = {name: median(values) for name, values in found.items()}
    shares = {name: flops / seconds[name] / seconds[f"{name}_bound"] for name in ("wall", "cpu")}
    finish(
        "update_rate", tokens / seconds["wall"], "tokens/s", shares["cpu" if on_cpu else "wall"],
        share_by_wall=shares["wall"], share_by_cpu=shares["cpu"], tokens_per_cpu_second=tokens / seconds["cpu"],
        tokens=tokens, length=options.length, parameters=num_parameters, cores=len(os.sched_getaffinity(0)),
        gflops=flops / seconds["wall"] * 1e-9, bound_gflops=seconds["wall_bound"] * 1e-9,
        bound_gflops_by_cpu=seconds["cpu_bound"] * 1e-9, peak_memory_gib=peak_memory_gib(), compute=compute,
    )  # fmt: skip


if __name__ == "__main__":
    main()
