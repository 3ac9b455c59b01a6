"""What a run spent until each evaluation, from its metrics.jsonl."""

import json
import pathlib
import statistics
from typing import Any, NamedTuple

import numpy as np

from deepsearch_jax.runtime.metrics import MACHINE_KEY, read_rows
from experiments.compare.cells import FINISHED
from experiments.compare.statistics import Curve

COSTS = {
    "steps": "training steps",
    "generated_tokens": "generated tokens",
    "processed_tokens": "training tokens (padding included)",
    "flops": "FLOPs",
    "cpu_seconds": "CPU seconds",
    "wall_seconds": "wall seconds",
}


class RunCurves(NamedTuple):
    """The validation curve of a run over each cost.

    Attributes:
      costs: [E] spent before each evaluation, by name (COSTS).
      rates: [E, P] share of right samples of each validation problem.
      rows: the metric rows.
    """

    costs: dict[str, np.ndarray]
    rates: np.ndarray
    rows: list[dict[str, Any]]

    def curve(self, cost: str) -> Curve:
        return Curve(self.costs[cost], self.rates)

    @property
    def accuracy(self) -> np.ndarray:
        """[E] validation pass@1."""
        return self.rates.mean(axis=1)


class Architecture(NamedTuple):
    """What the cost of a token depends on.

    Attributes:
      weights: entries of the matrices that every token is multiplied with, without the output head.
      head: entries of the output head.
      attention: layers * heads * head size: width of queries over all layers.
    """

    weights: int
    head: int
    attention: int

    def forward(self, tokens: float, context: float, *, with_head: bool = True) -> float:
        """Operations of a forward pass: 2 per weight and token, 4 per token, token attended to and query entry."""
        return tokens * (2.0 * (self.weights + (self.head if with_head else 0)) + 4.0 * self.attention * context)


def architecture(policy: pathlib.Path) -> Architecture:
    """Of a policy in Hugging Face layout."""
    config = json.loads((policy / "config.json").read_text())
    hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    kv = config.get("num_key_value_heads", heads)
    layer = hidden * (2 * heads * size + 2 * kv * size + 3 * config["intermediate_size"])
    return Architecture(layers * layer, config["vocab_size"] * hidden, layers * heads * size)


def step_flops(row: dict[str, Any], model: Architecture, prompt: float, passes: int) -> float:
    """Operations of one training step.

    Sampling: one forward pass of every generated token (and of tokens encoded again) with the context it has on
    average, prompt and half a response, and one of every prompt. Update: `passes` forward passes of every processed
    token, see `update_passes`.
    """
    context = prompt + row["response_length"] / 2
    again = row.get("recomputed_tokens") or 0
    sampling = model.forward(row["step_tokens"] + again, context)
    prefill = model.forward(row["drawn_groups"] * prompt, prompt / 2, with_head=False)
    return sampling + prefill + passes * model.forward(row["processed_tokens"], context / 2)


def update_passes(config: dict[str, Any]) -> int:
    """What an update costs a token, in forward passes: forward and backward are three.

    Old log-probs are a fourth where a step has several updates; with one they come from its own forward pass.
    """
    rounds = config["rounds"]
    has_several = rounds["problems_per_update"] not in (0, rounds["problems_per_step"])
    is_told = config["old_log_probs"] != "recompute" or config["optimizer"]["on_policy"]
    return 4 if has_several and not is_told else 3


def filter_flops(row: dict[str, Any], tokens: float, samples: int, model: Architecture, prompt: float) -> float:
    """The same of a filter that sampled `tokens`, `samples` responses a problem."""
    response = tokens / max(row["candidates"] * samples, 1)
    prefill = model.forward(row["candidates"] * prompt, prompt / 2, with_head=False)
    return model.forward(tokens, prompt + response / 2) + prefill


def phase_seconds(row: dict[str, Any], kind: str) -> float:
    """Seconds of a row's phases; `kind` is "seconds" (wall) or "cpu_seconds"."""
    return sum(v for k, v in row[MACHINE_KEY].items() if k.startswith(f"{kind}_"))


def steady_seconds(rows: list[dict[str, Any]], kind: str) -> list[float]:
    """Seconds of each training row, compilation taken out.

    What is compiled depends on the machine's cache and on which run came first, not on the method: a step in which a
    program was compiled or loaded counts at the median of the run's other steps, if that is less.
    """
    seconds = [phase_seconds(row, kind) for row in rows]
    steady = [s for s, row in zip(seconds, rows) if not row[MACHINE_KEY]["compilations"]]
    if not steady:
        return seconds
    typical = statistics.median(steady)
    return [min(s, typical) if row[MACHINE_KEY]["compilations"] else s for s, row in zip(seconds, rows, strict=True)]


def read_run(place: pathlib.Path) -> RunCurves:
    """The curves of a finished run; evaluations and the warm start cost nothing."""
    rows = read_rows(place / "metrics.jsonl")
    model = architecture(place / "policy")
    finished = json.loads((place / FINISHED).read_text())
    prompt, config = finished["prompt_length"], finished["config"]
    train = [row for row in rows if row["kind"] == "train"]
    seconds = {kind: iter(steady_seconds(train, kind)) for kind in ("seconds", "cpu_seconds")}
    passes = update_passes(config)
    spent = dict.fromkeys(COSTS, 0.0)
    costs: dict[str, list[float]] = {name: [] for name in COSTS}
    rates = []
    for row in rows:
        if row["kind"] == "filter":
            tokens = row["generated_tokens"] - spent["generated_tokens"]
            spent["flops"] += filter_flops(row, tokens, config["filter"]["num_samples"], model, prompt)
            spent["cpu_seconds"] += phase_seconds(row, "cpu_seconds")
            spent["wall_seconds"] += phase_seconds(row, "seconds")
            spent["generated_tokens"] = row["generated_tokens"]
        elif row["kind"] == "train":
            spent["steps"] = row["step"]
            spent["generated_tokens"] = row["generated_tokens"]
            spent["processed_tokens"] += row["processed_tokens"]
            spent["flops"] += step_flops(row, model, prompt, passes)
            spent["cpu_seconds"] += next(seconds["cpu_seconds"])
            spent["wall_seconds"] += next(seconds["seconds"])
        elif row["kind"] == "eval":
            for name, value in spent.items():
                costs[name].append(value)
            rates.append(np.asarray(row["num_correct"], float) / config["evaluation"]["num_samples"])
    return RunCurves({name: np.array(values) for name, values in costs.items()}, np.stack(rates), rows)
