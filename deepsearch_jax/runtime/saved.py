"""The policy in a run's checkpoints, read from outside: the run may be going on, nothing of it is touched."""

import functools
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from deepsearch_jax.config import from_config
from deepsearch_jax.data.tokenizers import HFTokenizer, Tokenizer, has_tokenizer
from deepsearch_jax.policy import ModelConfig, init_params, load_config, load_pretrained, merge, weights_fingerprint
from deepsearch_jax.runtime.manifest import Damaged, check_files
from deepsearch_jax.runtime.metrics import read_rows
from deepsearch_jax.runtime.run import build_model, compute_dtype_of, draw_params
from deepsearch_jax.runtime.settings import ModelSettings, RunSettings
from deepsearch_jax.runtime.tasks import build_task
from deepsearch_jax.runtime.text_tasks import QuestionTask

BEST = "best"


class SavedPolicy(NamedTuple):
    """A policy and what it reads and writes.

    Attributes:
      model: the architecture.
      params: parameters, adapters merged.
      tokenizer: of its texts.
      source: directory that the run started from, whose tokenizer files belong to the policy; "" for characters.
      step: training steps it has had; 0 where that is not known.
      settings: of the run; None of a directory that no run is known of.
      line_end: what follows a question where characters are read.
    """

    model: ModelConfig
    params: Any
    tokenizer: Tokenizer
    source: str
    step: int = 0
    settings: RunSettings | None = None
    line_end: str = ""


def load_saved(workdir: pathlib.Path, which: str = "", tell: Callable[[str], None] = lambda line: None) -> SavedPolicy:
    """The policy of a run.

    Args:
      workdir: of the run.
      which: a training step; "best" for the one of the kept checkpoints with the highest held-out pass@1; "" for the
        newest whose files are what was written.
      tell: is given a line for every newer checkpoint that is damaged.
    Raises:
      ValueError: no run or no such checkpoint, a damaged one, one of another version, or problem files and models that
        are gone.
    """
    settings = _settings(workdir)
    record, directory = _choose(workdir, which, tell)
    task = build_task(settings.task, settings.model.path, settings.seed) if _needs_task(settings) else None
    try:
        if settings.model.path:
            compute_dtype = compute_dtype_of(settings.model)
            model = load_config(
                settings.model.path, param_dtype=settings.model.param_dtype, compute_dtype=compute_dtype
            )
        else:
            assert task is not None
            model = build_model(settings.model, task, settings.search)
        tokenizer = task.tokenizer if task is not None else HFTokenizer(settings.model.path)
    finally:
        if task is not None:
            task.close()
    trained = _read_params(directory)
    if settings.lora.rank:
        if settings.model.path:
            base = load_pretrained(settings.model.path, param_dtype=settings.model.param_dtype)[1]
        else:
            base = draw_params(model, settings.seed)
        trained = merge(base, trained, scale=settings.lora.scale, dtype=settings.model.param_dtype)
    _check_fits(model, trained, directory)
    source = settings.model.path if isinstance(tokenizer, HFTokenizer) else ""
    line_end = "\n" if isinstance(task, QuestionTask) and task.is_of_characters else ""
    return SavedPolicy(model, trained, tokenizer, source, int(record["position"]["step"]), settings, line_end)


def load_directory(directory: pathlib.Path) -> SavedPolicy:
    """The policy in a Hugging Face directory. Raises: ValueError as `load_pretrained` and HFTokenizer."""
    compute_dtype = compute_dtype_of(ModelSettings())
    model, params = load_pretrained(directory, param_dtype=compute_dtype, compute_dtype=compute_dtype)
    return SavedPolicy(model, params, HFTokenizer(directory), str(directory))


def fingerprint_of(directory: str | pathlib.Path) -> str:
    """A short name of the weights in a Hugging Face directory. Raises: ValueError as `load_pretrained`."""
    return weights_fingerprint(load_pretrained(directory, param_dtype="bfloat16")[1])


