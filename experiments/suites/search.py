"""Policies that stay as they are: what searches find per token where the mode is right (sparse) and wrong (plateau)."""

from experiments.compare.suite import Method, Overrides, Suite
from experiments.suites.methods import BEST_FIRST, DEEPSEARCH, EAGER, EAGER_PATH, GRPO


def _lazy(name: str, entropy: str, weight: float, depth: float = 0.01) -> Method:
    return Method(
        name,
        {
            "search.expansion": "lazy", "search.picks_per_step": 2, "search.frontier_entropy": entropy,
            "search.frontier_entropy_weight": weight, "search.frontier_depth_weight": depth,
        },
    )  # fmt: skip


def _changed(name: str, overrides: Overrides) -> Method:
    return Method(name, {**BEST_FIRST.overrides, **overrides})


def _eager(name: str, **changes: float | str | bool) -> Method:
    return Method(name, {**EAGER.overrides, **{f"search.{key}": value for key, value in changes.items()}})


def get_suite() -> Suite:
    return Suite(
        name="search",
        title="64 problems a seed, searched twice by the policy before RL; nothing is trained.",
        kind="frozen",
        settings=("sparse", "moderate", "plateau", "countdown"),
        ours="best first",
        methods=(
            Method("direct, T=1", GRPO.overrides),
            Method("direct, T=0.7", {**GRPO.overrides, "rollout.temperature": 0.7}),
            Method("direct, T=1.3", {**GRPO.overrides, "rollout.temperature": 1.3}),
            BEST_FIRST,
            _changed("best first, T=0.7", {"rollout.temperature": 0.7}),
            _changed("best first, T=1", {"rollout.temperature": 1.0}),
            _changed("best first, 8", {"search.num_trajectories": 8}),
            _changed("best first, independent", {"search.siblings": "independent", "search.frontier_entropy": "path"}),
            DEEPSEARCH,
            _lazy("lazy path l2=-10", "path", -10.0),
            _lazy("lazy path l2=0", "path", 0.0),
            _lazy("lazy path l2=+1", "path", 1.0),
            _lazy("lazy path l2=+3", "path", 3.0),
            _lazy("lazy own l2=-3", "own", -3.0),
            EAGER,
            EAGER_PATH,
            _eager("eager own l2=0", frontier_entropy_weight=0.0),
            _eager("eager own l2=+1", frontier_entropy_weight=1.0),
            _eager("eager l2=0, depth log", frontier_entropy_weight=0.0, depth_bonus="log"),
            _eager("eager l2=0, depth constant", frontier_entropy_weight=0.0, depth_bonus="constant"),
            _eager("eager l2=0, uct", frontier_entropy_weight=0.0, backtrace="uct", force_to_frontier=False),
            _eager("width 4", expansion_width=4, capacity=161),
        ),
        seeds=(0, 1, 2),
    )  # fmt: skip
