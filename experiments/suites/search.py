"""Policies that stay as they are: what searches find per token where the mode is right (sparse) and wrong (plateau)."""

from experiments.compare.claims import Claim
from experiments.compare.suite import Method, Overrides, Suite
from experiments.suites.methods import BEST_FIRST, DEEPSEARCH, EAGER, EAGER_PATH, GRPO, LAZY_PATH, PATH


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


_RIGHT_MODE = ("sparse", "moderate")
_DEFAULT, _UCT = "eager own l2=0", "eager l2=0, uct"
_SQRT = "a depth bonus by the square root"
# Table 3 is of searches by a policy that is not trained, without an uncertainty term unless said.
CLAIMS = (
    Claim("Table 3", "the frontier ends a tree after fewer expansions than UCT", _DEFAULT, _UCT, "expansions"),
    Claim("Table 3", "the frontier finds better trajectories than UCT", _DEFAULT, _UCT, "reward"),
    Claim("Table 3", f"{_SQRT} finds better trajectories than the logarithm", _DEFAULT, "eager l2=0, depth log",
          "reward"),
    Claim("Table 3", f"{_SQRT} finds better trajectories than a linear one", _DEFAULT, "eager l2=0, depth constant",
          "reward"),
    Claim("Table 3", "a linear depth bonus ends a tree after fewer expansions than the square root",
          "eager l2=0, depth constant", _DEFAULT, "expansions"),
    Claim("Table 3", "a bonus for uncertainty (l2 = +1) finds better trajectories than none", "eager own l2=+1",
          _DEFAULT, "reward"),
    Claim("pilot", "where the mode is right, confidence (l2 = -3) solves more per token than none", "eager", _DEFAULT,
          "solved", settings=_RIGHT_MODE),
    Claim("pilot", "where the mode is wrong, confidence (l2 = -3) solves less per token than none", _DEFAULT, "eager",
          "solved", settings=("plateau",)),
    Claim("pilot", "where the mode is right, scoring the path (l2 = -10) solves more per token than the segment (-3)",
          "path", "eager", "solved", settings=_RIGHT_MODE),
    Claim("pilot", "lazy expansion solves more per token than eager", "lazy path", "eager path", "solved"),
    Claim("pilot", "width 2 solves more per token than 4", "eager", "width 4", "solved"),
    Claim("own", "best first (T = .4) solves more per token than direct samples as cold", "best first", "direct, T=0.4",
          "solved"),
    Claim("own", "best first solves more per token than hot direct samples", "best first", "direct, T=1.3", "solved"),
    Claim("own", "best first solves more per token than lazy search by confidence", "best first", "deepsearch",
          "solved"),
    Claim("own", "distinct siblings and the score that needs them solve more per token", "best first",
          "best first, independent", "solved"),
)  # fmt: skip


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
            Method("direct, T=0.4", {**GRPO.overrides, "rollout.temperature": 0.4}),
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
            LAZY_PATH,
            PATH,
            _eager("eager own l2=0", frontier_entropy_weight=0.0),
            _eager("eager own l2=+1", frontier_entropy_weight=1.0),
            _eager("eager l2=0, depth log", frontier_entropy_weight=0.0, depth_bonus="log"),
            _eager("eager l2=0, depth constant", frontier_entropy_weight=0.0, depth_bonus="constant"),
            _eager("eager l2=0, uct", frontier_entropy_weight=0.0, backtrace="uct", force_to_frontier=False),
            _eager("width 4", expansion_width=4, capacity=161),
        ),
        seeds=(0, 1, 2, 3, 4),
        claims=CLAIMS,
    )  # fmt: skip