def _settings(workdir: pathlib.Path) -> RunSettings:
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(f"{workdir} is no workdir of a run: it has no config.json")
    return from_config(RunSettings, json.loads(path.read_text()))


def _needs_task(settings: RunSettings) -> bool:
    """A model with a tokenizer of its own says all there is to know; characters belong to the task."""
    return not (settings.model.path and has_tokenizer(settings.model.path))


def _choose(workdir: pathlib.Path, which: str, tell: Callable[[str], None]) -> tuple[dict[str, Any], pathlib.Path]:
    """Record and directory of the checkpoint that is asked for; its files are those that were written."""
    folder = workdir / "checkpoints"
    numbers = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.is_dir() else []
    if not numbers:
        raise ValueError(f"{workdir} has no checkpoint yet; wait until the run has saved one (checkpoint.every_steps)")
    records: dict[int, dict[str, Any]] = {}
    damages: dict[int, Damaged] = {}
    for number in numbers:
        try:
            records[number] = _read_record(folder / str(number))
        except Damaged as damage:
            damages[number] = damage
    steps = {int(record["position"]["step"]): number for number, record in records.items()}  # the last of a step
    if which == BEST:
        rows = [row for row in read_rows(workdir / "metrics.jsonl") if row["kind"] == "eval" and row["step"] in steps]
        if not rows:
            raise ValueError(
                f"none of the checkpoints kept (steps {sorted(steps)}) was evaluated; leave out --step for the newest, "
                "or let the run save where it evaluates (checkpoint.every_steps, checkpoint.keep)"
            )
        chosen = [steps[max(rows, key=lambda row: (row["pass_at_1"], row["step"]))["step"]]]
    elif which:
        if not which.isdigit() or int(which) not in steps:
            broken = f"; damaged: {_list(damages)}" if damages else ""
            raise ValueError(
                f"--step={which}: there are checkpoints of the steps {sorted(steps)}, and {BEST!r}{broken}"
            )
        chosen = [steps[int(which)]]
    else:
        chosen = sorted(records, reverse=True)
    for number in chosen:
        try:
            check_files(folder / str(number), contents=True)
        except Damaged as damage:
            damages[number] = damage
            continue
        for other in sorted(damages, reverse=True):
            if not which and other > number:
                tell(f"checkpoint {other} is damaged: {damages[other]}. Reading {number}")
        return records[number], folder / str(number)
    raise ValueError(f"no checkpoint in {folder} that was asked for can be used ({_list(damages)})")


def _list(damages: dict[int, Damaged]) -> str:
    return "; ".join(f"checkpoint {number}: {damage}" for number, damage in damages.items())


def _read_record(directory: pathlib.Path) -> dict[str, Any]:
    """Raises: Damaged, also where files are missing."""
    check_files(directory, contents=False)
    try:
        record = json.loads((directory / "record" / "metadata").read_text())
        record["position"]["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"its record cannot be read ({error})") from error
    return record


def _read_params(directory: pathlib.Path) -> Any:
    """The trained parameters alone, on the host: optimizer and cache stay on disk."""
    place = (directory / "arrays").resolve()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that only a part is restored is meant
    try:
        handler = ocp.PyTreeCheckpointHandler()
        stored = handler.metadata(place).tree["train"]["params"]
        like = {"train": {"params": jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), stored)}}
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        found = handler.restore(
            place, args=ocp.args.PyTreeRestore(item=like, restore_args=arguments, partial_restore=True)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the arrays in {place} cannot be read ({error}); the checkpoint is damaged") from error
    finally:
        logging.disable(disabled)
    return found["train"]["params"]


def _check_fits(model: ModelConfig, params: Any, directory: pathlib.Path) -> None:
    shapes = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    want = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    got = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    if want != got:
        name = next(name for name in sorted({*want, *got}) if want.get(name) != got.get(name))
        raise ValueError(
            f"the parameters in {directory} do not fit the model of the run's config: {name} has shape "
            f"{got.get(name)}, expected {want.get(name)}; the model directory or the task is not what it was"
        )
