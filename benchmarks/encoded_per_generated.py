"""Tokens encoded per token generated over whole searches, for pools of KV pages of several sizes.

`python -m benchmarks.encoded_per_generated` runs the same searches with a pool that holds a page for every node that
needs one and with pools down to a tenth of that. Counted are generated tokens that go through the decoder (each at most
once, but for what is encoded again because its page was gone); the prompts are left out. Beside them stands the
authors' way, computed from the same trees: each expansion is a fresh request for every child, whose whole path is
encoded again (`no cache`), or, with a server that keeps the siblings' common prefix, once an expansion (`prefix once`).
The last line is one JSON object: `value` with enough pages, `ratio` the authors' way over it. Trees must not depend on
the pool.
"""

import argparse
import dataclasses
import pathlib
from typing import Any

from benchmarks.common import closing, finish, real_policy, tiny_policy
from deepsearch_jax.runtime import slots
from deepsearch_jax.runtime.memory import page_bytes

SHARES = (1.0, 0.75, 0.5, 0.35, 0.2, 0.1)


class PathTokens:
    """Sums the lengths of the expanded nodes' paths: what an engine without a tree cache would encode again."""

    def __init__(self) -> None:
        self.once = 0

    def __enter__(self) -> "PathTokens":
        self._original = slots.Slots._count

        def count(this: Any, batch: Any, view: Any) -> None:
            self.once += int(view.path_lengths.sum())
            self._original(this, batch, view)

        slots.Slots._count = count  # type: ignore[method-assign]
        return self

    def __exit__(self, *exc_info: object) -> None:
        slots.Slots._count = self._original  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="Hugging Face directory; default: the quick start's tiny policy")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--keep", type=pathlib.Path, help="directory that keeps the tiny policy between runs")
    parser.add_argument("--variant", default="", help="of the config: the default one of the task, or `paper`")
    options = parser.parse_args()
    if options.model:
        made = real_policy(options.model, variant=options.variant or "cpu")
    else:
        made = tiny_policy(options.keep, variant=options.variant or "deepsearch")
    with closing(made) as policy:
        problems = list(policy.task.train_problems)[: options.problems]
        search = policy.settings.search
        rollout = dataclasses.replace(policy.settings.rollout, num_slots=options.slots, half_batches="no")
        one_page = page_bytes(policy.model, search.segment_length)
        # The need is measured, not guessed: most pages that were in use at a time in a pool with one a node.
        with PathTokens() as paths:
            sampler = policy.sampler(rollout=dataclasses.replace(rollout, page_pool_gib=1e6))
            groups, _ = sampler.search(policy.params, problems, (0, 0))
        full = options.slots * search.capacity * one_page
        probe = dataclasses.replace(
            rollout, page_pool_gib=(full - one_page) / 2**30
        )  # one page short: pages are counted
        _, statistics = policy.sampler(rollout=probe).search(policy.params, problems, (0, 0))
        need = statistics.slots.peak_pages
        expected = [[response.tokens.tolist() for response in group.responses] for group in groups]
        authors = {
            "no cache": 1 + paths.once * search.children_per_expansion / statistics.slots.generated_tokens,
            "prefix once": 1 + paths.once / statistics.slots.generated_tokens,
        }
        cases = []
        for share in SHARES:
            pages = max(int(share * need), 1)
            sized = dataclasses.replace(rollout, page_pool_gib=(pages + 0.5) * one_page / 2**30)
            groups, statistics = policy.sampler(rollout=sized).search(policy.params, problems, (0, 0))
            found = [[response.tokens.tolist() for response in group.responses] for group in groups]
            used = statistics.slots
            cases.append(
                {
                    "pool_share": share, "pages": pages,
                    "value": (used.fed_tokens + used.recomputed_tokens) / used.generated_tokens,
                    "recomputed_tokens": used.recomputed_tokens, "evictions": used.evictions,
                    "generated_tokens": used.generated_tokens, "same_trees": found == expected,
                }
            )  # fmt: skip
            print(cases[-1], flush=True)
        finish(
            "encoded_per_generated", cases[0]["value"], "tokens", authors["no cache"] / cases[0]["value"],
            authors=authors, need_pages=need, problems=len(problems), slots=options.slots, cases=cases,
        )  # fmt: skip


if __name__ == "__main__":
    main()
