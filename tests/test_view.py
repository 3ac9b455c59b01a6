"""The page of recorded trees as a file: what goes in, and what is said where nothing can."""

import base64
import gzip
import io
import json
import re
import struct
import zipfile

import numpy as np
import pytest

from deepsearch_jax.runtime.tree_records import FOLDER, path_of, read_trees, write_trees
from experiments.view import PAGES, SCRIPTS, STYLES, build_page, choose_steps, main, pack
from tests.conftest import REPOSITORY
from tests.grown import WordTokenizer, grown_record

HOSTILE = "</script><img src=x onerror=alert(1)>{{data}}<!--"


@pytest.fixture(scope="module")
def record():
    tokenizer = WordTokenizer([HOSTILE, " é", "한", "b"])
    return grown_record(num_nodes=21, segment_length=4, max_depth=4, width=2, num_trajectories=4, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def workdir(record, tmp_path_factory):
    path = tmp_path_factory.mktemp("a run & more")
    (path / FOLDER).mkdir()
    hostile = type(record)(facts={**record.facts, "problem": HOSTILE, "question": HOSTILE}, **record.arrays())
    for step in (1, 4, 11, 12):
        write_trees(path_of(path / FOLDER, step), [record, hostile])
    return path


def unpack(data):
    (size,) = struct.unpack_from("<I", data)
    header = json.loads(data[4 : 4 + size])
    types = {"i4": "<i4", "f4": "<f4", "u2": "<u2", "u1": "<u1"}
    for tree in header["trees"]:
        yield (
            tree["facts"],
            {
                name: np.frombuffer(data, types[kind], length, 4 + size + offset)
                for name, (kind, offset, length) in tree["arrays"].items()
            },
        )


def test_what_is_packed_can_be_read_again(record):
    ((facts, arrays),) = unpack(pack([record]))
    assert facts == record.facts
    for name in ("parent", "outcome", "change_nodes"):
        np.testing.assert_array_equal(arrays[name], getattr(record, name))
    np.testing.assert_array_equal(arrays["value"], record.value)
    np.testing.assert_array_equal(record.vocabulary[arrays["tokens"]], record.tokens)
    np.testing.assert_allclose(arrays["log_probs"] / -1000, record.log_probs, atol=6e-4)


def test_unknown_and_endless_log_probs_are_told_apart(record):
    values = record.log_probs.copy()
    values[:3] = np.nan, -np.inf, -0.25
    changed = type(record)(facts=record.facts, **{**record.arrays(), "log_probs": values})
    ((_, arrays),) = unpack(pack([changed]))
    assert arrays["log_probs"][:3].tolist() == [65535, 65534, 250]


def test_text_cannot_leave_its_place(workdir):
    page = build_page(workdir, [1, 4])
    assert HOSTILE not in page
    # Script elements: the index, two steps, and the program.
    assert len(re.findall(r"<script", page)) == len(re.findall(r"</script", page)) == 4
    index = json.loads(re.search(r'id="index">(.*?)</script>', page)[1])
    assert [(entry["step"], entry["place"]) for entry in index] == [(1, 0), (1, 1), (4, 0), (4, 1)]
    assert index[1]["problem"] == HOSTILE
    block = re.search(r'id="step-4">(.*?)</script>', page)[1]
    trees = list(unpack(gzip.decompress(base64.b64decode(block))))
    assert trees[1][0]["question"] == HOSTILE
    assert "a run &amp; more" in page


def test_the_page_asks_for_nothing(workdir):
    page = build_page(workdir, [1])
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)[^"']+""", page) == []
    assert "http:" not in page
    assert "https:" not in page
    assert "default-src 'none'" in page


def test_steps_are_chosen_by_numbers_and_ranges(workdir):
    assert choose_steps(workdir) == [1, 4, 11, 12]
    assert choose_steps(workdir, "4,11-99") == [4, 11, 12]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ("2-3", "--steps=2-3 names none of the recorded steps; there are 1, 4, 11, 12"),
        ("1,x", "--steps=1,x cannot be read at 'x'"),
        ("5-", "--steps=5- cannot be read"),
        ("²", "--steps=² cannot be read"),
    ],
)
def test_steps_that_are_not_there_are_named(workdir, steps, words, capsys):
    assert main([str(workdir), f"--steps={steps}"]) == 2
    assert words in capsys.readouterr().err


