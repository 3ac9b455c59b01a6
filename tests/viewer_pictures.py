"""Pictures of the viewer for the documentation: `python -m tests.viewer_pictures WORKDIR FOLDER`.

WORKDIR is a run with recorded trees; FOLDER/tree.png shows one of them, FOLDER/tree_2000.png a search of 2,001 nodes.
"""

import argparse
import pathlib
import tempfile

from PIL import Image

from deepsearch_jax.runtime.tree_records import FOLDER, TreeRecord, path_of, write_trees
from experiments.view import build_page, choose_steps
from tests.browser import Browser, browser
from tests.grown import grown_record

MOST_BYTES = 290_000


def big_record() -> TreeRecord:
    """A search that has used up its 2,001 nodes."""
    return grown_record(
        num_nodes=2001, segment_length=64, max_depth=16, num_trajectories=512, end_share=0.1, name="two thousand"
    )


def write_page(workdir: pathlib.Path, steps: dict[int, list[TreeRecord]]) -> pathlib.Path:
    """The page of a workdir that holds these trees by step."""
    (workdir / FOLDER).mkdir(parents=True, exist_ok=True)
    for step, records in steps.items():
        write_trees(path_of(workdir / FOLDER, step), records)
    page = workdir / "trees.html"
    page.write_text(build_page(workdir, choose_steps(workdir)), encoding="utf-8")
    return page


def open_page(session: Browser, page: pathlib.Path) -> None:
    session.open(page)
    session.wait("window.viewer?.firstDrawn")


def picture(session: Browser, path: pathlib.Path) -> None:
    """A screenshot of what is shown now, once it is drawn and all text is there."""
    session.wait("!viewer.panel.isFilling && !viewer.isDue")
    session.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    session.screenshot(path)
    with Image.open(path) as whole:
        small = whole.convert("RGB")
    small.save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:  # fewer colours, which thin lines do not miss
        small.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, browser("1440,940") as session:
        small = pathlib.Path(folder) / "small.html"
        small.write_text(build_page(options.workdir, choose_steps(options.workdir)), encoding="utf-8")
        open_page(session, small)
        # The solved tree with most verdicts of both kinds.
        session.run(
            "viewer.open(viewer.entries.filter((e) => e.kind === 'search' && e.solved)"
            ".sort((a, b) => b.nodes - a.nodes)[0] ?? viewer.entries[0])"
        )
        session.run("viewer.choose([...viewer.tree.leaves].find((leaf) => viewer.tree.outcome[leaf] === 1) ?? 1)")
        picture(session, options.folder / "tree.png")
        big = write_page(pathlib.Path(folder) / "big", {10: [big_record()]})
        open_page(session, big)
        session.keys("t", "c")
        picture(session, options.folder / "tree_2000.png")


if __name__ == "__main__":
    main()
