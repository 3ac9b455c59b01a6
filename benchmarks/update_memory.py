"""Memory of an update as the tokens of its micro-batches double, at a large vocabulary.

`python -m benchmarks.update_memory` compiles the update of a narrow decoder with 150,000 tokens of vocabulary ahead of
time for rows of one response and for packed trees, from 2,048 tokens on, and reads the compiler's memory analysis; in
this decoder logits of all tokens would outweigh everything else. The last line is one JSON object: `value` is the
largest growth of the temporary memory from one case to the next over vocabulary x added tokens x 4 bytes, `ratio`
the largest temporary memory over that of the logits of all tokens.
"""

import argparse
import functools
import json
from typing import Any

import jax

from benchmarks.common import finish, plain
from deepsearch_jax.objective import LossSettings
from deepsearch_jax.policy import ModelConfig, token_log_probs, tree_log_probs
from deepsearch_jax.runtime.memory import abstract_state
from deepsearch_jax.runtime.planning.plan import Rows, batch_shapes
from deepsearch_jax.training import UpdateSettings, lower_update

VOCABULARY = 150_000
CHUNK = 256
MODEL = ModelConfig.tiny(VOCABULARY, hidden_size=16, num_layers=2, num_heads=1, max_position_embeddings=1 << 16,
                         remat="full")  # fmt: skip


def temporary_bytes(tokens: int, is_trees: bool, *, micro_batches: int = 2, chunk: int = CHUNK) -> int:
    """Temporary memory of an update on rows of so many tokens, one a micro-batch.

    The gradients of the embedding, one number for each of its own, are a part of it that does not grow.
    """
    settings = UpdateSettings(micro_batch_rows=1)
    of = tree_log_probs if is_trees else token_log_probs
    log_prob_fn = functools.partial(_log_probs, of=of, chunk_size=chunk)
    rows = Rows(is_trees, micro_batches, tokens, 1)
    state = abstract_state(MODEL, settings, None)
    lowered = lower_update(state, batch_shapes(rows, None), log_prob_fn, LossSettings(), settings)
    memory: Any = lowered.compile().memory_analysis()
    return memory.temp_size_in_bytes


def _log_probs(params: Any, *inputs: jax.Array, of: Any, chunk_size: int) -> tuple[jax.Array, jax.Array]:
    return of(MODEL, params, *inputs, chunk_size=chunk_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    options = parser.parse_args()
    cases: list[dict[str, Any]] = []
    for is_trees in (False, True):
        before: dict[str, Any] | None = None
        for tokens in options.tokens:
            case: dict[str, Any] = {"form": "trees" if is_trees else "responses", "tokens": tokens}
            case["mib"] = temporary_bytes(tokens, is_trees) / 2**20
            case["logits_mib"] = tokens * VOCABULARY * 4 / 2**20
            if before:
                case["growth"] = (case["mib"] - before["mib"]) / (case["logits_mib"] - before["logits_mib"])
            cases.append(case)
            print(json.dumps(plain(case)), flush=True)
            before = case
    finish(
        "update_memory", max(case.get("growth", 0.0) for case in cases), "growth per byte of logits",
        cases[-1]["mib"] / cases[-1]["logits_mib"], chunk=CHUNK, cases=cases,
    )  # fmt: skip


if __name__ == "__main__":
    main()
