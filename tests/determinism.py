"""Checks that a run repeats itself: `python -m tests.determinism --workdir DIR [--parts repeat,debug,trees]`.

- repeat: the same command in two fresh processes writes the same metrics, bit for bit, apart from `machine`;
- debug: so does a third one under jax_debug_nans and with implicit transfers disallowed around the hot steps;
- trees: in float32 a search grows the same trees, token for token, and direct sampling gives the same responses, in
  whatever order and number of slots, in one batch or two halves, on 1, 2, 4 or 8 (virtual) devices.

It prints a table and one line of JSON; the exit code is 1 if anything differs. `--config` takes any config with its
variant, `--setting search.expansion=lazy` changes a setting (several times, if need be).
"""

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

if __name__ == "__main__":
    # The runs are processes of their own, on the devices there are; the searches of this one have eight virtual ones.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    RUN_FLAGS = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = RUN_FLAGS + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

import jax

from deepsearch_jax.runtime import build_mesh, build_policy
from deepsearch_jax.runtime.metrics import MACHINE_KEY, read_rows
from deepsearch_jax.runtime.rollout_settings import RolloutSettings
from deepsearch_jax.runtime.rollouts import Purpose, Sampler
from deepsearch_jax.tree import SearchSettings
from tests.runtime.conftest import tiny_settings
from tests.runtime.parity import ParityTask

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PARTS = ("repeat", "debug", "trees")
DEBUG = ("--config.debug.nans=true", "--config.debug.transfer_guard=true")
QUICKSTART = "experiments/configs/quickstart.py:short"

EAGER = SearchSettings(segment_length=3, max_depth=5, expansion_width=2, num_trajectories=4, capacity=31)
SEARCHES = {"eager": EAGER, "lazy": dataclasses.replace(EAGER, expansion="lazy", picks_per_step=2)}
NUM_PROBLEMS = 11
WAYS: tuple[dict[str, Any], ...] = (
    {"reverse": True},
    {"num_slots": 1},
    {"num_slots": 3, "reverse": True},
    {"num_slots": 16},
    {"half_batches": "yes"},
    {"half_batches": "yes", "num_slots": 16},
    {"num_devices": 2, "half_batches": "yes"},
    {"num_devices": 4},
    {"num_devices": 8, "num_slots": 8},
    {"num_devices": 8, "num_slots": 16, "half_batches": "yes", "reverse": True},
)


@dataclasses.dataclass
class Check:
    """One comparison: of what, how much was compared, what differs first ("" = nothing), and what it cost."""

    part: str
    name: str
    compared: str
    difference: str
    cpu_seconds: float
    wall_seconds: float


# ----------------------------------------------------------------------------------------------------------------- runs


def differences(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> list[str]:
    """Where metric rows differ, `machine` apart; values are compared as JSON has them, which is every bit of them."""
    found = [] if len(one) == len(other) else [f"{len(one)} rows against {len(other)}"]
    for number, (a, b) in enumerate(zip(one, other, strict=False)):
        found += [
            f"row {number} ({a['kind']}, step {a['step']}) {name}: {a.get(name)!r}, {b.get(name)!r}"
            for name in sorted({*a, *b} - {MACHINE_KEY})
            if (name in a, a.get(name)) != (name in b, b.get(name))
        ]
    return found


def start_run(config: str, workdir: pathlib.Path, arguments: Sequence[str]) -> None:
    """One run in a process of its own.

    Raises:
      RuntimeError: it failed; with the end of what it said.
    """
    command = [sys.executable, "-m", "experiments.run", f"--config={config}", f"--workdir={workdir}", *arguments]
    flags = {"XLA_FLAGS": globals().get("RUN_FLAGS", "")}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout[-3000:]}")


def check_runs(config: str, workdir: pathlib.Path, parts: Sequence[str], arguments: Sequence[str]) -> Iterator[Check]:
    """The first run, and those that are compared with it."""
    arguments = [f"--config.compile_cache={workdir.resolve() / 'programs'}", *arguments]
    ways = {"first": (), "repeat": (), "debug": DEBUG}
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in ("first", *(part for part in parts if part in ways)):
        if (workdir / name / "metrics.jsonl").exists():
            raise ValueError(f"{workdir / name} holds a run already; give a fresh --workdir")
        _, cpu, wall = timed(lambda: start_run(config, workdir / name, [*arguments, *ways[name]]))  # noqa: B023
        rows[name] = read_rows(workdir / name / "metrics.jsonl")
        found = differences(rows["first"], rows[name])
        numbers = sum(len(row) - 1 for row in rows[name])
        what = {"first": f"{config}, plain", "repeat": "the same again", "debug": "debug.nans, debug.transfer_guard"}
        yield Check(name, what[name], f"{len(rows[name])} rows, {numbers} values", "; ".join(found[:3]), cpu, wall)


