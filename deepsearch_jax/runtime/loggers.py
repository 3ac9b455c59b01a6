"""Where metric rows go beside metrics.jsonl: TensorBoard, and Weights & Biases if asked for, under the same names."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from tensorboardX import SummaryWriter

# Everything that depends on the machine's clock or memory lives under this key of a row: two runs of the same
# command on the same devices are equal bit for bit in everything else.
MACHINE_KEY = "machine"
WANDB_MODES = ("auto", "offline")


@dataclasses.dataclass(frozen=True)
class LoggerSettings:
    """Who gets the metric rows; metrics.jsonl always does.

    Attributes:
      tensorboard: writes WORKDIR/tensorboard.
      wandb: sends them to Weights & Biases too (needs the extra `wandb`).
      wandb_project: name of the project there.
      wandb_name: name of the run there; "" takes the name of the workdir.
      wandb_mode: "auto" sends if a key and the network are there and else writes WORKDIR/wandb for `wandb sync`;
        "offline" never sends.
    """

    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str = "deepsearch_jax"
    wandb_name: str = ""
    wandb_mode: str = "auto"

    def __post_init__(self) -> None:
        if self.wandb_mode not in WANDB_MODES:
            raise ValueError(f"wandb_mode={self.wandb_mode!r} is not known; choose one of {', '.join(WANDB_MODES)}")
        if self.wandb and not self.wandb_project:
            raise ValueError("wandb_project is empty; name the Weights & Biases project, or set wandb=False")


class Logger(Protocol):
    """Takes every row once, in order."""

    def write(self, index: int, row: dict[str, Any]) -> None:
        """Takes row number `index`, counted from 0 over the whole run."""

    def sync(self) -> None:
        """Forces what was written to disk."""

    def close(self) -> None:
        """Ends; nothing is written after it."""


def open_loggers(
    settings: LoggerSettings, workdir: pathlib.Path, kept: Sequence[dict[str, Any]], config: dict[str, Any],
    note: Callable[[str], None],
) -> list[Logger]:  # fmt: skip
    """The loggers of a run that goes on after its rows `kept`; `note` tells the user one line."""
    found: list[Logger] = []
    if settings.tensorboard:
        found.append(TensorBoard(workdir / "tensorboard", kept))
    if settings.wandb:
        from deepsearch_jax.runtime.wandb_logger import WandbLogger  # only who asks for it pays for the import

        name = settings.wandb_name or pathlib.Path(os.path.abspath(workdir)).name
        found.append(WandbLogger(settings, workdir, name, kept, config, note))
    return found


def scalars(row: dict[str, Any]) -> Iterator[tuple[str, int | float]]:
    """(kind/name, value) of every number of a row, its machine part included."""
    for name, value in {**row, **row.get(MACHINE_KEY, {})}.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            yield f"{row['kind']}/{name}", value


class TensorBoard:
    """Event files; those of several starts are read as one run without doubled points.

    A start purges the events of the last kept step and of all later ones, and writes those of the kept rows of that
    step anew: rows written after the checkpoint may belong to the same step as rows written before it.
    """

    def __init__(self, directory: pathlib.Path, kept: Sequence[dict[str, Any]]):
        is_new = not any(directory.glob("events.out.tfevents.*"))  # switched on, or thrown away, between two starts
        last = 0 if is_new or not kept else kept[-1]["step"]
        self._board = SummaryWriter(str(directory), purge_step=last)
        for index, row in enumerate(kept):
            if row["step"] >= last:
                self.write(index, row)

    def write(self, index: int, row: dict[str, Any]) -> None:
        del index
        for name, value in scalars(row):
            self._board.add_scalar(name, value, row["step"])

    def sync(self) -> None:
        self._board.flush()

    def close(self) -> None:
        self._board.close()
