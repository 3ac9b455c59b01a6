"""Replays every file of a folder of recorded data through the project's own functions.

`python -m tests.golden_replay DIR` prints the first difference of each trace or case that fails, and at the end
`passed N, failed M`; the exit code is 1 if any failed. The format is that of the golden README; what a file holds is
read off its content: search traces, advantages, policy losses, scored answers.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from deepsearch_jax.objective import reduce_loss, tree_grpo_loss
from deepsearch_jax.objective.advantages import token_advantages
from deepsearch_jax.objective.settings import LossSettings
from deepsearch_jax.verify.boxed import score_boxed
from tests.tree.replay import QUICK_COMPILE, Mismatch, expect, replay_group, settings_of

TOLERANCE = 1e-5


def replay_advantages(case: dict) -> None:
    """Advantages of one recorded batch, tokens [R, T]."""
    params, inputs = case["params"], case["inputs"]
    got = token_advantages(
        jnp.asarray(inputs["token_level_rewards"], jnp.float32),
        jnp.asarray(inputs["response_mask"]),
        inputs["index"],
        params["adv_norm_method"],
        params["norm_adv_by_std"],
        params["epsilon"],
        params["adv_scale_alpha"],
    )
    for name, wanted in case["outputs"].items():
        expect(name, got, wanted, TOLERANCE)


def replay_loss(case: dict) -> None:
    """Loss, its metrics and its gradient with respect to the log-probs."""
    params, inputs = case["params"], case["inputs"]
    settings = LossSettings(
        clip_low=params["cliprange_low"],
        clip_high=params["cliprange_high"],
        dual_clip=params["clip_ratio_c"],
        aggregation=params["loss_agg_mode"].replace("-", "_"),
    )
    old, new, advantages = (
        jnp.asarray(inputs[name], jnp.float32) for name in ("old_log_prob", "log_prob", "advantages")
    )
    mask = jnp.asarray(inputs["response_mask"])

    def loss_of(log_probs: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return reduce_loss(tree_grpo_loss(log_probs, old, advantages, mask, None, settings))

    gradient_of = jax.jit(jax.value_and_grad(loss_of, has_aux=True), compiler_options=QUICK_COMPILE)
    (_, metrics), gradient = gradient_of(new)
    for name, wanted in case["outputs"].items():
        expect(name, gradient if name == "grad_log_prob" else metrics[name], wanted, TOLERANCE)


def replay_answer(case: dict) -> None:
    """Verdict and normalised strings of one scored solution."""
    got = score_boxed(case["solution_str"], case["ground_truth"])
    for name, value in got._asdict().items():
        expect(name, value, case[name])


def kind_of(case: dict) -> Callable[[dict], None] | None:
    """The replay that fits a case, by what it holds."""
    if "solution_str" in case:
        return replay_answer
    if "old_log_prob" in case.get("inputs", {}):
        return replay_loss
    if "token_level_rewards" in case.get("inputs", {}):
        return replay_advantages
    return None


def replay_cases(cases: list[dict]) -> Iterator[tuple[str, str | None]]:
    """Yields id and None or the first difference of each case."""
    for number, case in enumerate(cases):
        replay, name = kind_of(case), case.get("id", f"case {number}")
        try:
            if replay is None:
                raise Mismatch(f"a case of unknown kind, with the fields {sorted(case)}")
            replay(case)
            yield name, None
        except Mismatch as mismatch:
            yield name, str(mismatch)


def replay_traces(traces: list[dict]) -> Iterator[tuple[str, str | None]]:
    """Yields id and None or the first difference of each search; values are float64, as the recordings need."""
    groups: dict = {}
    for trace in traces:
        groups.setdefault(settings_of(trace), []).append(trace)
    with jax.enable_x64(True):
        for settings, members in groups.items():
            yield from zip([trace["id"] for trace in members], replay_group(settings, members))


def replay_file(path: pathlib.Path) -> tuple[int, int]:
    """Replays one file and prints what differs; returns the counts passed and failed."""
    content = json.loads(path.read_text())
    start, passed, failed = time.monotonic(), 0, 0
    traces, cases = content.get("traces", []), content.get("cases", [])
    for verdicts in (replay_traces(traces), replay_cases(cases)):
        for name, difference in verdicts:
            if difference is None:
                passed += 1
                continue
            failed += 1
            print(f"FAILED {path.name} {name}: {difference}", flush=True)
    print(f"{path.name}: passed {passed}, failed {failed} in {time.monotonic() - start:.1f} s", flush=True)
    return passed, failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Replays every .json file of a folder in the golden format.")
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args(arguments).folder
    files = sorted(folder.glob("*.json"))
    if not files:
        parser.error(f"{folder} holds no .json file; give a folder of recorded traces or cases")
    passed, failed = np.sum([replay_file(path) for path in files], axis=0)
    print(f"passed {passed}, failed {failed}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