def test_a_run_without_trees_is_told_what_to_do(workdir, tmp_path, capsys):
    run = tmp_path / "a run"
    run.mkdir()
    assert complaint(capsys, run).endswith("a run holds no run; name the --workdir of a run\n")
    (run / "metrics.jsonl").touch()
    assert "holds no recorded trees; a run records some of its steps" in complaint(capsys, run)
    assert "holds no run itself, but there are runs in it: a run; name" in complaint(capsys, tmp_path)
    assert "is no directory; name the --workdir of a run" in complaint(capsys, tmp_path / "no\nerror: ne")
    (run / FOLDER).mkdir()
    (run / FOLDER / "step_copy.npz").touch()  # not ours
    assert "holds no recorded trees" in complaint(capsys, run)
    assert "page is a directory; name a file" in complaint(capsys, workdir, "--out", tmp_path_with_page(tmp_path))


def complaint(capsys, *arguments):
    """The one line that the command ends with."""
    assert main([str(argument) for argument in arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\nerror") == 0
    return text


def tmp_path_with_page(folder):
    (folder / "page").mkdir()
    return folder / "page"


def test_damaged_trees_are_named(record, tmp_path, capsys):
    file = path_of(tmp_path / FOLDER, 3)
    file.parent.mkdir()
    write_trees(file, [record])
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    bad = {
        "no zip": b"no zip",
        "half": whole[: len(whole) // 2],
        "an array of another form": {**parts, "0.parent.npy": b"\x93NUMPY\x01\x00\x76\x00{'descr': '<i4'}"},
        "facts that are no JSON": {**parts, "facts.npy": parts["facts.npy"][:-2] + b"xx"},
        "facts that are none": {**parts, "facts.npy": npy(b"[1]")},
    }
    for content in bad.values():
        if isinstance(content, dict):
            with zipfile.ZipFile(file, "w") as archive:
                for name, data in content.items():
                    archive.writestr(name, data)
        else:
            file.write_bytes(content)
        assert "step_000003.npz cannot be read as recorded trees (" in complaint(capsys, tmp_path)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("facts.npy", npy(b'{"format": 99}'))
    assert "has trees of format 99, this version reads 1" in complaint(capsys, tmp_path)


def npy(text):
    """Text as the file of an array of bytes."""
    file = io.BytesIO()
    np.save(file, np.frombuffer(text, np.uint8))
    return file.getvalue()


def test_a_step_that_a_running_run_has_dropped_meanwhile_is_left_out(record, tmp_path):
    (tmp_path / FOLDER).mkdir()
    write_trees(path_of(tmp_path / FOLDER, 4), [record])
    page = build_page(tmp_path, [1, 4])
    assert 'id="step-4"' in page
    assert 'id="step-1"' not in page


def test_the_command_writes_the_page(workdir, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    assert main([str(workdir), "--steps=1", f"--out={out}"]) == 0
    assert out.read_text("utf-8") == build_page(workdir, [1])
    assert f"1 step, 0.1 MiB: {out}" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def test_files_are_read_back_as_written(record, workdir):
    (again, _) = read_trees(path_of(workdir / FOLDER, 1))
    assert again.facts == record.facts
    for name, value in record.arrays().items():
        np.testing.assert_array_equal(getattr(again, name), value)


def test_the_parts_of_the_page_are_installed():
    """setup.py must name the folders of files that are no Python."""
    patterns = re.search(r'package_data=\{"experiments": \[(.*?)\]', (REPOSITORY / "setup.py").read_text())[1]
    folder = REPOSITORY / "experiments"
    installed = {path for pattern in re.findall(r'"(.*?)"', patterns) for path in folder.glob(pattern)}
    assert {PAGES / name for name in ("viewer.html", *STYLES, *SCRIPTS)} <= installed


def test_the_pictures_of_the_documentation_are_small():
    shown = re.findall(r"\]\((images/\S+?\.png)\)", (REPOSITORY / "docs/viewer.md").read_text("utf-8"))
    assert shown == ["images/tree.png", "images/tree_2000.png"]
    for name in shown:
        data = (REPOSITORY / "docs" / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert 10_000 < len(data) < 300_000
