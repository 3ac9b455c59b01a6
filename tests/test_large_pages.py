"""Commands ask for large pages where they are of use, once, and leave what the user has set."""

import os
import pathlib
import subprocess
import sys
import threading

import pytest

from experiments import large_pages

_PROBE = """
import os, sys
exec(os.environ.get("PROBE_FIRST", ""))
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], flush=True)
from experiments.large_pages import begin_again_with_large_pages
begin_again_with_large_pages()
print("goes on", flush=True)
"""


def _probe(tmp_path, environment: dict[str, str]) -> list[str]:
    (tmp_path / "probe.py").write_text(_PROBE)
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, experiments.large_pages as pages\n"
        f"pages._PAGES = pathlib.Path({str(tmp_path / 'enabled')!r})\n"
    )
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    paths = os.pathsep.join([str(tmp_path), str(pathlib.Path(__file__).parent.parent)])
    inherited = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    process = subprocess.run(
        [sys.executable, "probe.py", "a b", "--x=*"],
        cwd=tmp_path, env={**inherited, "PYTHONPATH": paths, **environment}, capture_output=True, text=True, check=True,
        timeout=60,
    )  # fmt: skip
    return process.stdout.splitlines()


def _has_new_glibc() -> bool:
    try:
        name, version = os.confstr("CS_GNU_LIBC_VERSION").split()
    except (AttributeError, ValueError):
        return False
    return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)


@pytest.mark.skipif(not _has_new_glibc(), reason="only glibc from 2.35 on asks for large pages")
def test_a_command_begins_again_once_as_the_same_process_with_the_same_arguments(tmp_path):
    first, second, last = _probe(tmp_path, {})
    process, arguments = first.split(" ", 1)[0], "['a b', '--x=*']"
    assert first == f"{process} None {arguments}"
    assert second == f"{process} glibc.malloc.hugetlb=1 {arguments}"
    assert last == "goes on"


@pytest.mark.parametrize("value", ["", "glibc.malloc.arena_max=2"])
def test_what_the_user_has_set_stays(tmp_path, value):
    lines = _probe(tmp_path, {"GLIBC_TUNABLES": value})
    assert len(lines) == 2
    assert lines[0].split()[1:2] == ([value] if value else ["['a"])
    assert lines[1] == "goes on"


@pytest.mark.parametrize(
    "first",
    ["import threading, time; threading.Thread(target=time.sleep, args=(2,)).start()", "sys.modules['jax'] = os"],
)
def test_a_process_that_is_more_than_the_command_stays(tmp_path, first):
    assert [line for line in _probe(tmp_path, {"PROBE_FIRST": first}) if line != "later"][1:] == ["goes on"]


@pytest.mark.parametrize("pages", ["always madvise [never]\n", "[always] madvise never\n", None])
def test_pages_that_cannot_be_asked_for_are_not_asked_for(tmp_path, monkeypatch, pages):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(large_pages, "_PAGES", tmp_path / "enabled")
    if pages is not None:
        (tmp_path / "enabled").write_text(pages)
    assert not large_pages.are_of_use()


@pytest.mark.parametrize("libc", ["musl 1.2", "glibc 2.31", "", None])
def test_another_libc_is_left_alone(tmp_path, monkeypatch, libc):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(large_pages, "_PAGES", tmp_path / "enabled")
    (tmp_path / "enabled").write_text("always [madvise] never\n")

    def confstr(name: str) -> str:
        if libc is None:
            raise ValueError(f"unrecognized configuration name {name}")
        return libc

    monkeypatch.setattr(os, "confstr", confstr)
    assert not large_pages.are_of_use()
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.35")
    assert large_pages.are_of_use()


def test_a_system_that_cannot_begin_again_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(large_pages, "are_of_use", lambda: True)

    def execve(*arguments: object) -> None:
        raise OSError("not permitted")

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    with pytest.raises(OSError, match="not permitted"):
        os.execve("", [], {})
    large_pages.begin_again_with_large_pages()
