"""The results of a suite as Markdown."""

from collections.abc import Sequence
from typing import Any

from experiments.compare.measure import COSTS

_SHORT = {"steps": "steps", "generated_tokens": "generated", "processed_tokens": "trained", "flops": "FLOPs",
          "cpu_seconds": "CPU s", "wall_seconds": "wall s"}  # fmt: skip


def markdown(results: dict[str, Any], *, picture: str = "") -> str:
    """All tables of a suite; `results` as JSON."""
    lines = [f"## Suite `{results['suite']}`", "", results["title"], ""]
    if "frozen" in results:
        for setting, found in results["frozen"].items():
            lines += [f"### {setting}", "", *_frozen(found["methods"]), "", *_claims(found["claims"])]
        return "\n".join(lines)
    if "starts" in results:
        return "\n".join([*lines, *_starts(results["starts"]), ""])
    if picture:
        lines += [f"![validation accuracy]({picture})", ""]
    if results["missing"]:
        lines += [f"Not finished: {len(results['missing'])} runs ({', '.join(results['missing'][:6])} ...).", ""]
    for setting, found in results["settings"].items():
        lines += [f"### {setting}: {found['summary']}", ""]
        lines += ["Cost until validation pass@1 first is at a level: median over seeds [95 % interval].", ""]
        lines += [*_costs(found, results["levels"]), "", *_ratios(found, results), ""]
        if found["test"]:
            lines += [*_tests(found), ""]
        lines += [*_trainer(found), "", *_claims(found["claims"])]
    if results["grid"]:
        lines += ["### Tuning", "", *_grid(results["grid"]), ""]
    return "\n".join(lines)


def number(value: Any) -> str:
    """Three significant digits, thousands as k, larger as M, G or T; what was not reached as a dash."""
    if value is None or isinstance(value, str):
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def estimate(triple: Sequence[Any], *, digits: int | None = None) -> str:
    """value [low, high]."""

    def one(value: Any) -> str:
        if value == "inf":
            return "∞"
        return number(value) if digits is None or isinstance(value, str) else f"{value:.{digits}f}"

    value, low, high = triple
    return f"{'–' if value == 'inf' and digits is None else one(value)} [{one(low)}, {one(high)}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]


def _point(point: dict[str, Any]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in point.items())


def _costs(found: dict[str, Any], levels: Sequence[float]) -> list[str]:
    rows = []
    for name, method in found["methods"].items():
        for index, level in enumerate(levels):
            cells = [estimate(method["costs"][cost][index]) for cost in COSTS]
            seeds = f"{method['reached'][index]}/{len(method['seeds'])}"
            first = (f"{name} ({_point(method['point'])})" if method["point"] else name) if index == 0 else ""
            rows.append([first, f"{level:g}", seeds, *cells])
    return table(["method", "level", "seeds that reach it", *(_SHORT[cost] for cost in COSTS)], rows)


def _ratios(found: dict[str, Any], results: dict[str, Any]) -> list[str]:
    if not found["ratios"]:
        return []
    rows = []
    for index, level in enumerate(results["levels"]):
        row = [f"{level:g}"]
        for cost in COSTS:
            entries = found["ratios"][cost]
            if index >= len(entries):
                return []
            row.append(f"{estimate(entries[index]['ratio'], digits=2)} ({entries[index]['baseline']})")
        rows.append(row)
    head = ["level", *(_SHORT[cost] for cost in COSTS)]
    best = "best tuned baseline" if results["grid"] else "best baseline (nothing is tuned in this suite)"
    text = (f"Cost of the {best} over that of `{results['ours']}`, in pairs by seed (above 1: "
            "ours is cheaper; ∞: only ours reaches the level, 0: only the baseline):")  # fmt: skip
    return [text, "", *table(head, rows)]


