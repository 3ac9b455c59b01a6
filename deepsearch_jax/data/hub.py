"""Datasets of the Hugging Face hub as problem files: fetched once, then read from the hub's cache."""

import pathlib

from deepsearch_jax.data.records import SUFFIXES

HUB = "hf:"


def hub_files(path: str, pattern: str = "*train*") -> tuple[str, ...]:
    """Problem files of "hf:OWNER/NAME" or "hf:OWNER/NAME:PATTERN"; any other path as it is.

    Args:
      pattern: of the files wanted where the name gives none; "*" also stands for folders.
    Raises:
      ValueError: the dataset could not be fetched, or has no file of a known format.
    """
    if not path.startswith(HUB):
        return (path,)
    repository, _, given = path.removeprefix(HUB).partition(":")
    return fetch(path, repository, given or pattern, "give the path of a file")


def fetch(name: str, repository: str, pattern: str, way_out: str) -> tuple[str, ...]:
    """Files of a dataset that match, sorted. Raises: ValueError as `hub_files`; it ends with `way_out`."""
    from huggingface_hub import snapshot_download  # only where something has to be fetched

    try:
        folder = pathlib.Path(snapshot_download(repository, repo_type="dataset", allow_patterns=[pattern]))
    except (OSError, ValueError) as error:  # what the hub raises: no network, no such dataset, not a name
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{name!r}: the dataset {repository} could not be fetched ({reason}); on a network, fetch it with "
            f"`hf download {repository} --repo-type dataset`, or {way_out}"
        ) from error
    found = sorted(str(path) for path in folder.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file())
    if not found:
        raise ValueError(f"dataset {repository} has no file {pattern} of a known format ({', '.join(SUFFIXES)})")
    return tuple(found)
