"""What the files of a checkpoint were when it was written: sizes and SHA-256 sums in a file that is written last.

The directory of a checkpoint gets its final name after its manifest is in it, so one without a manifest, or with files
that differ from it, was damaged or half removed later.
"""

import concurrent.futures
import errno
import hashlib
import json
import os
import pathlib
from typing import Any

NAME = "manifest.json"
FORMAT = 1
# Orbax writes these two once more after the manifest; they hold times and names of file handlers, no state of the run.
_METADATA, _COMMITTED = "_CHECKPOINT_METADATA", "commit_success.txt"
_CHANGING_KEY = "commit_timestamp_nsecs"
_THREADS = 8
# What reading says of a disk that lost what was written; other errors (no right to read, no network) are no damage.
_LOST = (errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO))


class Damaged(ValueError):
    """A file of a checkpoint is not what was written.

    Attributes:
      is_missing: whether it is not there at all, as when the checkpoint was being removed.
    """

    def __init__(self, message: str, *, is_missing: bool = False):
        super().__init__(message)
        self.is_missing = is_missing


def write_manifest(directory: pathlib.Path, facts: dict[str, Any]) -> None:
    """Writes down all files of `directory` as they are now.

    Args:
      facts: kept with them; plain JSON values.
    """
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    paths = [path for path in paths if path.relative_to(directory).as_posix() not in (NAME, _METADATA, _COMMITTED)]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        sums = list(threads.map(_sha256, paths))
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, sums, strict=True)
    }
    content = {"format": FORMAT, "files": files, "metadata": _read_metadata(directory), "facts": facts}
    with open(directory / NAME, "w", encoding="utf-8") as file:
        json.dump({**content, "sha256": _sum_of(content)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_facts(directory: pathlib.Path) -> dict[str, Any]:
    """The facts kept with the files. Raises: Damaged."""
    return _read(directory)["facts"]


def check_files(directory: pathlib.Path, *, contents: bool) -> None:
    """Compares the files of `directory` with its manifest.

    Args:
      contents: compare every byte; False looks whether all files are there in their size.

    Raises:
      Damaged: the first file that differs, with what was expected of it.
    """
    try:
        _check_files(directory, contents)
    except OSError as error:
        if error.errno not in _LOST:
            raise
        raise Damaged(f"{error.filename or 'a file'} cannot be read ({error.strerror})") from error


def _check_files(directory: pathlib.Path, contents: bool) -> None:
    manifest = _read(directory)
    if not (directory / _COMMITTED).exists():
        raise Damaged(f"{_COMMITTED} is missing", is_missing=True)
    if _read_metadata(directory) != manifest["metadata"]:
        raise Damaged(f"{_METADATA} does not have the content it was written with")
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise Damaged(f"{name} is missing, {expected['bytes']} bytes were written", is_missing=True)
        if (size := path.stat().st_size) != expected["bytes"]:
            raise Damaged(f"{name} has {size} bytes, {expected['bytes']} were written")
    if not contents:
        return
    names = list(manifest["files"])
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        sums = threads.map(_sha256, [directory / name for name in names])
        for name, digest in zip(names, sums, strict=True):
            expected = manifest["files"][name]["sha256"]
            if digest != expected:
                raise Damaged(f"{name} has the SHA-256 sum {digest[:16]}..., {expected[:16]}... was written")


def _read(directory: pathlib.Path) -> dict[str, Any]:
    try:
        manifest = json.loads((directory / NAME).read_bytes())
    except FileNotFoundError:
        raise Damaged(
            f"{NAME} is missing: it was removed, or an older version wrote this checkpoint", is_missing=True
        ) from None
    except ValueError:
        raise Damaged(f"{NAME} is not JSON") from None
    content = {key: value for key, value in manifest.items() if key != "sha256"} if isinstance(manifest, dict) else {}
    if not content or manifest.get("sha256") != _sum_of(content):
        raise Damaged(f"{NAME} does not have the content it was written with")
    if manifest["format"] != FORMAT:
        raise Damaged(f"{NAME} has format {manifest['format']}, this version reads {FORMAT}")
    return manifest


def _read_metadata(directory: pathlib.Path) -> dict[str, Any]:
    """Orbax's own record of the checkpoint without the time that it changes at the end."""
    try:
        content = json.loads((directory / _METADATA).read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{_METADATA} is missing", is_missing=True) from None
    except ValueError:
        raise Damaged(f"{_METADATA} is not JSON") from None
    if not isinstance(content, dict) or not isinstance(content.pop(_CHANGING_KEY, None), int | None):
        raise Damaged(f"{_METADATA} does not have the content it was written with")
    return content


def _sha256(path: pathlib.Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        error.filename = error.filename or str(path)  # reading does not say of what
        raise


def _sum_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
