"""Searches per minute: continuous slots against lockstep batches, and how long the device stands idle.

`python -m benchmarks.search` searches 64 problems of unequal length (chains of 1 to 6 steps) with the quick start's
policy, in one process by two ways of using the same compiled iteration: *continuous* (a finished tree's slot takes the
next problem) and *lockstep* (a batch of trees is searched to its end before the next one begins). Both find the same
trees, which is checked. Idle is the time between the first call and the last result in which no call was in flight on
the device. The last line is one JSON object: `value` is the median of searches per minute of the continuous slots,
`ratio` that over the lockstep one.
"""

import argparse
import dataclasses
import pathlib
import queue
import threading
import time
from typing import Any

import jax

from benchmarks.common import Policy, closing, finish, median, real_policy, timed, tiny_policy
from deepsearch_jax.runtime import slots
from deepsearch_jax.runtime.rollouts import Group, Sampler, chunks


class Busy:
    """Measures when the device has work: watches every call of the search from dispatch to completion."""

    def __init__(self) -> None:
        self.seconds, self._until = 0.0, 0.0
        self._calls: queue.Queue[tuple[float, Any] | None] = queue.Queue()
        self._original = slots._search_iteration

    def __enter__(self) -> "Busy":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

        def watched(*args: Any, **settings: Any) -> Any:
            start = time.perf_counter()
            state, view = self._original(*args, **settings)
            self._calls.put((start, view))
            return state, view

        slots._search_iteration = watched
        return self

    def __exit__(self, *exc_info: object) -> None:
        slots._search_iteration = self._original
        self._calls.put(None)
        self._thread.join()

    def _watch(self) -> None:
        while (call := self._calls.get()) is not None:
            start, view = call
            jax.block_until_ready(view)
            end = time.perf_counter()
            self.seconds += end - max(start, self._until)
            self._until = end


def continuous(sampler: Sampler, policy: Policy, problems: list[Any]) -> list[Group]:
    return sampler.search(policy.params, problems, (0, 0))[0]


def lockstep(sampler: Sampler, policy: Policy, problems: list[Any]) -> list[Group]:
    return [
        group
        for chunk in chunks(problems, sampler.rollout.num_slots)
        for group in sampler.search(policy.params, chunk, (0, 0))[0]
    ]


def tokens_of(groups: list[Group]) -> list[list[list[int]]]:
    return [[response.tokens.tolist() for response in group.responses] for group in groups]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="Hugging Face directory; default: the quick start's tiny policy")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--slots", type=int, default=24)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--half_batches", choices=("yes", "no", "auto"), default="auto")
    parser.add_argument("--keep", type=pathlib.Path, help="directory that keeps the tiny policy between runs")
    options = parser.parse_args()
    made = (
        real_policy(options.model) if options.model else tiny_policy(options.keep, problem_lengths=(1, 2, 3, 4, 5, 6))
    )
    with closing(made) as policy:
        rollout = dataclasses.replace(
            policy.settings.rollout, num_slots=options.slots, half_batches=options.half_batches
        )
        ours = policy.sampler(rollout=rollout)
        # Lockstep takes all slots as one batch: nothing of it can overlap anyway.
        theirs = policy.sampler(rollout=dataclasses.replace(rollout, half_batches="no"))
        problems = list(policy.task.train_problems)[: options.problems]
        ways = {"continuous": (continuous, ours), "lockstep": (lockstep, theirs)}
        found = {name: tokens_of(way(sampler, policy, problems)) for name, (way, sampler) in ways.items()}
        if found["continuous"] != found["lockstep"]:
            raise SystemExit("the two ways found other trees")
        walls: dict[str, list[float]] = {name: [] for name in ways}
        cpus: dict[str, list[float]] = {name: [] for name in ways}
        idle: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.runs):
            for name, (way, sampler) in ways.items():
                with Busy() as busy:
                    _, wall, cpu = timed(lambda way=way, sampler=sampler: way(sampler, policy, problems))
                walls[name].append(wall)
                cpus[name].append(cpu)
                idle[name].append(1 - busy.seconds / wall)
                print(f"{name}: {wall:.2f} s, {cpu:.2f} CPU s, idle {idle[name][-1]:.1%}", flush=True)
        per_minute = {name: 60 * len(problems) / median(walls[name]) for name in ways}
        cases = [
            {"case": name, "value": per_minute[name], "per_cpu_minute": 60 * len(problems) / median(cpus[name]),
             "idle_share": median(idle[name]), "wall_seconds": walls[name]}
            for name in ways
        ]  # fmt: skip
        ratio = per_minute["continuous"] / per_minute["lockstep"]
        finish(
            "search", per_minute["continuous"], "searches per minute", ratio,
            idle_share=median(idle["continuous"]), slots=options.slots, problems=len(problems), runs=options.runs,
            cases=cases,
        )  # fmt: skip


if __name__ == "__main__":
    main()
