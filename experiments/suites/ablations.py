"""The paper's Tables 3 to 6 and the project's own switches, each against `eager` (sparse setting) on five seeds.

The parts of `best first` are left out of it one at a time.
"""

from experiments.compare.suite import Method, Overrides, Suite
from experiments.suites.methods import ADAPTIVE, BEST_FIRST, DAPO, DEEPSEARCH, EAGER, EAGER_PATH, GRPO

# Table 6: five rounds, each on what is still hard, with the cache kept between them.
_ROUNDS = {
    "rounds.num_rounds": 5, "rounds.steps_per_round": 8, "rounds.filter_problems": True, "rounds.refilter": "all",
    "rounds.max_candidates": 192, "filter.easy_share": 0.2,
}  # fmt: skip


def _changed(name: str, overrides: Overrides) -> Method:
    return Method(name, {**EAGER.overrides, **overrides})


def _without(part: str, overrides: Overrides) -> Method:
    return Method(f"best first: {part}", {**BEST_FIRST.overrides, **overrides})


def get_suite() -> Suite:
    return Suite(
        name="ablations",
        title="One switch at a time from `eager` (width 2, own segment, l2 = -3), nothing tuned.",
        settings=("sparse",),
        ours="eager",
        methods=(
            EAGER, BEST_FIRST, ADAPTIVE, DEEPSEARCH, EAGER_PATH, GRPO, DAPO,
            # Table 3: selection.
            _changed("uct", {"search.backtrace": "uct", "search.force_to_frontier": False}),
            _changed("depth log", {"search.depth_bonus": "log"}),
            _changed("depth constant", {"search.depth_bonus": "constant"}),
            _changed("l2 = 0", {"search.frontier_entropy_weight": 0.0}),
            _changed("l2 = +1", {"search.frontier_entropy_weight": 1.0}),
            # Table 4: backup and advantages.
            _changed("vanilla backup", {"search.backup_rule": "vanilla"}),
            _changed("outcome only", {"advantage.level": "outcome"}),
            _changed("mean and std", {"advantage.normalisation": "mean_std"}),
            _changed("uniform trees kept", {"advantage.drop_uniform": False}),
            # Table 5: which wrong trajectory.
            _changed("wrong: random", {"search.negative_choice": "random"}),
            _changed("wrong: least confident", {"search.negative_choice": "least_confident"}),
            # Table 6 and the cache.
            _changed("no cache", {"cache.capacity": 0}),
            _changed("five rounds", _ROUNDS),
            _changed("width 4", {"search.expansion_width": 4, "search.capacity": 161}),
            # Each part of `best first` left out.
            _without("siblings may be equal", {"search.siblings": "independent", "search.frontier_entropy": "path"}),
            _without("by confidence", {"search.frontier_entropy": "path", "search.frontier_entropy_weight": -10.0}),
            _without("T = 1", {"rollout.temperature": 1.0}),
            _without("tree's mean", {"advantage.level": "node"}),
            _without("8, no early end", {"search.num_trajectories": 8, "search.trajectories_if_solved": 0}),
        ),
        seeds=(0, 1, 2, 3, 4),
        levels=(0.1, 0.3, 0.5),
        overrides={"rounds.steps_per_round": 40},
    )  # fmt: skip
