"""Pictures of a comparison: validation accuracy over tokens and over CPU seconds."""

import pathlib
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot  # after the choice of the backend
from matplotlib.ticker import EngFormatter

AXES = {"generated_tokens": "generated tokens", "cpu_seconds": "CPU seconds", "steps": "training steps"}


def draw(path: pathlib.Path, results: dict[str, Any]) -> None:
    """One row of panels a setting: thin lines are seeds, the thick one their median over a common axis."""
    settings = results["settings"]
    figure, panels = pyplot.subplots(
        len(settings), len(AXES), figsize=(5 * len(AXES), 3.6 * len(settings)), layout="constrained", squeeze=False
    )
    for row, (name, found) in zip(panels, settings.items()):
        for axis, (cost, label) in zip(row, AXES.items()):
            for color, (method, values) in zip(pyplot.cm.tab10.colors, found["methods"].items()):  # type: ignore[attr-defined]
                curves = values["curves"]
                for curve in curves:
                    axis.plot(curve[cost], curve["accuracy"], color=color, alpha=0.3, linewidth=0.8)
                # As far as every seed has gone.
                at = np.linspace(0, min(curve[cost][-1] for curve in curves), 100)
                middle = np.median([np.interp(at, curve[cost], curve["accuracy"]) for curve in curves], axis=0)
                axis.plot(at, middle, color=color, linewidth=2, label=f"{method} ({len(curves)} seeds)")
            for level in results["levels"]:
                axis.axhline(level, color="gray", alpha=0.3, linewidth=0.6)
            axis.set_xlabel(label)
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
            axis.set_ylabel("validation pass@1")
            axis.set_title(name)
        row[0].legend(fontsize=8)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=100)
    pyplot.close(figure)
    temporary.replace(path)
