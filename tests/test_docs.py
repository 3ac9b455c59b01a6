"""README.md and docs/: every command runs or says what it needs, and every name that the pages promise exists.

A page needs no entry here: all of docs/ is looked at. Blocks in `bash` and `python` fences are run, page by page and
in order, in a copy of the repository with a small finished run at runs/quickstart; the working directory is its root.
How a block says that it cannot be run is told in `tests/doc_blocks.py` and docs/README.md.
"""

import functools
import importlib
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest

from deepsearch_jax.config import from_config, setting_names, to_config
from deepsearch_jax.runtime import RunSettings
from experiments.configs import deepsearch_1_5b
from tests.doc_blocks import HELP, REPOSITORY, Block, commands, pages, read_blocks
from tests.flags import QUICK_TO_COMPILE
from tests.runtime.documented import documented_names

LIMIT_S = 120  # of one block, on a busy machine; what takes more than about 10 CPU seconds should be marked
MOST_README_LINES = 200
SETTINGS = frozenset(setting_names(RunSettings))
RUN = "runs/quickstart"
COPIED = ("README.md", "pyproject.toml", "benchmarks", "deepsearch_jax", "docs", "experiments", "tests")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> pathlib.Path:
    """A copy of the repository, so that commands write where nobody minds, with a finished run."""
    root = tmp_path_factory.mktemp("docs") / "deepsearch_jax"
    root.mkdir()
    for path in map(REPOSITORY.joinpath, COPIED):
        if path.is_dir():
            shutil.copytree(path, root / path.name, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        else:
            shutil.copy(path, root / path.name)
    make = Block(
        "tests/test_docs.py",
        0,
        "bash",
        f"python -m experiments.run --config=tests/tiny_quickstart.py --workdir={RUN}",
    )
    assert_runs(make, root, limit_s=4 * LIMIT_S)
    return root


def environment(root: pathlib.Path) -> dict[str, str]:
    """Of a command: one CPU device as a user has, nothing of the user's own home, programs compiled fast."""
    home = root.parent / "home"
    home.mkdir(exist_ok=True)
    return {
        **os.environ,
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICK_TO_COMPILE,
        "COLUMNS": "120",
    }


def assert_runs(block: Block, root: pathlib.Path, limit_s: float = LIMIT_S) -> None:
    """Runs a block at `root`; an assertion tells what it said where it fails."""
    start = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
    text = re.sub(r"\bWORKDIR\b", RUN, block.text)
    process = subprocess.Popen(
        [*start, text], cwd=root, env=environment(root), text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit_s)
        ended = f"ended with status {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        ended = f"was not through after {limit_s:.0f} s"
    assert process.returncode == 0, f"{block.place} {ended}. {HELP}\n\n{block.text}\n\n{output[-3000:]}"


def run_page(blocks: list[Block], root: pathlib.Path) -> None:
    """Runs what is not marked, in order, and saves what is meant to be a file."""
    for block in blocks:
        if block.language == "python" and (name := block.markers.get("file")):
            (root / name).write_text(block.text + "\n")
        elif block.is_run:
            assert_runs(block, root)


@pytest.mark.parametrize("page", [page for page in pages() if any(block.is_run for block in read_blocks(page))])
def test_unmarked_blocks_run(page, copy):
    run_page(read_blocks(page), copy)


def complaints(blocks: list[Block]) -> list[str]:
    """What is wrong with the commands of marked blocks, each with its place."""
    found = [
        (block, command)
        for block in blocks
        if block.language == "bash" and block.markers
        for command in commands(block)
    ]
    process = subprocess.run(
        [sys.executable, "-m", "tests.check_commands"], cwd=REPOSITORY, env={**os.environ, "JAX_PLATFORMS": "cpu"},
        input=json.dumps([command for _, command in found]), text=True, capture_output=True, check=True, timeout=600,
    )  # fmt: skip
    told = json.loads(process.stdout)
    assert len(told) == len(found)
    return [f"{b.place}: python -m {' '.join(c)}: {text}" for (b, c), text in zip(found, told, strict=True) if text]


def test_commands_of_marked_blocks_parse():
    wrong = complaints([block for page in pages() for block in read_blocks(page)])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", [*pages(), "benchmarks/README.md"])
def test_modules_named_in_the_text_exist(page):
    text = (REPOSITORY / page).read_text("utf-8")
    for module in re.findall(r"`python -m ((?:deepsearch_jax|experiments|benchmarks|tests)\.[\w.]+)", text):
        assert importlib.util.find_spec(module), f"{page}: there is no module {module}"


def test_marked_python_blocks_compile():
    for page in pages():
        for block in read_blocks(page):
            if block.language == "python":
                compile(block.text, block.place, "exec")


# ------------------------------------------------------------------------------------------------ the checks themselves


def written(tmp_path, text: str, name: str = "README.md") -> list[Block]:
    (tmp_path / name).write_text(text)
    return read_blocks(name, tmp_path)


def test_a_block_that_nobody_marked_and_that_fails_is_told_with_the_way_out(tmp_path):
    blocks = written(tmp_path, "# Title\n\n```bash\necho told\nfalse\necho never\n```\n")
    with pytest.raises(AssertionError, match=r"README.md line 3 ended with status 1(.|\n)*# needs: a model(.|\n)*told"):
        run_page(blocks, tmp_path)


def test_a_block_that_takes_too_long_is_ended(tmp_path):
    (block,) = written(tmp_path, "```bash\nsleep 60 & sleep 60\n```\n")
    with pytest.raises(AssertionError, match="was not through after 1 s"):
        assert_runs(block, tmp_path, limit_s=1)


def test_blocks_of_a_page_share_a_directory_and_saved_files(tmp_path):
    text = "```python\n# file: one.py\nprint(7)\n```\n\n```bash\npython one.py > out.txt\n```\n"
    run_page(written(tmp_path, text + '```python\nassert open("out.txt").read() == "7\\n"\n```\n'), tmp_path)


def test_marked_blocks_are_not_run(tmp_path):
    run_page(
        written(
            tmp_path, "```bash\n# needs: a cluster\nfalse\n```\n```bash\n#!/bin/bash\n# takes: 5 minutes\nfalse\n```\n"
        ),
        tmp_path,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```bash\n# takes: long\n```\n", "says too little"),
        ("```bash\n# needs:\n```\n", "says too little"),
        ("```bash\n# marker: needs a cluster\n```\n", "is no marker"),
        ("```bash\n# Takes 5 minutes\n```\n", "is no marker"),
        ("```bahs\ntrue\n```\n", "language 'bahs'"),
        ("```\npython -m experiments.run\n```\n", "without a language"),
        ("```bash\ntrue\n", "has no end"),
    ],
)
def test_blocks_that_cannot_be_understood_are_refused(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        [block.markers for block in written(tmp_path, text)]


def test_mistakes_in_commands_of_marked_blocks_are_found(tmp_path):
    run = "python -m experiments.run --workdir=runs/a --config=experiments/configs/quickstart.py"
    lines = [
        f"{run}:short --config.search.max_depth=3 > log 2>&1 &",
        f"{run}:shot",
        f"{run} --config.serch.max_depth=3",
        f"{run} --config.search.max_depth=deep",
        f"{run} --config.search.backtrace=nowhere",
        f"{run} --wrkdir=runs/b",
        f'ssh host --command="{run} --config.search.max_dept=3"',
        "python -m experiments.runn",
        "python -m deepsearch_jax.verify FILE --mode maths",
        "python -m pip install nothing",
        "for id in 0 1; do \\\n  " + run + " --process_id=$id &\ndone",
    ]
    wrong = "\n".join(complaints(written(tmp_path, "```bash\n# needs: luck\n" + "\n".join(lines) + "\n```\n")))
    told = [
        "has no variant 'shot'", "did you mean config.search.max_depth", "deep", "nowhere", "wrkdir",
        "config.search.max_dept is not", "no module experiments.runn", "maths",
    ]  # fmt: skip
    assert len(wrong.splitlines()) >= len(told), wrong
    assert [text for text in told if text not in wrong] == [], wrong
    assert "log" not in wrong, wrong
    assert "nothing" not in wrong, wrong
    assert "process_id" not in wrong, wrong


# ------------------------------------------------------------------------------------------------------ names and links


def tables(page: str) -> dict[str, list[list[str]]]:
    """Rows of a page's tables, as cells, by the text of the table's first heading cell."""
    found: dict[str, list[list[str]]] = {}
    rows: list[list[str]] | None = None
    for line in (REPOSITORY / page).read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if not line.startswith("|"):
            rows = None
        elif rows is None:
            rows = found.setdefault(cells[0], [])
        elif not set("".join(cells)) <= set("-: "):
            rows.append(cells)
    return found


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def assert_setting(text: str, place: str) -> None:
    """`group.name` exists, and `group.name=value` takes the value."""
    name, has_value, value = text.partition("=")
    assert name in SETTINGS, f"{place}: {name} is no setting of a run"
    if has_value:
        config = to_config(RunSettings())
        config.task.arithmetic.warm_start_stages = ()  # a warm start excludes adapters
        config.update_from_flattened_dict({name: _parsed(value)})
        try:
            from_config(RunSettings, config.to_dict())
        except (ValueError, TypeError) as error:
            pytest.fail(f"{place}: {text}: {error}")


def _parsed(value: str):
    try:
        return json.loads(value)
    except ValueError:
        return value.strip("'")


def test_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text("utf-8").splitlines()) <= MOST_README_LINES


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page):
    text = (REPOSITORY / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"(https?:|mailto:|#)", target):
            path = (REPOSITORY / page).parent / target.split("#")[0]
            assert path.exists(), f"{page}: {target} leads nowhere"
    for target in re.findall(r"`(docs/[\w/.-]+\.(?:md|png))`", text):
        assert (REPOSITORY / target).exists(), f"{page}: {target} does not exist"


