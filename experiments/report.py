"""Reports one or several runs: `python -m experiments.report WORKDIR... [--out DIR]`.

Writes report.html, one file that needs nothing else, and report.png. Works on runs that are still going on.
"""

import argparse
import pathlib
from collections.abc import Sequence

from deepsearch_jax.runtime import printable
from experiments.command_line import complain, leave_with
from experiments.files import write_whole
from experiments.reporting.page import page
from experiments.reporting.picture import picture
from experiments.reporting.runs import load_runs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path, metavar="WORKDIR", help="--workdir of a run")
    parser.add_argument(
        "--out", type=pathlib.Path, help="folder of the report; by default the workdir of one run, ./report of several"
    )
    options = parser.parse_args(argv)
    out = options.out or (options.workdirs[0] if len(options.workdirs) == 1 else pathlib.Path("report"))
    try:
        written = write_report(options.workdirs, out)
    except (ValueError, OSError) as error:
        return complain(str(error))
    for path in written:
        print(f"written: {printable(str(path))}")
    return 0


def write_report(workdirs: Sequence[pathlib.Path], out: pathlib.Path) -> list[pathlib.Path]:
    """Writes report.html and report.png into the folder `out`; returns both paths.

    Raises:
      ValueError: a folder that holds no run; `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; name a folder")
    runs = load_runs(workdirs)
    png = picture(runs)
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "report.html", out / "report.png"]
    for path, content in zip(written, (page(runs, png).encode("utf-8", "replace"), png), strict=True):
        write_whole(path, content)
    return written


if __name__ == "__main__":
    leave_with(main)
