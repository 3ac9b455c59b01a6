"""The paper's Tables 3 to 6 and the project's own switches, each against `eager` on ten seeds of two settings.

The parts of `best first` are left out of it one at a time. In the sparse setting half of the seeds' starts hardly learn
in so few steps, which tells two methods little apart: a seed in which neither reaches .1 counts for no claim. Hence
ten seeds, and the moderate setting. Both are more than was planned: five seeds, then eight and the moderate setting,
then ten were run, each time because fewer than five told anything, and all claims are judged by all of them.
"""

from experiments.compare.claims import Claim
from experiments.compare.suite import Method, Overrides, Suite
from experiments.suites.methods import ADAPTIVE, BEST_FIRST, DAPO, DEEPSEARCH, EAGER, EAGER_PATH, GRPO, LAZY_PATH, PATH

# Table 6: five rounds, each on what is still hard, with the cache kept between them.
_ROUNDS = {
    "rounds.num_rounds": 5, "rounds.steps_per_round": 0, "rounds.filter_problems": True, "rounds.refilter": "all",
    "rounds.max_candidates": 192, "filter.easy_share": 0.2, "task.arithmetic.num_train_problems": 192,
}  # fmt: skip
# Five passes over all of them in 60 steps: a cache is of use where problems come again.
_FEW = {"task.arithmetic.num_train_problems": 192}


def _changed(name: str, overrides: Overrides) -> Method:
    return Method(name, {**EAGER.overrides, **overrides})


def _without(part: str, overrides: Overrides) -> Method:
    return Method(f"best first: {part}", {**BEST_FIRST.overrides, **overrides})


def _learns_more(source: str, text: str, worse: str) -> Claim:
    return Claim(source, text, "eager", worse, "accuracy", 0.1)


# Of the paper by its tables, in its own terms (accuracy after as many steps); of the pilot studies.
CLAIMS = (
    _learns_more("Table 3", "the frontier beats descents from the root by UCT", "uct"),
    _learns_more("Table 3", "a depth bonus by the square root beats the logarithm", "depth log"),
    _learns_more("Table 3", "a depth bonus by the square root beats a linear one", "depth constant"),
    _learns_more("Table 4", "the constrained backup beats the vanilla one", "vanilla backup"),
    _learns_more("Table 4", "scores of nodes beat the outcome alone", "outcome only"),
    _learns_more("Table 4", "the mean alone beats mean and standard deviation", "mean and std"),
    _learns_more("Table 5", "the most confident wrong trajectory beats a random one", "wrong: random"),
    _learns_more("Table 5", "the most confident wrong trajectory beats the least confident", "wrong: least confident"),
    Claim("Table 6", "the share of groups from the cache grows over rounds", "five rounds", "five rounds", "cached"),
    Claim("paper", "a cache helps where problems come again", "few problems", "few problems, no cache", "accuracy",
          0.1),
    _learns_more("pilot", "trees of one outcome are better dropped", "uniform trees kept"),
    _learns_more("pilot", "where the mode is right, confidence (l2 = -3) beats none", "l2 = 0"),
    _learns_more("pilot", "where the mode is right, confidence (l2 = -3) beats its opposite", "l2 = +1"),
    Claim("pilot", "width 2 needs fewer tokens than 4", "eager", "width 4", "tokens", 0.1),
    Claim("pilot", "scoring the path (l2 = -10) needs fewer tokens than the own segment (-3)", "path", "eager",
          "tokens", 0.1),
    Claim("pilot", "lazy expansion needs fewer tokens than eager", "lazy path", "eager path", "tokens", 0.1),
    Claim("paper", "the search needs fewer tokens than DAPO", "eager", "dapo", "tokens", 0.1),
    Claim("own", "best first needs fewer tokens than lazy path", "best first", "deepsearch", "tokens", 0.3),
    Claim("own", "best first needs fewer tokens with distinct siblings and the score that needs them", "best first",
          "best first: siblings may be equal", "tokens", 0.3),
    Claim("own", "best first needs fewer tokens by likelihood (excess, -1) than by confidence (path, -10)",
          "best first", "best first: by confidence", "tokens", 0.3),
    Claim("own", "best first needs fewer tokens at T = .4 than at 1", "best first", "best first: T = 1", "tokens", 0.3),
    Claim("own", "best first needs fewer tokens with siblings as the baseline", "best first",
          "best first: tree's mean", "tokens", 0.3),
    Claim("own", "best first needs fewer tokens with an early end", "best first", "best first: no early end",
          "tokens", 0.3),
    Claim("own", "best first needs fewer tokens without a cache, where problems come again", "best first: few problems",
          "best first: few problems, cache", "tokens", 0.3),
)  # fmt: skip


def get_suite() -> Suite:
    return Suite(
        name="ablations",
        title="One switch at a time from `eager` (width 2, own segment, l2 = -3), nothing tuned.",
        settings=("sparse", "moderate"),
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
            _changed("few problems", _FEW),
            _changed("few problems, no cache", {**_FEW, "cache.capacity": 0}),
            _changed("five rounds", _ROUNDS),
            # The pilots' other switches.
            PATH, LAZY_PATH,
            _changed("width 4", {"search.expansion_width": 4, "search.capacity": 161}),
            # Each part of `best first` left out.
            _without("siblings may be equal", {"search.siblings": "independent", "search.frontier_entropy": "path"}),
            _without("by confidence", {"search.frontier_entropy": "path", "search.frontier_entropy_weight": -10.0}),
            _without("T = 1", {"rollout.temperature": 1.0}),
            _without("tree's mean", {"advantage.level": "node"}),
            _without("no early end", {"search.trajectories_if_solved": 0}),
            _without("few problems", _FEW),
            _without("few problems, cache", {**_FEW, "cache.capacity": 192}),
        ),
        seeds=tuple(range(10)),
        levels=(0.1, 0.3, 0.5),
        # As many steps as the pilot study's, at a rate between the two of the suite `full`.
        overrides={"rounds.steps_per_round": 60, "optimizer.learning_rate": 3e-4},
        claims=CLAIMS,
    )  # fmt: skip