# ---------------------------------------------------------------------------------------------------------------- trees


def rollouts(policy: Any, search: SearchSettings | None, how: dict[str, Any]) -> dict[str, Any]:
    """By problem: responses of its tree with their values, or (search None) direct samples with their log-probs."""
    options = {"num_slots": 4, "prompt_multiple": 8, "path_multiple": 5} | how
    num_devices, reverse = options.pop("num_devices", 1), options.pop("reverse", False)
    task = ParityTask()
    sampler = Sampler(
        task, policy[0], search or EAGER, RolloutSettings(**options), run_key=jax.random.key(5),
        mesh=build_mesh(num_devices), check_stop=lambda: None, advance=lambda done, detail: None,
    )  # fmt: skip
    problems = task.train_problems[:NUM_PROBLEMS][:: -1 if reverse else 1]
    if search is None:
        groups = sampler.direct(policy[1], problems, 4, Purpose.DIRECT, (0, 1))
    else:
        groups, _ = sampler.search(policy[1], problems, (0, 1))
    return {
        group.problem.id: [(r.tokens.tolist(), int(r.outcome), r.node_values.tolist()) for r in group.responses]
        for group in groups
    }


def check_trees(ways: Sequence[dict[str, Any]] = WAYS) -> Iterator[Check]:
    """Every way of going through the slots against four slots in order on one device."""
    policy = build_policy(tiny_settings().model, ParityTask(), EAGER, seed=3)
    for kind, search in {**SEARCHES, "direct": None}.items():
        expected = rollouts(policy, search, {})
        for how in ways:
            if search is None and how.get("half_batches"):
                continue  # direct sampling knows no halves
            found, cpu, wall = timed(lambda: rollouts(policy, search, dict(how)))  # noqa: B023 (called at once)
            unlike = [problem for problem in expected if found[problem] != expected[problem]]
            tokens = sum(len(tokens) for group in found.values() for tokens, *_ in group)
            name = f"{kind}: " + ", ".join(f"{key}={value}" for key, value in how.items())
            difference = f"other responses to {', '.join(unlike)}" if unlike else ""
            yield Check("trees", name, f"{len(found)} problems, {tokens} tokens", difference, cpu, wall)


# --------------------------------------------------------------------------------------------------------------- report


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What `work` gives, and the CPU and wall seconds it took, child processes included."""

    def cpu() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in used)

    cpu_begin, begin = cpu(), time.monotonic()
    result = work()
    return result, cpu() - cpu_begin, time.monotonic() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, help="fresh directory for the runs; not needed for trees alone")
    parser.add_argument("--config", default=QUICKSTART)
    parser.add_argument("--parts", default=",".join(PARTS), help="of repeat, debug, trees")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="of the runs")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts={options.parts}: {', '.join(sorted(unknown))} is not one of {', '.join(PARTS)}")
    needs_runs = {"repeat", "debug"} & set(parts)
    if needs_runs and options.workdir is None:
        parser.error("the runs need a --workdir")
    checks: list[Check] = []

    def go_through(found: Iterator[Check]) -> None:
        for check in found:
            checks.append(check)
            outcome = f"DIFFERENT: {check.difference}" if check.difference else "equal"
            print(
                f"{check.name:<58} {check.compared:<26} {check.cpu_seconds:7.1f} CPU s {check.wall_seconds:7.1f} s  "
                f"{outcome if check.part != 'first' else 'compared with'}",
                flush=True,
            )

    if needs_runs:
        arguments = [f"--config.{setting}" for setting in options.setting]
        go_through(check_runs(options.config, options.workdir, parts, arguments))
    if "trees" in parts:
        go_through(check_trees())
    compared = [check for check in checks if check.part != "first"]
    unlike = [check for check in compared if check.difference]
    totals = {
        part: {
            "checks": sum(check.part == part for check in compared),
            "different": sum(check.part == part for check in unlike),
        }
        for part in parts
    }
    cpu_seconds = round(sum(check.cpu_seconds for check in checks), 1)
    print(json.dumps({"equal": not unlike, "parts": totals, "config": options.config, "cpu_seconds": cpu_seconds}))
    return 1 if unlike else 0


if __name__ == "__main__":
    sys.exit(main())
