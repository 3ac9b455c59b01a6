"""Results of an evaluation: one row a set, with the paper's numbers beside them."""

import pathlib
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from deepsearch_jax.runtime.accuracy import bootstrap_interval, majority_vote, pass_at_k, powers_up_to
from deepsearch_jax.runtime.workdir import write_json
from deepsearch_jax.verify import same_answer

# avg@32 in percent of the 1.5B models of arXiv 2509.25454, Table 1: where DeepSearch started from, and where it got.
PAPER = {
    "aime24": (51.77, 53.65),
    "aime25": (32.92, 35.42),
    "amc23": (88.83, 90.39),
    "math500": (92.24, 92.53),
    "minerva": (39.75, 40.00),
    "olympiadbench": (64.69, 65.72),
}
PAPER_MODELS = ("Nemotron-RR-Qwen-1.5B v2", "DeepSearch-1.5B")


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy of one set.

    Args:
      rows: as in the samples' file.
    Returns: problems, samples (a problem, on average), avg, pass (by k; only where all problems have as many samples),
      solved (share of problems with a correct sample), majority, each but pass with a 95 % interval over problems
      (bootstrap); length (mean tokens), truncated and unanswered (shares of the samples), timeouts and errors of the
      verifier, generated_tokens.
    """
    problems = [row for row in rows if row["kind"] == "problem"]
    batches = [row for row in rows if row["kind"] == "batch"]
    sizes = np.array([len(row["correct"]) for row in problems])
    num_correct = np.array([sum(row["correct"]) for row in problems])
    rates = num_correct / np.maximum(sizes, 1)
    majority = np.array([majority_vote(row["answers"], row["correct"], same_answer) for row in problems])
    lengths = [length for row in problems for length in row["lengths"]]
    answers = [answer for row in problems for answer in row["answers"]]
    result: dict[str, Any] = {"problems": len(problems), "samples": float(sizes.mean())}
    for name, values in (("avg", rates), ("solved", (num_correct > 0).astype(float)), ("majority", majority)):
        low, high = bootstrap_interval(values)
        result[name] = {"value": float(values.mean()), "low": low, "high": high}
    result["pass"] = {}
    if len(set(sizes.tolist())) == 1 and sizes[0] > 0:
        for k in powers_up_to(int(sizes[0])):
            result["pass"][str(k)] = float(pass_at_k(num_correct, int(sizes[0]), k).mean())
    return result | {
        "length": float(np.mean(lengths)) if lengths else 0.0,
        "truncated": float(np.mean([t for row in problems for t in row["truncated"]])) if lengths else 0.0,
        "unanswered": float(np.mean([answer is None for answer in answers])) if answers else 0.0,
        "timeouts": sum(row["timeouts"] for row in batches),
        "errors": sum(row["errors"] for row in batches),
        "generated_tokens": sum(row["generated_tokens"] for row in batches),
    }


def write_results(workdir: pathlib.Path, results: dict[str, Any], method: str) -> None:
    """results.json and results.md."""
    write_json(workdir / "results.json", {"method": method, "sets": results})
    header, rows = _table(results)
    lines = [
        f"# Evaluation ({method})", "",
        "| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |",
        *("| " + " | ".join(row) + " |" for row in rows), "",
        "avg: mean share of correct samples; pass@k: a correct one among k, without bias; maj: the most frequent "
        "answer; intervals: 95 %, bootstrap over problems. cut: samples that reached the length limit. late: checks of "
        "the verifier that overran their deadline.",
        f"The last two columns are avg@32 of {PAPER_MODELS[0]} and {PAPER_MODELS[1]} (arXiv 2509.25454, Table 1), "
        "other models under other limits of length.", "",
    ]  # fmt: skip
    (workdir / "results.md").write_text("\n".join(lines), encoding="utf-8")


def print_results(console: Console, results: dict[str, Any]) -> None:
    """A shorter table for the terminal: it fits into 80 columns."""
    header, rows = _table(results)
    table = Table(title="evaluation", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    shown = ("set", "avg", "pass@k", "maj", "tokens", "cut", "paper: start", "paper")
    titles = {"avg": "avg [95 %]", "paper: start": "paper"}
    chosen = [header.index(name) for name in shown]
    for name in shown:
        table.add_column(titles.get(name, "" if name == "paper" else name), no_wrap=True)
    for row in rows:
        cells = [row[number] for number in chosen]
        table.add_row(
            *(cell.split(" [")[0] if name == "maj" else cell for name, cell in zip(shown, cells, strict=True))
        )
    console.print(table)


def _table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["set", "problems", "samples", "avg", "pass@k", "maj", "tokens", "cut", "late", "paper: start", "paper"]
    rows = []
    for name, found in results.items():
        passes = found["pass"] or {"all": found["solved"]["value"]}
        k, value = list(passes.items())[-1]
        paper = [f"{number:.2f}" for number in PAPER[name]] if name in PAPER else ["", ""]
        rows.append(
            [
                name, str(found["problems"]), f"{found['samples']:.4g}", _percent(found["avg"]),
                f"@{k} {100 * value:.1f}", _percent(found["majority"]), f"{found['length']:.0f}",
                f"{100 * found['truncated']:.1f} %", str(found["timeouts"]), *paper,
            ]
        )  # fmt: skip
    known = [name for name in results if name in PAPER]
    if len(known) > 1:
        means = [float(np.mean([PAPER[name][column] for name in known])) for column in (0, 1)]
        average = np.mean([results[name]["avg"]["value"] for name in known])
        rows.append(["mean", "", "", f"{100 * average:.2f}", "", "", "", "", "", *(f"{mean:.2f}" for mean in means)])
    return header, rows


def _percent(found: dict[str, float]) -> str:
    return f"{100 * found['value']:.2f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
