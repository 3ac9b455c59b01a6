"""The evaluation sets of the paper by name: a file of the data folder, or a dataset of the Hugging Face hub."""

import pathlib
from typing import NamedTuple

from deepsearch_jax.data.hub import HUB, fetch, hub_files

_WAY_OUT = "put its file into the folder that `data` names, or give the path of a file"


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
        return fetch(name, *BENCHMARKS[name], _WAY_OUT)
    if name.startswith(HUB):
        return hub_files(name, "*test*")
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
