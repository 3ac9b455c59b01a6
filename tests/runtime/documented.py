"""The names that docs/metrics.md promises, and whether rows keep to them."""

import pathlib
import re

from deepsearch_jax.runtime.metrics import MACHINE_KEY

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def documented_names() -> dict[str, list[str]]:
    """By heading, the names in the first column of its tables, as patterns: <k> stands for one or more characters."""
    names, heading = {}, ""
    for line in DOCUMENT.read_text("utf-8").splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("| `"):
            found = re.findall(r"`([^`]+)`", line.split("|")[1])
            names.setdefault(heading, []).extend(re.sub(r"<\w+>", ".+", name) for name in found)
    return names


def check_rows(rows) -> None:
    """Rows of metrics.jsonl have every name that is documented for their kind, and no other."""
    names = documented_names()
    for kind in {row["kind"] for row in rows}:
        mine = [row for row in rows if row["kind"] == kind]
        wanted = [*names["every row"], *names[kind]]
        for row in mine:
            assert_match(row, wanted, kind)
        optional = [] if kind == "train" else ["tokens_per_second"]
        wanted = [name for name in names["machine"] if name not in optional]
        for row in mine:
            assert_match(row[MACHINE_KEY], wanted, f"{kind} machine")


def assert_match(found, wanted, where) -> None:
    unknown = [name for name in found if not any(re.fullmatch(pattern, name) for pattern in wanted)]
    missing = [pattern for pattern in wanted if not any(re.fullmatch(pattern, name) for name in found)]
    assert not unknown, f"{where}: {unknown} are not in {DOCUMENT.name}"
    assert not missing, f"{where}: {missing} are in {DOCUMENT.name}, but in no row"