def _tests(found: dict[str, Any]) -> list[str]:
    tests = found["test"]
    some = next(iter(tests.values()))
    temperatures, ks, sources = list(some["accuracy"]), list(some["hard"]), list(some["by_source"])
    name_of = {"0": "greedy"}
    head = ["test problems", *(name_of.get(t, f"T={t}") for t in temperatures), *(f"hard, pass@{k}" for k in ks),
            *sources, "difference at T=1"]  # fmt: skip
    differences = (found["ratios"] or {}).get("test_difference", {})
    rows = []
    for name, test in tests.items():
        difference = differences.get(name)
        rows.append([
            "before RL" if name == "start" else name,
            *(estimate(test["accuracy"][t], digits=3) for t in temperatures),
            *(estimate(test["hard"][k], digits=3) if k in test["hard"] else "–" for k in ks),
            *(estimate(test["by_source"][s], digits=3) if s in test["by_source"] else "–" for s in sources),
            estimate(difference, digits=3) if difference else "",
        ])  # fmt: skip
    text = (f"Test problems, sampled once: pass@1 by temperature, unbiased pass@k at T=1 on the hard ones (the policy "
            f"before RL solved none in other samples: {some['hard_share']:.0%}), pass@1 at T=1 by difficulty, ours "
            "minus theirs:")  # fmt: skip
    return [text, "", *table(head, rows)]


def _trainer(found: dict[str, Any]) -> list[str]:
    names = ("solved_share", "cached_share", "trained_groups", "tree_nodes", "entropy")
    rows = [
        [name, *(number(method["trainer"][key]) for key in names), number(method["spent"]["generated_tokens"]),
         number(method["spent"]["cpu_seconds"]), " ".join(f"{x:.2f}" for x in method["trainer"]["cached_by_round"])]
        for name, method in found["methods"].items()
    ]  # fmt: skip
    head = ["training, means", "problems solved", "cached", "groups trained on", "nodes a tree", "entropy",
            "tokens in all", "CPU s in all", "cached by round"]  # fmt: skip
    return table(head, rows)


def _claims(claims: Sequence[dict[str, Any]]) -> list[str]:
    if not claims:
        return []
    rows = [
        [claim["source"], claim["text"], f"`{claim['better']}`, `{claim['worse']}`", claim["meaning"],
         estimate(claim["figure"], digits=3), str(claim["seeds"]), claim["verdict"]]
        for claim in claims
    ]  # fmt: skip
    head = ["source", "claim", "first, second", "figure", "median over seeds [95 % interval]", "seeds", "verdict"]
    text = ("Claims of the suite. Each is judged by its own 95 % interval: of twenty without any truth in them one may "
            "come out as reproduced or as the opposite:")  # fmt: skip
    return [text, "", *table(head, rows), ""]


def _grid(grid: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        [row["setting"], row["method"], _point(row["point"]), f"{row['score']:.3f}",
         " ".join(f"{value:.3f}" for value in row["validation"]), "chosen" if row["chosen"] else ""]
        for row in grid
    ]  # fmt: skip
    return table(["setting", "method", "point", "score (lower is better)", "validation at the end", ""], rows)


def _starts(settings: dict[str, Any]) -> list[str]:
    rows = []
    for name, start in settings.items():
        hard = max(start["hard"], key=int, default=None)
        rows.append([
            f"`{name}`", start["summary"], str(start["seeds"]),
            *(estimate(start["accuracy"][t], digits=4) for t in ("1", "0.5", "0")), f"{start['hard_share']:.0%}",
            f"pass@{hard} {estimate(start['hard'][hard], digits=3)}" if hard else "–",
            "; ".join(f"{source} {value[0]:.3f}" for source, value in start["by_source"].items()),
        ])  # fmt: skip
    head = ["setting", "", "seeds", "T=1", "T=0.5", "greedy", "hard problems", "of those", "by difficulty (T=1)"]
    return table(head, rows)


def _frozen(methods: dict[str, Any]) -> list[str]:
    rows = [
        [name, *(estimate(row[key]) for key in ("correct_per_1000", "distinct_per_1000", "solved_per_1000", "solved")),
         *(number(row[key]) for key in ("reward", "depth", "entropy", "expansions", "nodes", "tokens",
                                        "cpu_ms_per_problem", "cpu_ms_per_expansion"))]
        for name, row in methods.items()
    ]  # fmt: skip
    head = ["search", "correct per 1,000 tokens", "distinct ones", "problems solved", "share solved", "reward", "depth",
            "nats a token", "expansions", "nodes", "tokens", "CPU ms a problem", "CPU ms an expansion"]  # fmt: skip
    return table(head, rows)
