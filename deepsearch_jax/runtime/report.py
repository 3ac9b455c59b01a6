"""The end of a run for a person: a table before and after, and curves.png."""

import pathlib
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepsearch_jax.runtime.printable import printable

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot  # after the choice of the backend

_CURVES = (
    ("reward", "mean reward of the responses"),
    ("solved_share", "share of problems with a correct response"),
    ("entropy", "entropy (nats per token)"),
    ("grad_norm", "gradient norm"),
)


def print_table(console: Console, rows: list[dict[str, Any]]) -> None:
    """Held-out accuracy of the first and the last evaluation, in total and by source."""
    evaluations = [row for row in rows if row["kind"] == "eval"]
    if not evaluations:
        return
    first, last = evaluations[0], evaluations[-1]
    table = Table(title=f"held-out accuracy, {first['num_problems']} problems")
    for column in ("", f"before (step {first['step']})", f"after (step {last['step']})"):
        table.add_column(column)
    for name in [key for key in first if key.startswith("pass_at_") and not key.endswith(("_low", "_high"))]:
        cells = [f"{row[name]:.3f}" for row in (first, last)]
        if name == "pass_at_1":
            cells = [f"{row[name]:.3f}  [{row[name + '_low']:.3f}, {row[name + '_high']:.3f}]" for row in (first, last)]
        table.add_row(name.replace("_at_", "@"), *cells)
    if len(first["by_source"]) > 1:
        for source in first["by_source"]:
            table.add_row(
                Text(printable(f"  {source}")),
                *(f"{row['by_source'].get(source, float('nan')):.3f}" for row in (first, last)),
            )
    console.print(table)


def draw_curves(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Held-out accuracy against generated tokens and against steps, and the training curves."""
    evaluations = [row for row in rows if row["kind"] == "eval"]
    steps = [row for row in rows if row["kind"] == "train"]
    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for axis, (x, label) in zip(axes[0], (("generated_tokens", "generated tokens"), ("step", "training step"))):
        at = [row[x] for row in evaluations]
        axis.plot(at, [row["pass_at_1"] for row in evaluations], marker="o")
        axis.fill_between(
            at, [row["pass_at_1_low"] for row in evaluations], [row["pass_at_1_high"] for row in evaluations], alpha=0.2
        )
        axis.set_xlabel(label)
        axis.set_ylabel("held-out pass@1 (95 % interval)")
    for axis, (name, label) in zip([axes[0][2], *axes[1]], _CURVES):
        drawn = [(row["step"], row[name]) for row in steps if row.get(name) is not None]
        if drawn:
            axis.plot(*zip(*drawn))
        axis.set_xlabel("training step")
        axis.set_ylabel(label)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
    temporary.replace(path)
