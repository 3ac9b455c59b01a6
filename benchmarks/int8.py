"""What int8 weights cost in accuracy and gain in speed, on a real model.

`python -m benchmarks.int8 --model DIR` walks a few worked solutions and compares each next-token distribution of the
int8 model with that of the float32 one: log-probs of the text's tokens, KL(float32 || int8) over the whole vocabulary,
share of positions with the same most likely token. The cases: all matrices as int8, only those of the layers, only
embedding and head. Then both models continue a prompt greedily through the decode engine, layers unrolled as on CPU;
tokens per second are a median over runs that alternate between the two, of processor time on CPU (so that other work on
the machine counts less) and of wall-clock time elsewhere. The last line is one JSON object:
`value` is the mean absolute log-prob gap of the first case, `ratio` tokens per second of int8 / float32 at batch 1.
"""

import argparse
import functools
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepsearch_jax import policy
from deepsearch_jax.decode import DecodeRequest, DecodeSettings, decode_children, init_pages, prefill

PROBLEMS = (
    (
        "A baker sells 48 rolls in the morning and half as many in the afternoon. Each roll costs 3 dollars. How much "
        "money does the baker take in?",
        "In the afternoon the baker sells 48 / 2 = 24 rolls. Altogether that is 48 + 24 = 72 rolls. At 3 dollars each, "
        "the baker takes in 72 * 3 = 216 dollars. The answer is \\boxed{216}.",
    ),
    (
        "Find all real x with x^2 - 5x + 6 = 0.",
        "We look for two numbers with sum 5 and product 6: 2 and 3. So x^2 - 5x + 6 = (x - 2)(x - 3), and the "
        "product is zero exactly when one factor is zero. Hence x = 2 or x = 3. The answer is \\boxed{2, 3}.",
    ),
    (
        "Write a Python function that tells whether a number is prime.",
        "def is_prime(n):\n    if n < 2:\n        return False\n    for d in range(2, int(n ** 0.5) + 1):\n"
        "        if n % d == 0:\n            return False\n    return True\n\nA divisor larger than the square root "
        "has a partner below it, so the loop may stop there.",
    ),
    (
        "A train covers 150 km in 2 hours and then 90 km in 1 hour. What is its average speed?",
        "Step 1: the total distance is 150 + 90 = 240 km.\nStep 2: the total time is 2 + 1 = 3 hours.\nStep 3: the "
        "average speed is 240 / 3 = 80 km per hour.\n\nThe answer is \\boxed{80}.",
    ),
)


