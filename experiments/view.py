"""Shows recorded search trees: `python -m experiments.view WORKDIR [--out=FILE.html] [--steps=1,5,10-20]`.

Writes one page that any browser opens, with all that it needs inside; no network.
"""

import argparse
import base64
import gzip
import hashlib
import html
import json
import pathlib
import re
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from deepsearch_jax.runtime import printable
from deepsearch_jax.runtime.tree_records import FOLDER, TreeRecord, path_of, read_trees, recorded_steps
from deepsearch_jax.types import Outcome
from experiments.command_line import complain, leave_with
from experiments.files import embedded, runs_below, write_whole

PAGES = pathlib.Path(__file__).parent / "pages"
STYLES = ("style.css", "viewer/viewer.css")
SCRIPTS = ("viewer/data.js", "viewer/layout.js", "viewer/draw.js", "viewer/panel.js", "viewer/app.js")

_TYPES = {np.dtype("int32"): "i4", np.dtype("float32"): "f4", np.dtype("uint16"): "u2", np.dtype("uint8"): "u1"}
_UNKNOWN = 65535  # of log-probs
_NUMBER = re.compile(r" *[0-9]{1,12} *")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=pathlib.Path, metavar="WORKDIR", help="directory of a run")
    parser.add_argument("--out", type=pathlib.Path, help="the page; by default WORKDIR/trees.html")
    parser.add_argument("--steps", default="", help="such as 1,5,10-20; by default all that are recorded")
    options = parser.parse_args(argv)
    out = options.out or options.workdir / "trees.html"
    try:
        steps = choose_steps(options.workdir, options.steps)
        page = build_page(options.workdir, steps).encode()
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, page)
    except (ValueError, OSError) as error:
        return complain(str(error))
    print(f"{len(steps)} step{'s' * (len(steps) != 1)}, {len(page) / 2**20:.1f} MiB: {printable(str(out))}")
    return 0


def choose_steps(workdir: pathlib.Path, wanted: str = "") -> list[int]:
    """The recorded steps of a run that are asked for.

    Args:
      wanted: numbers and ranges, "1,5,10-20"; "" for all.

    Raises:
      ValueError: there are no recorded trees, none in the ranges, or the text says no ranges.
    """
    if not workdir.is_dir():
        raise ValueError(f"{workdir} is no directory; name the --workdir of a run")
    steps = recorded_steps(workdir / FOLDER)
    if not steps and not (workdir / "metrics.jsonl").exists():
        raise ValueError(f"{workdir} holds no run{runs_below(workdir)}; name the --workdir of a run")
    if not steps:
        raise ValueError(
            f"{workdir} holds no recorded trees; a run records some of its steps, from the first one on, unless "
            "config.record.every_steps is 0"
        )
    if not wanted:
        return steps
    chosen = [step for step in steps if any(low <= step <= high for low, high in _ranges(wanted))]
    if not chosen:
        raise ValueError(f"--steps={wanted} names none of the recorded steps; there are {_listed(steps)}")
    return chosen


def _ranges(text: str) -> list[tuple[int, int]]:
    found = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        if not all(_NUMBER.fullmatch(end) for end in (low, high if dash else low)):
            raise ValueError(f"--steps={text} cannot be read at {part!r}; write numbers and ranges, such as 1,5,10-20")
        found.append((int(low), int(high if dash else low)))
    return found


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps[:12])) + (f", ... {steps[-1]}" if len(steps) > 12 else "")


def build_page(workdir: pathlib.Path, steps: Iterable[int]) -> str:
    """The page with the trees of these steps.

    Raises:
      ValueError: a file of trees cannot be read.
    """
    index: list[dict[str, Any]] = []
    blocks = []
    for step in steps:
        path = path_of(workdir / FOLDER, step)
        if not path.exists():  # a run that goes on has thinned its steps out meanwhile
            continue
        records = read_trees(path)
        index += [{"step": step, "place": place, **_summary(record)} for place, record in enumerate(records)]
        coded = base64.b64encode(gzip.compress(pack(records), compresslevel=6, mtime=0)).decode()
        blocks.append(f'<script type="application/octet-stream" id="step-{step}">{coded}</script>')
    name = workdir.resolve().name
    script = "\n".join((PAGES / script).read_text("utf-8") for script in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return fill(
        (PAGES / "viewer.html").read_text("utf-8"),
        title=html.escape(f"{name}: search trees"), run=html.escape(name),
        style="\n".join((PAGES / style).read_text("utf-8") for style in STYLES),
        script=script, script_hash=f"sha256-{digest}",
        index=embedded(index), data="\n".join(blocks),
    )  # fmt: skip


def _summary(record: TreeRecord) -> dict[str, Any]:
    solved = bool((record.outcome[record.leaves] == Outcome.CORRECT).any())
    return {
        "problem": record.facts["problem"],
        "kind": record.facts["kind"],
        "nodes": len(record.parent),
        "solved": solved,
    }


def fill(template: str, **parts: str) -> str:
    """Puts the parts in place of their {{names}}; a part may hold braces of its own."""
    pieces = template.split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:]))


def pack(records: Sequence[TreeRecord]) -> bytes:
    """Trees as the page reads them: length of the header, header (JSON, padded to 4 bytes), then the arrays.

    Tokens come as places in the tree's vocabulary, log-probs as thousandths of a nat below zero.
    """
    body = bytearray()
    trees = []
    for record in records:
        arrays = {}
        for name, value in _compact(record).items():
            arrays[name] = [_TYPES[value.dtype], len(body), value.size]
            body += value.astype(value.dtype.newbyteorder("<")).tobytes()
            body += bytes(-len(body) % 4)
        trees.append({"facts": record.facts, "arrays": arrays})
    header = json.dumps({"trees": trees}).encode()
    header += b" " * (-len(header) % 4)
    return struct.pack("<I", len(header)) + header + bytes(body)


def _compact(record: TreeRecord) -> dict[str, np.ndarray]:
    arrays = {name: value.reshape(-1) for name, value in record.arrays().items()}
    arrays = {name: value.astype(np.uint8) if value.dtype == bool else value for name, value in arrays.items()}
    small = np.uint16 if len(record.vocabulary) < 2**16 else np.int32
    for name in ("tokens", "prompt"):
        arrays[name] = np.searchsorted(record.vocabulary, arrays[name]).astype(small)
    known = np.nan_to_num(record.log_probs, nan=-_UNKNOWN, neginf=-_UNKNOWN)
    scaled = np.clip(np.round(-1000.0 * known), 0, _UNKNOWN - 1)
    arrays["log_probs"] = np.where(np.isnan(record.log_probs), _UNKNOWN, scaled).astype(np.uint16)
    return arrays


if __name__ == "__main__":
    leave_with(main)
