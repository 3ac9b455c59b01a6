"""How far log-probs of the tree decoder are from teacher-forced ones, in float32 and in bfloat16.

`python -m benchmarks.decode_gap [--model DIR]` samples a tree of two levels (the second one behind pages of the first)
and puts every sampled token through one plain forward pass. In float32 the two must agree but for rounding; in bfloat16
the gap says what an update would see as a change of policy where there is none. The last line is one JSON object:
`value` is the largest float32 gap in nats, `ratio` that over 1e-4, the most allowed; `cases` has both types.
"""

import argparse
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import finish
from deepsearch_jax.decode import DecodeRequest, DecodeSettings, decode_children, init_pages, prefill
from deepsearch_jax.policy import load_pretrained, token_log_probs

LIMIT = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tests/data/tiny_qwen2", help="Hugging Face directory")
    parser.add_argument("--prompt", type=int, default=48, help="tokens")
    parser.add_argument("--segment", type=int, default=16, help="tokens")
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args()
    cases = []
    for dtype in ("float32", "bfloat16"):
        model, params = load_pretrained(options.model, compute_dtype=dtype)
        settings = DecodeSettings(
            num_samples=options.samples, segment_length=options.segment, max_prompt_length=options.prompt
        )
        expand = jax.jit(functools.partial(decode_children, model, settings=settings))
        prompt = np.random.default_rng(0).integers(2, min(model.vocab_size, 150_000), (1, options.prompt))
        lengths = jnp.full(1, options.prompt, jnp.int32)
        pages = init_pages(model, 1, options.samples, options.segment, options.prompt)
        encode = jax.jit(functools.partial(prefill, model))
        pages = encode(params, pages, jnp.asarray(prompt, jnp.int32), lengths, jnp.ones(1, bool))
        request = DecodeRequest(
            prompt_lengths=lengths, path_pages=jnp.zeros((1, 0), jnp.int32), depth=jnp.zeros(1, jnp.int32),
            last_token=jnp.asarray(prompt[:, -1], jnp.int32), child_pages=jnp.arange(options.samples)[None],
            row_keys=jax.random.split(jax.random.key(1), (1, options.samples)), active=jnp.ones(1, bool),
        )  # fmt: skip
        pages, first, _ = expand(params, pages, request)
        below = dataclasses.replace(
            request, path_pages=jnp.zeros((1, 1), jnp.int32), depth=jnp.ones(1, jnp.int32),
            last_token=first.tokens[:, 0, -1], child_pages=jnp.full((1, options.samples), -1, jnp.int32),
            row_keys=jax.random.split(jax.random.key(2), (1, options.samples)),
        )  # fmt: skip
        _, second, _ = expand(params, pages, below)
        paths = [(prompt[0], first, k) for k in range(options.samples)]
        paths += [(np.concatenate([prompt[0], first.tokens[0, 0]]), second, k) for k in range(options.samples)]
        gaps = []
        for prefix, segments, k in paths:
            tokens = jnp.asarray(np.concatenate([prefix, segments.tokens[0, k]])[None], jnp.int32)
            forced, _ = token_log_probs(model, params, tokens, jnp.ones_like(tokens), chunk_size=64)
            gaps.append(np.abs(np.asarray(forced[0, len(prefix) :]) - np.asarray(segments.log_probs[0, k])))
        gap = np.concatenate(gaps)
        cases.append({"case": dtype, "value": float(gap.max()), "mean": float(gap.mean()), "tokens": gap.size})
        print(cases[-1], flush=True)
    finish("decode_gap", cases[0]["value"], "nats", cases[0]["value"] / LIMIT, cases=cases)


if __name__ == "__main__":
    main()
