"""What a token of search buys: correct credited trajectories per 1,000 generated tokens on a frozen policy.

`python -m benchmarks.lazy [--model DIR]` searches the same problems with the project's default (best first), with the
authors' settings (`paper`), with eager and lazy expansion under scores of the own segment and of the whole path, and
samples directly without a tree, at temperature 1 and as cold as the default. Nothing is trained. Counted is all that
was sampled, also what no credited trajectory uses, and every correct trajectory that a tree credits (or a group
holds); `distinct` counts equal ones of a problem once. Problems and seeds are the same for all. The last line is one
JSON object: `value` is the project's default per 1,000 tokens, `ratio` that over `paper`; `cases` has the figures of
each way, per token and per CPU second, medians over the seeds with their range.
"""

import argparse
import dataclasses
import pathlib
from typing import Any, NamedTuple

from benchmarks.common import closing, finish, median, real_policy, settings_of, timed, tiny_policy, told_now_and_then
from deepsearch_jax.runtime import RunSettings
from deepsearch_jax.runtime.rollouts import Purpose
from deepsearch_jax.tree import SearchSettings
from deepsearch_jax.types import Outcome


class Way(NamedTuple):
    """A search, or direct samples where it is None, and the temperature of its tokens."""

    search: SearchSettings | None
    temperature: float


def ways(default: RunSettings, paper: RunSettings) -> dict[str, Way]:
    """What is compared."""
    eager = dataclasses.replace(
        default.search, expansion="eager", picks_per_step=1, siblings="independent", expansion_width=2,
        frontier_value_weight=0.4, frontier_entropy="own", frontier_entropy_weight=-3.0, frontier_depth_weight=0.01,
        num_trajectories=paper.search.num_trajectories, trajectories_if_solved=0,
    )  # fmt: skip
    path = {"frontier_entropy": "path", "frontier_entropy_weight": -10.0}
    lazy = {"expansion": "lazy", "picks_per_step": 2}
    cold = default.rollout.temperature
    return {
        "default": Way(default.search, cold),
        "paper": Way(paper.search, paper.rollout.temperature),
        "direct": Way(None, 1.0),
        "direct, as cold": Way(None, cold),
        "eager own": Way(eager, 1.0),
        "eager path": Way(dataclasses.replace(eager, **path), 1.0),
        "lazy own": Way(dataclasses.replace(eager, **lazy), 1.0),
        "lazy path": Way(dataclasses.replace(eager, **lazy, **path), 1.0),
    }


def _over(ours: float, theirs: float) -> float | None:
    """None where they found nothing."""
    return ours / theirs if theirs else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="Hugging Face directory; default: the quick start's tiny policy")
    parser.add_argument("--problems", type=int, default=0, help="default: 128 of the tiny task, 16 of a real model's")
    parser.add_argument("--first", type=int, default=0, help="number of the first problem")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--slots", type=int, default=0, help="trees searched together; default: the config's")
    parser.add_argument("--ways", nargs="+", help="some of them only")
    parser.add_argument("--keep", type=pathlib.Path, help="directory that keeps the tiny policy between runs")
    options = parser.parse_args()
    config, variant = ("qwen05b_gsm8k", "cpu") if options.model else ("quickstart", "best_first")
    made = real_policy(options.model, variant=variant) if options.model else tiny_policy(options.keep, variant=variant)
    paper = settings_of(config, "cpu_paper" if options.model else "paper", model__path=options.model)
    with closing(made) as policy:
        count = options.problems or (16 if options.model else 128)
        problems = list(policy.task.train_problems)[options.first : options.first + count]
        group_size = policy.settings.rounds.group_size
        cases = []
        for name, (search, temperature) in ways(policy.settings, paper).items():
            if options.ways and name not in options.ways:
                continue
            slots = options.slots or policy.settings.rollout.num_slots
            rollout = dataclasses.replace(policy.settings.rollout, num_slots=slots, temperature=temperature)
            sampler = policy.sampler(told_now_and_then(name), search=search or policy.settings.search, rollout=rollout)
            sampler_name: dict[str, Any] = {}
            per_token, per_second, solved, tokens, distinct = [], [], [], [], []

            def one(seed: int, problems=problems, sampler=sampler, search=search) -> tuple[int, int, int, float]:
                before = sampler.generated_tokens
                if search is None:
                    groups = sampler.direct(policy.params, problems, group_size, Purpose.DIRECT, (seed, 0))
                else:
                    groups, _ = sampler.search(policy.params, problems, (seed, 0))
                correct = sum(group.num_correct for group in groups)
                share = sum(group.num_correct > 0 for group in groups) / len(groups)
                different = sum(
                    len({tuple(r.tokens.tolist()) for r in group.responses if r.outcome == Outcome.CORRECT})
                    for group in groups
                )
                return correct, different, sampler.generated_tokens - before, share

            one(0, [max(problems, key=lambda problem: len(policy.task.prompt(problem)))])  # compiles for all of them
            for seed in range(options.seeds):
                (correct, different, num_tokens, share), wall, cpu = timed(lambda seed=seed, one=one: one(seed))
                per_token.append(1000 * correct / num_tokens)
                per_second.append(correct / cpu)
                distinct.append(1000 * different / num_tokens)
                solved.append(share)
                tokens.append(num_tokens)
                print(f"{name} seed {seed}: {correct} correct ({different} distinct), {num_tokens} tokens, "
                      f"{wall:.1f} s, {cpu:.1f} CPU s, solved {share:.2f}", flush=True)  # fmt: skip
            sampler_name |= {
                "case": name, "value": median(per_token), "range": [min(per_token), max(per_token)],
                "per_cpu_second": median(per_second), "distinct": median(distinct), "solved_share": median(solved),
                "tokens": median(tokens),
            }  # fmt: skip
            cases.append(sampler_name)
        by_name = {case["case"]: case for case in cases}
        ours = by_name.get("default", cases[0])
        ratios = {
            name: {"per_token": _over(ours["value"], case["value"]),
                   "distinct": _over(ours["distinct"], case["distinct"]),
                   "per_cpu_second": _over(ours["per_cpu_second"], case["per_cpu_second"])}
            for name, case in by_name.items()
        }  # fmt: skip
        finish(
            "lazy", ours["value"], "correct trajectories per 1000 tokens", ratios.get("paper", {}).get("per_token"),
            ratios=ratios, problems=len(problems), seeds=options.seeds, cases=cases,
        )  # fmt: skip


if __name__ == "__main__":
    main()
