"""What the live panel costs: CPU seconds of everything the reporter does, by those of the run it reports.

`python -m benchmarks.progress [--config FILE[:variant]] [--set rounds.num_rounds=2 ...]` runs quickstart:short, or the
config given, on a pseudo-terminal that somebody reads. The panel's thread and every call of the run into the reporter
are timed by the CPU clock of their thread.
"""

import argparse
import functools
import json
import os
import pathlib
import pty
import runpy
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from deepsearch_jax.config import from_config
from deepsearch_jax.runtime import RunSettings, run
from deepsearch_jax.runtime.progress import Reporter

LIMIT = 0.01
CONFIG = "experiments/configs/quickstart.py:short"


class TimedReporter(Reporter):
    """Adds up the CPU time of what it is asked for."""

    own_cpu_seconds = 0.0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return _timed(self, found) if name in ("line", "advance", "row", "recall", "expect") else found


def _timed(reporter: TimedReporter, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        begin = time.thread_time()
        try:
            return function(*arguments)
        finally:
            reporter.own_cpu_seconds += time.thread_time() - begin

    return call


def measure(config: Any, workdir: pathlib.Path, transcript: pathlib.Path | None = None) -> dict[str, float]:
    """Runs once; returns CPU seconds of the reporter and of the run, and wall seconds."""
    master, slave = pty.openpty()
    seen = bytearray()

    def read() -> None:
        while True:
            try:
                seen.extend(os.read(master, 65536))
            except OSError:
                return

    threading.Thread(target=read, daemon=True).start()
    with open(slave, "w", encoding="utf-8", closefd=False) as terminal:
        reporter = TimedReporter(Console(file=terminal, force_terminal=True, width=100, height=40, soft_wrap=True))
        cpu, wall = time.process_time(), time.monotonic()
        run(from_config(RunSettings, config.to_dict()), config.to_dict(), workdir, reporter=reporter)
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    os.close(slave)
    if transcript is not None:
        transcript.write_bytes(bytes(seen))
    return {"reporter": reporter.own_cpu_seconds + reporter.panel_cpu_seconds, "run": cpu, "wall": wall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=CONFIG, help="as in experiments.run")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings, values as JSON")
    parser.add_argument("--workdir", type=pathlib.Path, help="keeps the run; by default it is thrown away")
    parser.add_argument("--transcript", type=pathlib.Path, help="file for what the terminal was sent")
    options = parser.parse_args()
    path, _, variant = options.config.partition(":")
    config = runpy.run_path(path)["get_config"](*([variant] if variant else []))
    for change in options.set:
        name, _, value = change.partition("=")
        config.update_from_flattened_dict({name: json.loads(value)})
    with tempfile.TemporaryDirectory() as folder:
        found = measure(config, options.workdir or pathlib.Path(folder) / "run", options.transcript)
    share = found["reporter"] / found["run"]
    print(f"reporter {found['reporter']:.3f} CPU s of {found['run']:.1f} CPU s in {found['wall']:.1f} s: {share:.3%}")
    print(
        json.dumps(
            {
                "name": "progress",
                "value": share,
                "unit": "share of the run's CPU time",
                "limit": LIMIT,
                "ratio": share / LIMIT,
                **found,
            }
        )
    )


if __name__ == "__main__":
    main()
