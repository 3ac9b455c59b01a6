"""The evaluation sets of the paper by name: a file of the data folder, or a dataset of the Hugging Face hub."""

import pathlib
from typing import NamedTuple

HUB = "hf:"


class HubFiles(NamedTuple):
    """Files of a dataset on the hub."""

    repository: str
    pattern: str  # of the files read


# Where a set is fetched from if the data folder does not have it.
BENCHMARKS = {
    "aime24": HubFiles("HuggingFaceH4/aime_2024", "*train*"),
    "aime25": HubFiles("math-ai/aime25", "*test*"),
    "amc23": HubFiles("math-ai/amc23", "*test*"),
    "math500": HubFiles("HuggingFaceH4/MATH-500", "*test*"),
    "minerva": HubFiles("math-ai/minervamath", "*test*"),
    "olympiadbench": HubFiles("math-ai/olympiadbench", "*test*"),
    "gsm8k": HubFiles("openai/gsm8k", "main/test*"),
}
_FILES = {"gsm8k": "gsm8k_test"}  # where the file has another name than the set
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")


def benchmark_paths(name: str, data: str) -> tuple[str, ...]:
    """Problem files of a set.

    Args:
      name: one of BENCHMARKS, "hf:OWNER/NAME" or "hf:OWNER/NAME:PATTERN" on the hub, or a path or glob pattern.
      data: folder with the files of the named sets, looked into first ("NAME.jsonl.gz", below it or in "eval").
    Raises:
      ValueError: an unknown name, or a dataset that could not be fetched.
    """
    if name in BENCHMARKS:
        stem = _FILES.get(name, name)
        for folder in (pathlib.Path(data), pathlib.Path(data) / "eval"):
            for suffix in _SUFFIXES:
                if (path := folder / f"{stem}{suffix}").is_file():
                    return (str(path),)
        return _fetch(name, *BENCHMARKS[name])
    if name.startswith(HUB):
        repository, _, pattern = name.removeprefix(HUB).partition(":")
        return _fetch(name, repository, pattern or "*test*")
    if name.endswith(_SUFFIXES):
        return (name,)
    known = ", ".join(BENCHMARKS)
    raise ValueError(
        f"benchmark {name!r} is not known; choose from {known}, give a file ({', '.join(_SUFFIXES)}), or "
        "hf:OWNER/NAME[:PATTERN] for a dataset of the hub"
    )


def label(name: str) -> str:
    """A file name for the results of a set."""
    path = name.removeprefix(HUB).partition(":")[0] if name.startswith(HUB) else name
    text = pathlib.PurePath(path).name.split(".")[0]
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in text) or "set"


def _fetch(name: str, repository: str, pattern: str) -> tuple[str, ...]:
    from huggingface_hub import snapshot_download  # only where something has to be fetched

    try:
        folder = pathlib.Path(snapshot_download(repository, repo_type="dataset", allow_patterns=[pattern]))
    except (OSError, ValueError) as error:  # what the hub raises: no network, no such dataset, not a name
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"benchmark {name!r} is not in the data folder and the dataset {repository} could not be fetched "
            f"({reason}); put its file into the folder that `data` names, or give the path of a file"
        ) from error
    found = sorted(str(path) for path in folder.rglob("*") if path.name.endswith(_SUFFIXES) and path.is_file())
    if not found:
        raise ValueError(f"dataset {repository} has no file {pattern} of a known format ({', '.join(_SUFFIXES)})")
    return tuple(found)