def read_texts(directory: pathlib.Path) -> list[tuple[list[int], int]]:
    """Token ids of each problem with its solution, and how many of them are the prompt's."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = []
    for problem, solution in PROBLEMS:
        messages = [{"role": "user", "content": problem}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt_ids = tokenizer(prompt)["input_ids"]
        texts.append((prompt_ids + tokenizer(solution)["input_ids"], len(prompt_ids)))
    return texts


@functools.partial(jax.jit, static_argnames="config")
def compare(config: policy.ModelConfig, params: policy.Params, other: policy.Params, row: jax.Array) -> Any:
    """Of each position but the last: log-prob gap of the next token, KL, and whether the argmax is the same."""

    def table(params: policy.Params) -> jax.Array:
        hidden = policy.hidden_states(config, params, row[None], jnp.ones_like(row)[None])[0, :-1]
        return jax.nn.log_softmax(policy.logits(params, hidden))

    exact, rounded = table(params), table(other)
    gap = jnp.take_along_axis(rounded - exact, row[1:, None], axis=1)[:, 0]
    divergence = jnp.sum(jnp.exp(exact) * (exact - rounded), axis=1)
    return gap, divergence, exact.argmax(axis=1) == rounded.argmax(axis=1)


def accuracy(config: policy.ModelConfig, params: policy.Params, other: policy.Params, texts: Any) -> dict[str, Any]:
    parts = []
    for ids, num_prompt in texts:
        found = compare(config, params, other, jnp.array(ids))
        parts.append([np.asarray(values)[num_prompt - 1 :] for values in found])
    gap, divergence, agrees = (np.concatenate(values) for values in zip(*parts))
    return {
        "mean_gap": round(float(np.abs(gap).mean()), 5),
        "max_gap": round(float(np.abs(gap).max()), 4),
        "bias": round(float(gap.mean()), 5),
        "mean_kl": round(float(divergence.mean()), 6),
        "max_kl": round(float(divergence.max()), 5),
        "same_argmax": round(float(agrees.mean()), 4),
        "tokens": int(gap.size),
    }


class Decoder:
    """Greedy decoding of a batch of equal rows behind one prompt."""

    def __init__(self, config: policy.ModelConfig, prompt: list[int], batch: int, num_new: int) -> None:
        settings = DecodeSettings(
            num_samples=batch, segment_length=num_new, max_prompt_length=len(prompt), max_depth=0, temperature=0.0
        )
        self.config, self.prompt, self.size = config, prompt, batch * num_new
        self.request = DecodeRequest(
            prompt_lengths=jnp.array([len(prompt)]),
            path_pages=jnp.zeros((1, 0), jnp.int32),
            depth=jnp.array([0]),
            last_token=jnp.array([prompt[-1]]),
            child_pages=jnp.full((1, batch), -1),
            row_keys=jax.random.split(jax.random.key(0), (1, batch)),
            active=jnp.array([True]),
        )
        self.prefill = jax.jit(functools.partial(prefill, config))
        self.decode = jax.jit(lambda *args: decode_children(config, *args, settings)[1])
        self.blank = init_pages(config, 1, 0, num_new, len(prompt))

    def run(self, params: policy.Params) -> tuple[list[int], float]:
        """Tokens of the first row, and seconds without the prompt's."""
        prompt = jnp.array([self.prompt])
        pages = self.prefill(params, self.blank, prompt, self.request.prompt_lengths, jnp.array([True]))
        jax.block_until_ready(pages)
        clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
        start = clock()
        segments = jax.block_until_ready(self.decode(params, pages, self.request))
        return segments.tokens[0, 0].tolist(), clock() - start


def speed(decoder: Decoder, models: dict[str, policy.Params], runs: int) -> dict[str, Any]:
    tokens, seconds = {}, {name: [] for name in models}
    for name, params in models.items():
        tokens[name] = decoder.run(params)[0]  # compiles
    for _ in range(runs):
        for name, params in models.items():
            seconds[name].append(decoder.run(params)[1])
    rates = {name: decoder.size / float(np.median(values)) for name, values in seconds.items()}
    first, second = tokens.values()
    same = next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), len(first))
    return {
        **{f"{name}_tokens_per_s": round(rate, 2) for name, rate in rates.items()},
        "speedup": round(rates["int8"] / rates["float32"], 3),
        "greedy_tokens_in_common": same,
        "of": len(first),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="Hugging Face directory")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8], help="batch sizes to time; none: accuracy only")
    parser.add_argument("--new_tokens", type=int, default=48, help="greedy tokens per row")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    config, params = policy.load_pretrained(options.model)
    texts = read_texts(options.model)
    rounded = jax.jit(policy.quantize_int8, static_argnames="config")(config, params)
    layers, ends = {"layers": rounded["layers"]}, {k: v for k, v in rounded.items() if k != "layers"}
    results: list[dict[str, Any]] = []
    for name, other in (("all", rounded), ("layers", params | layers), ("embedding_and_head", params | ends)):
        num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(other))
        found = accuracy(config, params, other, texts)
        results.append({"case": name, **found, "gigabytes": round(num_bytes / 1e9, 3)})
        print(" ", json.dumps(results[-1]), flush=True)
    models = {"float32": params, "int8": rounded}
    for name in models if options.batch else ():
        models[name] = policy.unstack_layers(config, models[name], copy_head=True)
    del params, rounded, other
    ids, num_prompt = texts[0]
    for batch in options.batch:
        decoder = Decoder(config, ids[:num_prompt], batch, options.new_tokens)
        results.append({"case": f"decode_batch_{batch}", **speed(decoder, models, options.runs)})
        print(" ", json.dumps(results[-1]), flush=True)
    ratio = next((result["speedup"] for result in results if "speedup" in result), None)
    summary = {"name": "int8", "value": results[0]["mean_gap"], "unit": "nats", "ratio": ratio}
    print(json.dumps({**summary, "device": jax.devices()[0].device_kind, "cases": results}))


if __name__ == "__main__":
    main()
