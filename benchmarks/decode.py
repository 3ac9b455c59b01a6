"""Tokens per CPU second of batched sampling on one and on two cores, against tunix and transformers in the same run.

`python -m benchmarks.decode --model DIR --tunix PYTHON --transformers PYTHON`: float32, distinct random prompts of
equal length, temperature 1 from the full vocabulary, no end token, so every engine makes exactly the tokens asked for.
Each engine is a process of its own with the same cores allowed (a peer with the PYTHON of its own virtual environment);
they stay loaded and take turns, run by run, after one warm-up each, in which everything compiles. CPU seconds are the
process's, all threads; `with_prompt` counts the whole call, `decode_only` what follows the prompts (ours then still
feeds the last prompt token, a step that the peers count among the prompts; ours returns log-probs, the peers none).

The bounds are measured in the same process as ours, on the same cores and clock: at batch 1 the bytes of all weights
per token over the fastest of three streaming reads, else 2 x parameters operations per token over the fastest of three
large float32 matrix products through XLA. The share of the bound is of decode_only. Medians over the runs; the last
line is one JSON object: `value` is our tokens per CPU second at the first case, `ratio` the smallest ratio to a peer.
"""

import argparse
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.peers.protocol import Clock, Generation, serve

PEERS = os.path.join(os.path.dirname(__file__), "peers")
PEER_SCRIPTS = {"tunix": "tunix_sampler.py", "transformers": "transformers_generate.py"}
TARGETS = {"tunix": {1: 1.2, 8: 1.4, 32: 1.4}, "transformers": {1: 1.8, 8: 1.8, 32: 1.8}}
LARGEST_ID = 150_000  # of a prompt's tokens: below the special ids


def serve_ours(directory: str) -> None:
    """The worker process of this project's engine; a request without prompts asks for the bounds."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks import engine
    from deepsearch_jax.decode import DecodeRequest, DecodeSettings, init_pages

    config, loaded = engine.load(directory)

    @functools.lru_cache(maxsize=1)
    def parameters(rows: int) -> Any:
        """As a run that decodes so many rows keeps them: laid out once, not per call."""
        return jax.block_until_ready(engine.arranged(config, loaded, rows))

    def generate(prompts: list[list[int]], new_tokens: int, seed: int) -> Generation:
        batch, length = len(prompts), len(prompts[0])
        settings = DecodeSettings(
            num_samples=1, segment_length=new_tokens, max_prompt_length=length, max_depth=1, recompute=False
        )
        params = parameters(batch)
        start = Clock.now()
        tokens, lengths = jnp.array(prompts, jnp.int32), jnp.full((batch,), length, jnp.int32)
        pages = init_pages(config, batch, 0, new_tokens, length)
        pages = engine.prefill(config, params, pages, tokens, lengths, jnp.ones((batch,), bool))
        prompt_end = (jax.block_until_ready(pages), Clock.now())[1]
        request = DecodeRequest(
            prompt_lengths=lengths,
            path_pages=jnp.zeros((batch, 0), jnp.int32),
            depth=jnp.zeros((batch,), jnp.int32),
            last_token=tokens[:, -1],
            child_pages=jnp.full((batch, 1), -1, jnp.int32),
            row_keys=jax.random.split(jax.random.key(seed), (batch, 1)),
            active=jnp.ones((batch,), bool),
        )
        segments = engine.decode_children(config, params, pages, request, settings)[1]
        made = np.asarray(segments.tokens)  # waits
        return Generation(start, prompt_end, Clock.now(), made.size)

    def answer(prompts: list[list[int]], new_tokens: int, seed: int) -> Any:
        return generate(prompts, new_tokens, seed) if prompts else _Bounds(engine.weight_bytes(config, loaded))

    serve({"jax": jax.__version__}, answer)


class _Bounds:
    """Bytes per token, fastest read [bytes/s] and product [operations/s], per CPU second and per wall second."""

    def __init__(self, weight_bytes: int) -> None:
        self.weight_bytes = weight_bytes

    def seconds(self) -> dict[str, float]:
        import jax
        import jax.numpy as jnp
        import numpy as np

        array = np.ones(1 << 28, np.float32)
        on_device = jnp.asarray(array)
        largest, total = jax.jit(jnp.max), jax.jit(jnp.sum)
        reads = [
            array.max,
            lambda: largest(on_device).block_until_ready(),
            lambda: total(on_device).block_until_ready(),
        ]
        product = jax.jit(jnp.matmul)
        factors = [jnp.ones((size, size)) for size in (1024, 2048, 4096)]
        work = [(array.nbytes, "read", read) for read in reads]
        work += [(2 * f.shape[0] ** 3, "product", lambda f=f: product(f, f).block_until_ready()) for f in factors]
        best = {
            "weight_bytes": self.weight_bytes,
            "read_cpu": 0.0,
            "read_wall": 0.0,
            "product_cpu": 0.0,
            "product_wall": 0.0,
        }
        for amount, name, run in work:
            run()
            for _ in range(5):
                start = Clock.now()
                run()
                end = Clock.now()
                best[f"{name}_cpu"] = max(best[f"{name}_cpu"], amount / (end.cpu - start.cpu))
                best[f"{name}_wall"] = max(best[f"{name}_wall"], amount / (end.wall - start.wall))
        return best


class Worker:
    """An engine in its own process."""

    def __init__(self, command: list[str], cores: list[int]) -> None:
        self.process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, cores)), *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.versions = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.process.args)} ended early; run it by hand to see why")  # type: ignore
        return json.loads(line)

    def ask(self, prompts: list[list[int]], new_tokens: int, seed: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(
            json.dumps({"prompts": prompts, "new_tokens": new_tokens, "seed": seed}),
            file=self.process.stdin,
            flush=True,
        )
        return self._read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def rates(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of tokens per second over the runs of one engine."""

    def median(seconds: Any) -> float:
        return round(statistics.median(run["tokens"] / seconds(run) for run in runs), 2)

    return {
        "with_prompt_cpu": median(lambda run: run["cpu"]),
        "with_prompt_wall": median(lambda run: run["wall"]),
        "decode_only_cpu": median(lambda run: run["cpu"] - run["prompt_cpu"]),
        "decode_only_wall": median(lambda run: run["wall"] - run["prompt_wall"]),
        "with_prompt_cpu_runs": [round(run["tokens"] / run["cpu"], 2) for run in runs],
    }


