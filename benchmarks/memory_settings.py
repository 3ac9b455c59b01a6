"""Memory of one update of a 0.5B model, compiled ahead of time and not run: moments, adapters, remat, micro-batches.

`python -m benchmarks.memory_settings` compiles for the backend that is there; on CPU products are float32, so
activations take twice what they take in bfloat16. `state` and `base` are what is held between updates, `update` what an
update needs beside them (gradients, activations, logits of a chunk).
"""

import argparse
import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import finish
from deepsearch_jax.objective import LossSettings
from deepsearch_jax.policy import LoraSettings, ModelConfig, freeze, init_adapters, init_params
from deepsearch_jax.runtime.learning import _log_prob_fn
from deepsearch_jax.training import UpdateSettings, init_train_state, updates
from deepsearch_jax.types import TokenBatch

QWEN_05B = ModelConfig(remat="full")
LORA = LoraSettings(rank=16)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], LoraSettings]] = {
    "float32 moments": ({}, {}, LoraSettings()),
    "bfloat16 moments": ({}, {"state_dtype": "bfloat16"}, LoraSettings()),
    "int8 moments": ({}, {"state_dtype": "int8"}, LoraSettings()),
    "adapters of rank 16": ({}, {}, LORA),
    "remat dots": ({"remat": "dots"}, {}, LoraSettings()),
    "remat none": ({"remat": "none"}, {}, LoraSettings()),
    "int8, adapters": ({}, {"state_dtype": "int8"}, LORA),
    "1 row at a time": ({}, {"micro_batch_rows": 1}, LoraSettings()),
    "8 rows at a time": ({}, {"micro_batch_rows": 8}, LoraSettings()),
}


def num_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def measure(
    model: ModelConfig, settings: UpdateSettings, lora: LoraSettings, rows: int, length: int, chunk: int
) -> dict[str, float]:
    """GB of one case."""
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    base = None
    if lora.rank:
        base = jax.eval_shape(lambda p: freeze(model, p), params)
        params = jax.eval_shape(lambda: init_adapters(model, lora, jax.random.key(0)))
    state = jax.eval_shape(lambda p: init_train_state(p, settings), params)
    ints, floats, mask = (jax.ShapeDtypeStruct((rows, length), d) for d in (jnp.int32, jnp.float32, jnp.bool))
    compiled = updates._update.lower(
        state, TokenBatch(ints, ints, mask, floats, floats), base, loss_settings=LossSettings(), settings=settings,
        log_prob_fn=_log_prob_fn(model, chunk, lora.scale), mesh=None, placement=None,
    ).compile()  # fmt: skip
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == num_bytes(state)
    found = {"state": num_bytes(state), "base": num_bytes(base), "update": memory.temp_size_in_bytes}
    return {name: value / 1e9 for name, value in found.items()} | {"in_all": sum(found.values()) / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--chunk", type=int, default=512, help="tokens whose logits exist at a time")
    parser.add_argument("--compute_dtype", default="float32")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    cases = []
    for name in options.cases:
        of_model, of_update, lora = CASES[name]
        model = dataclasses.replace(QWEN_05B, compute_dtype=options.compute_dtype, **of_model)
        settings = UpdateSettings(**of_update)
        cases.append({"case": name} | measure(model, settings, lora, options.rows, options.length, options.chunk))
        print(json.dumps(cases[-1]), flush=True)
    finish("memory_settings", cases[-1]["in_all"], "GB", cases[0]["in_all"] / cases[-1]["in_all"], cases=cases)


if __name__ == "__main__":
    main()
