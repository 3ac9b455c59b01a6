"""Collectives of a compiled program, read from its text."""

import collections
import dataclasses
import math
import re
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_CALLED = re.compile(r"(?:body|to_apply|calls|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SHAPE = re.compile(r"\b(pred|[sufb][a-z]*\d+[a-z0-9]*|c\d+)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}")


@dataclasses.dataclass
class Traffic:
    """Collectives of one kind, of one device.

    Attributes:
      count: how often they run, loops of unknown length once.
      bytes: of their results (of the operand for reduce-scatter).
      sent: bytes that the device sends if they go round in a ring.
    """

    count: int = 0
    bytes: float = 0.0
    sent: float = 0.0


class Collectives(NamedTuple):
    """Attributes:
    by_kind: of groups with more than one device.
    open_loops: loops with collectives whose length the text does not tell.
    """

    by_kind: dict[str, Traffic]
    open_loops: int

    @property
    def sent(self) -> float:
        return sum(traffic.sent for traffic in self.by_kind.values())


def shape_bytes(text: str) -> list[int]:
    """Bytes of each array shape in a piece of program text."""
    sizes = []
    for kind, dims in _SHAPE.findall(text):
        bits = 8 if kind == "pred" else int((re.search(r"\d+", kind) or [8])[0])  # f8e4m3: 8
        sizes.append(math.prod(int(n) for n in dims.split(",") if n) * bits // 8)
    return sizes


def group_size(line: str) -> int:
    """Devices that take part in a collective together; 0 where the text names no groups (all of them)."""
    if found := _LISTED.search(line):
        return len(found[1].split(","))
    if found := _IOTA.search(line):
        return int(found[1])
    if found := _MESH.search(line):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        return math.prod(sizes[name] for name in re.findall(r"'([^']+)'", found[2]))
    return 0


def read_collectives(text: str, num_devices: int) -> Collectives:
    """What a compiled program exchanges in one run, what is in a loop as often as the loop runs.

    Args:
      text: HLO text, as `compiled.as_text()` gives it.
      num_devices: of the program.
    """
    own: dict[str, list[tuple[str, float, float]]] = collections.defaultdict(list)
    calls: dict[str, list[tuple[str, int | None]]] = collections.defaultdict(list)
    entry = current = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line.strip()):
            current = found[1]
            entry = current if line.startswith("ENTRY") else entry
            continue
        is_loop = " while(" in line
        trips = _TRIPS.search(line)
        for name in _CALLED.findall(line):
            calls[current].append((name, (int(trips[1]) if trips else None) if is_loop else 1))
        if branches := _BRANCHES.search(line):
            calls[current] += [(name.strip().lstrip("%"), 1) for name in branches[1].split(",")]
        if found := _COLLECTIVE.search(line):
            kind, size = found[2], group_size(line) or num_devices
            if kind == "collective-permute":
                size = 2
            if size > 1:
                moved = _moved(kind, found[1], size, f"{kind}-start(" in line)
                own[current].append((kind, *moved))

    totals: dict[str, Traffic] = collections.defaultdict(Traffic)
    open_loops = 0

    def has_any(name: str) -> bool:
        return bool(own[name]) or any(has_any(called) for called, _ in calls[name])

    def visit(name: str, times: int) -> None:
        nonlocal open_loops
        for kind, size, sent in own[name]:
            traffic = totals[kind]
            traffic.count, traffic.bytes, traffic.sent = (
                traffic.count + times, traffic.bytes + times * size, traffic.sent + times * sent
            )  # fmt: skip
        for called, trips in calls[name]:
            if has_any(called):
                open_loops += trips is None
                visit(called, times * (trips or 1))

    visit(entry, 1)
    return Collectives(dict(totals), open_loops)


def _moved(kind: str, result: str, size: int, is_start: bool) -> tuple[float, float]:
    """(bytes, bytes sent by a device) of one collective."""
    sizes = shape_bytes(result)
    # The start of an asynchronous one also returns its operand.
    nbytes = float(max(sizes, default=0) if is_start else sum(sizes))
    if kind == "all-reduce":
        return nbytes, 2 * nbytes * (size - 1) / size
    if kind == "reduce-scatter":
        return nbytes * size, nbytes * (size - 1)
    if kind == "collective-permute":
        return nbytes, nbytes
    return nbytes, nbytes * (size - 1) / size