def share_of_bound(ours: dict[str, Any], batch: int, bounds: dict[str, float]) -> dict[str, Any]:
    """Which bound holds at this batch, the tokens per second it allows, and our share of them, by CPU and wall time."""
    shares: dict[str, Any] = {}
    for clock in ("cpu", "wall"):
        memory = batch * bounds[f"read_{clock}"] / bounds["weight_bytes"]
        compute = bounds[f"product_{clock}"] / (2 * bounds["weight_bytes"] / 4)
        shares[f"bound_{clock}"] = round(min(memory, compute), 2)
        shares[f"share_of_bound_{clock}"] = round(ours[f"decode_only_{clock}"] / min(memory, compute), 3)
        shares["bound"] = "memory" if memory < compute else "compute"
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face directory of a Qwen2.5 0.5B")
    parser.add_argument("--tunix", help="python of a virtual environment with google-tunix; left out: no such peer")
    parser.add_argument("--transformers", help="python of a virtual environment with transformers and torch")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2], help="numbers of cores to allow")
    parser.add_argument("--first_core", type=int, default=0)
    parser.add_argument("--prompt_length", type=int, default=100)
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve_ours(options.model)
        return
    peers = {name: getattr(options, name) for name in PEER_SCRIPTS if getattr(options, name)}
    cases: list[dict[str, Any]] = []
    versions: dict[str, Any] = {}
    for num_cores in options.cores:
        cores = list(range(options.first_core, options.first_core + num_cores))
        commands = {"ours": [sys.executable, "-m", "benchmarks.decode", "--worker", "--model", options.model]}
        for name, python in peers.items():
            commands[name] = [python, os.path.join(PEERS, PEER_SCRIPTS[name]), options.model]
        workers = {name: Worker(command, cores) for name, command in commands.items()}
        versions = {name: worker.versions for name, worker in workers.items()}
        for batch in options.batches:
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
            for number in range(options.runs + 1):
                draw = random.Random(f"{batch} {number}")
                prompts = [[draw.randrange(LARGEST_ID) for _ in range(options.prompt_length)] for _ in range(batch)]
                for name, worker in workers.items():
                    result = worker.ask(prompts, options.new_tokens, number)
                    if result["tokens"] != batch * options.new_tokens:
                        raise SystemExit(f"{name} made {result['tokens']} tokens, not {batch * options.new_tokens}")
                    if number:
                        runs[name].append(result)
            bounds = workers["ours"].ask([], 0, 0)
            case: dict[str, Any] = {"cores": num_cores, "batch": batch, **{n: rates(r) for n, r in runs.items()}}
            case |= share_of_bound(case["ours"], batch, bounds)
            for name in peers:
                for kind in ("with_prompt", "decode_only"):
                    ratio = case["ours"][f"{kind}_cpu"] / case[name][f"{kind}_cpu"]
                    case[f"ratio_{name}_{kind}"] = round(ratio, 3)
                case[f"target_{name}"] = TARGETS[name].get(batch)
            case["read_gb_per_cpu_s"] = round(bounds["read_cpu"] / 1e9, 2)
            case["product_gflop_per_cpu_s"] = round(bounds["product_cpu"] / 1e9, 1)
            cases.append(case)
            print(json.dumps(case), flush=True)
        for worker in workers.values():
            worker.close()
    ratios = [case[f"ratio_{name}_with_prompt"] for case in cases for name in peers]
    sizes = {"prompt_length": options.prompt_length, "new_tokens": options.new_tokens, "runs": options.runs}
    print(
        json.dumps(
            {
                "name": "decode",
                "value": cases[0]["ours"]["with_prompt_cpu"],
                "unit": "tokens per CPU second",
                "ratio": min(ratios) if ratios else cases[0]["share_of_bound_cpu"],
                **sizes,
                "load_average": [round(load, 1) for load in os.getloadavg()],
                "time": time.strftime("%Y-%m-%d"),
                "versions": versions,
                "cases": cases,
            }
        )
    )


if __name__ == "__main__":
    main()
