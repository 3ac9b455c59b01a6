"""Raw records of problem files; every complaint names the file and the line, item or row."""

import glob
import gzip
import json
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")


def expand_paths(paths: str | pathlib.Path | Iterable[str | pathlib.Path]) -> list[pathlib.Path]:
    """Files named by paths and glob patterns, matches of one pattern sorted. Raises: ValueError if one is missing."""
    given = [paths] if isinstance(paths, str | pathlib.Path) else list(paths)
    if not given:
        raise ValueError("no problem file given; name at least one file or glob pattern")
    files: list[pathlib.Path] = []
    for item in given:
        path = pathlib.Path(item).expanduser()
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            raise ValueError(f"problem file {path} is a folder; name a file or a pattern such as {path}/*.jsonl.gz")
        elif any(c in str(path) for c in "*?["):
            matches = sorted(pathlib.Path(p) for p in glob.glob(str(path), recursive=True) if pathlib.Path(p).is_file())
            if not matches:
                raise ValueError(f"no problem file matches the pattern {path}")
            files.extend(matches)
        else:
            raise ValueError(f"problem file {path} does not exist")
    for path in files:
        if not path.name.endswith(SUFFIXES):
            raise ValueError(f"problem file {path} has an unknown format; known endings are {', '.join(SUFFIXES)}")
    return files


def read_records(path: pathlib.Path) -> Iterator[tuple[str, int, Any]]:
    """Yields (place for messages, row index, record) of one file; raises ValueError if it has none."""
    num_records = 0
    for place, record in _read_parquet(path) if path.suffix == ".parquet" else _read_json(path):
        yield place, num_records, record
        num_records += 1
    if num_records == 0:
        raise ValueError(f"problem file {path} is empty; expected at least one problem")


def _read_json(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    content = path.read_bytes()
    try:
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"problem file {path} is damaged or only half downloaded ({error}); fetch it again") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"problem file {path} is not UTF-8 text ({error})") from error
    if path.suffix == ".json":
        if not text.strip():
            return
        try:
            records = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} line {error.lineno}: not valid JSON ({error.msg})") from error
        if not isinstance(records, list):
            raise ValueError(f"problem file {path} must hold a list of objects, got {kind(records)}")
        for number, record in enumerate(records, 1):
            yield f"{path} item {number}", record
        return
    # Only newlines separate records: splitlines() would also cut at U+2028, which is legal inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{path} line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path} line {number}: not valid JSON ({error.msg} at column {error.colno})"
                ) from error


def _read_parquet(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    import pyarrow  # costs a tenth of a second that readers of JSON need not pay
    import pyarrow.parquet

    try:
        records = pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"problem file {path} is not a readable parquet file ({error}); fetch it again") from error
    for number, record in enumerate(records, 1):
        yield f"{path} row {number}", record


def file_stem(path: pathlib.Path) -> str:
    """The file's name without its known ending."""
    return path.name[: -len(next(s for s in SUFFIXES if path.name.endswith(s)))]


def kind(value: Any) -> str:
    """Type and beginning of a value, for messages."""
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 40 else shown[:37] + '...'}"
