"""A report as one HTML file that needs nothing else: tables, and charts drawn by the page from the data within it."""

import base64
import html
import importlib.resources
import json
from collections.abc import Sequence
from typing import Any

from experiments.files import embedded
from experiments.reporting import tables
from experiments.reporting.charts import AXES
from experiments.reporting.runs import Run
from experiments.reporting.series import curves, drawn_charts, time_split
from experiments.reporting.tables import Table

NUM_COLORS = 6  # of --series-1 ... in style.css

# Nothing may be loaded from anywhere: what a run is called or says cannot make the page ask for more.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(runs: Sequence[Run], picture: bytes) -> str:
    """The whole page; `picture` is the PNG that readers without scripts get in place of the charts."""
    title = ", ".join(run.name for run in runs)
    body = [
        _header(runs, title),
        _section("overview", "Overview", _notes(runs) + _table(_unbroken(tables.overview(runs)), runs)),
        '<section id="curves"><h2>Curves</h2><div id="charts"></div>'
        f'<noscript><img alt="all curves" src="data:image/png;base64,{base64.b64encode(picture).decode()}"></noscript>'
        "</section>",
        _section("rounds", "Rounds", _table(tables.round_table(runs), runs)),
        _section("time", "Where the time went", _bars(runs) + _table(tables.time_table(runs), runs)),
        _section("alarms", "Alarms", _alarms(runs)),
        _section("settings", *_settings(runs)),
        _section("versions", "Versions", _table(tables.versions_table(runs), runs)),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_file('style.css')}\n{_file('report.css')}</style></head>\n<body>{chr(10).join(body)}\n"
        f'<script type="application/json" id="data">{embedded(page_data(runs))}</script>\n'
        f"<script>{_file('report.js')}</script></body></html>\n"
    )


def page_data(runs: Sequence[Run]) -> dict[str, Any]:
    """What the charts are drawn from."""
    charts = drawn_charts(runs)
    wanted: dict[str, set[str]] = {"train": set(), "eval": set()}
    for chart in charts:
        wanted[chart.kind] |= {line.metric for line in chart.lines} | set(chart.band or ())
    return {
        "axes": AXES,
        "charts": [{**chart._asdict(), "lines": [line._asdict() for line in chart.lines]} for chart in charts],
        "runs": [
            {
                "name": run.name,
                **{kind: curves(run, kind, sorted(metrics)) for kind, metrics in wanted.items()},
            }
            for run in runs
        ],
    }


def _file(name: str) -> str:
    return (importlib.resources.files("experiments") / "pages" / name).read_text(encoding="utf-8")


def _header(runs: Sequence[Run], title: str) -> str:
    axes = "".join(
        f'<button type="button" data-axis="{axis}" aria-pressed="false">{html.escape(label)}</button>'
        for axis, label in AXES.items()
    )
    names = "".join(
        f'<button type="button" class="run" data-run="{index}" aria-pressed="true">{_swatch(index)}'
        f"<bdi>{html.escape(run.name)}</bdi></button>"
        for index, run in enumerate(runs)
    )
    return (
        f'<header><h1><bdi>{html.escape(title)}</bdi></h1><div class="controls"><div role="group" aria-label="runs">'
        f'{names}</div><div role="group" aria-label="x axis">{axes}</div>'
        '<label class="soft">smooth <input id="smooth" type="range" min="0" max="9" value="0"></label>'
        '<button type="button" id="theme" aria-label="switch between light and dark">◐</button></div></header>'
    )


def _swatch(index: int) -> str:
    return f'<i class="swatch" style="background:var(--series-{index % NUM_COLORS + 1})"></i>'


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{content}</section>'


def _table(table: Table, runs: Sequence[Run]) -> str:
    """An HTML table; names of runs in the first column get their colour."""
    colors = {run.name: _swatch(index) for index, run in enumerate(runs)}

    def cells(row: Sequence[str], tag: str) -> str:
        first = colors.get(row[0], "") if tag == "td" and table.head[0] == "run" else ""
        return "".join(f"<{tag}>{first * (i == 0)}{html.escape(cell)}</{tag}>" for i, cell in enumerate(row))

    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in table.rows)
    note = f'<p class="soft">{html.escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="panel wide"><table><thead><tr>{cells(table.head, "th")}</tr></thead><tbody>{lines}</tbody>'
        f"</table></div>{note}"
    )


def _unbroken(table: Table) -> Table:
    """The table with figures that break before their interval at most."""
    space = "\N{NO-BREAK SPACE}"

    def joined(cell: str) -> str:
        return cell.replace(" ", space).replace(f"{space}[", " [")

    rows = [[*row[:2], *map(joined, row[2:])] for row in table.rows]
    return table._replace(rows=rows)


def _notes(runs: Sequence[Run]) -> str:
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    return "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)


def _bars(runs: Sequence[Run]) -> str:
    """One stacked bar a run, as long as its time is to the longest run's."""
    splits = [time_split(run) for run in runs]
    names = tables.time_table(runs).head[1:-1]
    longest = max((sum(split.values()) for split in splits), default=0.0) or 1.0
    lines = []
    for run, split in zip(runs, splits, strict=True):
        parts = "".join(
            f'<i class="phase-{i % NUM_COLORS}" style="width:{100 * split.get(name, 0.0) / longest:.3f}%" '
            f'title="{html.escape(f"{name}: {tables.duration(split.get(name, 0.0))}")}"></i>'
            for i, name in enumerate(names)
        )
        lines.append(f'<span class="name"><bdi>{html.escape(run.name)}</bdi></span><span class="bar">{parts}</span>')
    legend = "".join(
        f'<span><i class="phase-{i % NUM_COLORS}"></i>{html.escape(n)}</span>' for i, n in enumerate(names)
    )
    return f'<div class="panel bars"><div class="grid">{"".join(lines)}</div><div class="legend">{legend}</div></div>'


def _alarms(runs: Sequence[Run]) -> str:
    table = tables.alarm_table(runs)
    return _table(table, runs) if table.rows else '<p class="soft">No limit of <code>alarms</code> was crossed.</p>'


def _settings(runs: Sequence[Run]) -> tuple[str, str]:
    table = tables.settings_table(runs)
    title = "Settings in which the runs differ" if len(runs) > 1 else "Settings that are not the default"
    shown = _table(table, runs) if table.rows else '<p class="soft">None.</p>'
    whole = "".join(
        f"<details><summary>All settings of <bdi>{html.escape(run.name)}</bdi></summary>"
        f'<pre class="panel">{html.escape(json.dumps(run.config, indent=2))}</pre></details>'
        for run in runs
    )
    return title, shown + whole
