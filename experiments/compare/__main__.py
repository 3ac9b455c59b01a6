"""Compares methods: `python -m experiments.compare --suite=NAME --workdir=DIR [--jobs=N]`, resumable at any time.

`python -m experiments.compare --report SOURCE... --output docs/results.md` writes the page of several suites anew, each
from its workdir or from figures (JSON) that an earlier page left.
"""

from experiments.large_pages import begin_again_with_large_pages

if __name__ == "__main__":
    begin_again_with_large_pages()  # before the imports, which take seconds

import argparse
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from rich.console import Console

from deepsearch_jax.runtime import CheckpointError, TooManySkipped
from deepsearch_jax.runtime.interrupt import Interrupted
from experiments.command_line import complain
from experiments.compare.cells import (
    Progress,
    claimed,
    is_finished,
    run_cells,
    worker_command,
    worker_environment,
)
from experiments.compare.frozen import run_frozen
from experiments.compare.report import write_page, write_results
from experiments.compare.results import choose_points
from experiments.compare.suite import Cell, Suite, final_cells, grid_cells, load_suite, write_suite
from experiments.compare.testing import sample_test_set


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", help="name of experiments/suites/NAME.py, or a .py file with get_suite()")
    parser.add_argument("--workdir", type=pathlib.Path, help="directory of the suite's runs and results")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the runs")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--report", nargs="+", type=pathlib.Path, metavar="SOURCE", help="workdirs of suites, or their figures (JSON)"
    )
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("docs/results.md"))
    options = parser.parse_args(argv)
    try:
        if options.report:
            write_page(options.report, options.output)
            print(f"written: {options.output}")
            return 0
        if not options.suite or not options.workdir:
            parser.error("--suite and --workdir are needed, or --report with workdirs or figures")
        if options.jobs < 1:
            raise ValueError(f"--jobs={options.jobs} must be at least 1")
        suite = load_suite(options.suite)
        console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        if options.worker:
            work(suite, options.workdir, 1, console)
        else:
            compare(suite, options.suite, options.workdir, options.jobs, console)
    except Interrupted:
        print("stopped; the same command goes on from here")
    except (ValueError, OSError, CheckpointError, TooManySkipped) as error:
        return complain(str(error))
    return 0


def compare(suite: Suite, name: str, workdir: pathlib.Path, jobs: int, console: Console) -> None:
    """Runs what is not finished, samples the test problems of the chosen runs and writes the report."""
    write_suite(workdir, name)
    helpers: list[subprocess.Popen] = []
    begin = time.monotonic()
    try:
        while not work(suite, workdir, jobs, console, before=lambda: helpers.extend(_helpers(name, workdir, jobs - 1))):
            # Left over is what helpers are at; a helper that failed leaves its cells to this process.
            for helper in helpers:
                helper.wait()
            helpers.clear()
            time.sleep(1)  # or at what a second command in this workdir holds
    finally:
        for helper in helpers:
            helper.terminate()
            helper.wait()
    progress = Progress(0, 1, console)
    if suite.kind != "frozen":
        chosen, _ = choose_points(suite, workdir)
        for cell in final_cells(suite, chosen):
            sample_test_set(cell, workdir, progress.say, before=True)
            if suite.kind == "train":
                sample_test_set(cell, workdir, progress.say, before=False)
    for path in write_results(suite, workdir):
        console.print(f"{path.suffix.removeprefix('.')}: {path}", markup=False)
    console.print(f"{time.monotonic() - begin:.0f}s in this process", markup=False)


def _helpers(name: str, workdir: pathlib.Path, count: int) -> list[subprocess.Popen]:
    """Processes that take cells too; what they say goes to log files."""
    workdir.mkdir(parents=True, exist_ok=True)
    started = []
    for number in range(count):
        with open(workdir / f"helper-{number + 1}.log", "a", encoding="utf-8") as log:
            started.append(
                subprocess.Popen(
                    worker_command(name, workdir), stdout=log, stderr=subprocess.STDOUT, env=worker_environment()
                )
            )
    return started


def work(
    suite: Suite, workdir: pathlib.Path, jobs: int, console: Console, *, before: Callable[[], None] = lambda: None
) -> bool:
    """Runs cells that no other process is at: the grid, then the comparison; tells whether all are finished.

    Args:
      before: called before each of the two parts if something is left to do in it.
    """
    if suite.kind == "starts":
        return True
    grid = grid_cells(suite)
    if not _part(suite, grid, workdir, jobs, console, before):
        return False
    chosen, _ = choose_points(suite, workdir)
    return _part(suite, final_cells(suite, chosen), workdir, jobs, console, before)


def _part(
    suite: Suite, cells: list[Cell], workdir: pathlib.Path, jobs: int, console: Console, before: Callable[[], None]
) -> bool:
    if all(is_finished(cell, workdir) for cell in cells):
        return True
    before()
    progress = Progress(len(cells), jobs, console)
    if suite.kind == "train":
        run_cells(cells, workdir, progress)
    else:
        for done, cell in enumerate(cells):
            with claimed(cell.directory(workdir).with_suffix(".lock"), wait=False) as is_mine:
                if is_mine and not is_finished(cell, workdir):
                    progress.begin(cell.name, done)
                    begin = time.monotonic()
                    run_frozen(cell, workdir, progress.say)
                    progress.took(time.monotonic() - begin)
    return all(is_finished(cell, workdir) for cell in cells)


if __name__ == "__main__":
    sys.exit(main())