def test_every_page_is_in_the_index_once():
    index = (REPOSITORY / "docs" / "README.md").read_text("utf-8")
    wanted = [page.removeprefix("docs/") for page in pages()[1:] if page != "docs/README.md"]
    wrong = [page for page in wanted if index.count(f"]({page})") != 1]
    assert not wrong, f"docs/README.md must link {', '.join(wrong)} once; look at its table"


def test_functions_of_the_method_exist():
    rows = tables("docs/method.md")["equation"]
    assert len(rows) >= 15
    for cells in rows:
        names, (file,) = code(cells[2]), code(cells[3])
        assert (REPOSITORY / file).is_file(), file
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        for name in names:
            assert functools.reduce(getattr, name.split("."), module), f"{file} has no {name}"


def test_functions_of_the_engine_exist():
    rows = tables("docs/engine.md")["part"]
    assert len(rows) >= 8
    for cells in rows:
        names, (file,) = code(cells[1]), code(cells[2])
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        for name in names:
            assert hasattr(module, name), f"{file} has no {name}"


def test_metrics_and_settings_of_troubleshooting_exist():
    known = [name for names in documented_names().values() for name in names]
    rows = tables("docs/troubleshooting.md")["symptom"]
    assert len(rows) >= 10
    for symptom, metrics, remedies in rows:
        for name in code(metrics):
            fits = any(re.fullmatch(pattern, name.removeprefix("machine.")) for pattern in known)
            assert fits, f"troubleshooting, {symptom}: docs/metrics.md has no {name}"
        for text in code(remedies):
            if not text.startswith(("python ", "--", "docs/", "hf ")):
                assert_setting(text, f"troubleshooting, {symptom}")


def test_settings_for_the_authors_flags_are_those_of_the_config():
    """Every value in the table of flags is what the config of the paper's run has."""
    config = deepsearch_1_5b.get_config().to_dict()
    rows = [
        row
        for heading, some in tables("docs/from_the_authors_code.md").items()
        if heading == "their flag"
        for row in some
    ]
    assert len(rows) >= 60
    for flag, _, ours, _ in rows:
        for text in code(ours):
            if text.startswith(("--", "python ", "docs/", "runs/", "experiments/", "metrics.jsonl")):
                continue
            name, has_value, value = text.partition("=")
            assert name in SETTINGS, f"{flag}: {name} is no setting of a run"
            if has_value:
                found = functools.reduce(lambda group, key: group[key], name.split("."), config)
                assert found == _parsed(value), (
                    f"{flag}: {name} is {found!r} in deepsearch_1_5b, the table says {value}"
                )
