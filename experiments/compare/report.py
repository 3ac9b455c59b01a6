"""Writes what a comparison found: results.json, .md, .png and .html in the workdir, and a page over several suites."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from deepsearch_jax.runtime.workdir import write_json
from experiments.compare import frozen, statistics
from experiments.compare.figures import draw
from experiments.compare.page import page
from experiments.compare.results import collect, collect_starts, plain
from experiments.compare.suite import Suite, final_cells, suite_in
from experiments.compare.tables import markdown


def results_of(suite: Suite, workdir: pathlib.Path, *, draws: int = statistics.DRAWS) -> dict[str, Any]:
    """All figures of a suite as JSON, from what is in its workdir."""
    if suite.kind == "frozen":
        chosen = {(s, method.name): suite.points(method)[0] for s in suite.settings for method in suite.methods}
        found = frozen.collect_frozen(suite, workdir, final_cells(suite, chosen), draws=draws)
        values: dict[str, Any] = {"suite": suite.name, "title": suite.title, "frozen": found}
    elif suite.kind == "starts":
        values = {"suite": suite.name, "title": suite.title, "starts": collect_starts(suite, workdir, draws=draws)}
    else:
        values = collect(suite, workdir, draws=draws)
    return json.loads(json.dumps(plain(values)))


def write_results(suite: Suite, workdir: pathlib.Path) -> list[pathlib.Path]:
    """Writes the results of one suite into its workdir; returns the files."""
    results = results_of(suite, workdir)
    files = [workdir / f"results.{kind}" for kind in ("json", "md", "html", "png")]
    has_picture = bool(results.get("settings"))
    if has_picture:
        draw(files[3], results)
    text = markdown(results, picture=files[3].name if has_picture else "")
    write_json(files[0], results)
    files[1].write_text(text, encoding="utf-8")
    files[2].write_text(page(f"suite {suite.name}", text, [files[3]] if has_picture else []), encoding="utf-8")
    return files if has_picture else files[:3]


_INTRODUCTION = """# Results

Written by `python -m experiments.compare --report SOURCE...` from saved runs or figures of suites (`docs/comparing.md`
says how they are made and what the columns are). Every setting that was tried is here, wins and losses alike.
"""


def write_page(sources: Sequence[pathlib.Path], output: pathlib.Path) -> None:
    """Writes one page over several suites, with its pictures and figures (JSON) in a folder beside it.

    Args:
      sources: workdirs of suites, or figures (JSON) that an earlier page left, for suites whose runs are elsewhere.

    Raises:
      ValueError: a directory holds no suite, a file no figures, or two sources are of one suite.
    """
    found = [read_figures(source) if source.is_file() else results_of(suite_in(source), source) for source in sources]
    names = [results["suite"] for results in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"suite {', '.join(sorted(twice))} is given twice; give one workdir or file of each suite")
    folder = output.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    parts = [_INTRODUCTION]
    pictures = []
    for name, results in zip(names, found):
        picture = folder / f"{name}.png"
        if results.get("settings"):
            draw(picture, results)
            pictures.append(picture)
        write_json(folder / f"{name}.json", results)
        parts.append(markdown(results, picture=f"{folder.name}/{picture.name}" if picture in pictures else ""))
    text = "\n".join(parts)
    output.write_text(text, encoding="utf-8")
    output.with_suffix(".html").write_text(page("Results", text, pictures), encoding="utf-8")


def read_figures(path: pathlib.Path) -> dict[str, Any]:
    """Figures of a suite that `write_page` or `write_results` left. Raises: ValueError if the file holds none."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); give the results.json of a suite, or its workdir") from error
    if not isinstance(figures, dict) or "suite" not in figures or not {"settings", "frozen", "starts"} & set(figures):
        raise ValueError(f"{path} holds no figures of a suite; give the results.json of one, or its workdir")
    return figures
