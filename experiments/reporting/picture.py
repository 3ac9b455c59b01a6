"""The same charts as one PNG."""

import io
import warnings
from collections.abc import Sequence
from typing import Literal

import matplotlib

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot  # after the choice of the backend
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter

from experiments.reporting.charts import AXES, Chart
from experiments.reporting.runs import Run
from experiments.reporting.series import curves, drawn_charts, time_split
from experiments.reporting.tables import duration

_COLUMNS = 4
_STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
# As --series-1 ... in style.css.
_COLORS = ("#2457c5", "#c44a00", "#00845f", "#a03a8a", "#8a6d00", "#1489a8")
_MOST_MARKED = 30  # points of a curve that are drawn as dots too


def picture(runs: Sequence[Run]) -> bytes:
    """pass@1 over tokens, gradient steps and time; every other chart over tokens; the time of the phases."""
    charts = drawn_charts(runs)
    accuracy = [chart for chart in charts if chart.band]
    panels = [(chart, axis) for chart in accuracy for axis in ("generated_tokens", "gradient_steps", "seconds")]
    panels += [(chart, "generated_tokens") for chart in charts if not chart.band]
    rows = -(-(len(panels) + 1) // _COLUMNS)
    # Names are text, not formulas: a dollar sign is a dollar sign.
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 8, "axes.grid": True, "grid.alpha": 0.3}):
        figure, axes = pyplot.subplots(
            rows, _COLUMNS, figsize=(4.1 * _COLUMNS, 2.7 * rows + 0.4), layout="constrained", squeeze=False
        )
        try:
            places = list(axes.flat)
            for place, (chart, axis) in zip(places, panels):
                _draw(place, chart, axis, runs)
            _draw_time(places[len(panels)], runs)
            for place in places[len(panels) + 1 :]:
                place.set_axis_off()
            handles = [pyplot.Line2D([], [], color=_color(index)) for index in range(len(runs))]
            names = [f" {run.name}" for run in runs]  # matplotlib hides labels that begin with _
            figure.legend(handles, names, loc="outside upper center", ncols=min(len(runs), _COLUMNS))
            buffer = io.BytesIO()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
                figure.savefig(buffer, format="png", dpi=100)
            return buffer.getvalue()
        finally:
            pyplot.close(figure)


def _color(index: int) -> str:
    return _COLORS[index % len(_COLORS)]


def _draw(place: Axes, chart: Chart, axis: str, runs: Sequence[Run]) -> None:
    for index, run in enumerate(runs):
        found = curves(run, chart.kind, [line.metric for line in chart.lines] + list(chart.band or ()))
        x = found["x"][axis]
        for number, line in enumerate(chart.lines):
            if line.metric not in found["y"]:
                continue
            marker = "." if len(x) <= _MOST_MARKED else ""
            place.plot(
                x, _numbers(found["y"][line.metric]), color=_color(index), linestyle=_STYLES[number % len(_STYLES)],
                linewidth=1.3, marker=marker,
            )  # fmt: skip
        if chart.band and all(metric in found["y"] for metric in chart.band):
            low, high = (_numbers(found["y"][metric]) for metric in chart.band)
            place.fill_between(x, low, high, color=_color(index), alpha=0.15, linewidth=0)
    if len(chart.lines) > 1:
        styles = [pyplot.Line2D([], [], color="gray", linestyle=style) for style in _STYLES]
        place.legend(styles[: len(chart.lines)], [line.label for line in chart.lines], fontsize=7, frameon=False)
    place.set_title(chart.title, fontsize=9)
    place.set_xlabel(AXES[axis], fontsize=7)
    seconds = FuncFormatter(lambda value, _: duration(max(value, 0.0)))
    place.xaxis.set_major_formatter(seconds if axis == "seconds" else EngFormatter(sep=""))
    place.locator_params(axis="x", nbins=4 if axis == "seconds" else 5)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _draw_time(place: Axes, runs: Sequence[Run]) -> None:
    """One stacked bar of phases a run."""
    splits = [time_split(run) for run in runs]
    names = sorted({name for split in splits for name in split}, key=lambda n: -max(s.get(n, 0.0) for s in splits))
    before = [0.0] * len(runs)
    for number, name in enumerate(names):
        seconds = [split.get(name, 0.0) for split in splits]
        place.barh(
            range(len(runs)), seconds, left=before, color=_color(number), alpha=0.8, height=0.7, label=f" {name}"
        )
        before = [a + b for a, b in zip(before, seconds, strict=True)]
    place.set_yticks(range(len(runs)), [run.name[:24] for run in runs])
    place.set_ylim(len(runs) + 0.6, -0.6)  # the first run on top, and room for the legend
    place.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    place.locator_params(axis="x", nbins=4)
    place.set_title("Time of the phases", fontsize=9)
    if names:
        place.legend(fontsize=7, frameon=False, ncols=3, loc="lower center")
