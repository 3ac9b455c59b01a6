"""Rows to Weights & Biases from a thread of its own: whatever W&B does or lacks, the run goes on at its pace."""

import importlib
import json
import netrc
import os
import pathlib
import queue
import secrets
import threading
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deepsearch_jax.runtime.loggers import LoggerSettings, scalars

_FILE = "wandb.json"
_WAITING_ROWS = 1000  # a logger that is further behind takes no more; the next start sends the rest
_CONNECT_S = 30.0
_FINISH_S = 20.0
_END = -1


class WandbLogger:
    """One W&B run for all starts of a run: its id, and how many rows it has, are kept in WORKDIR/wandb.json.

    Row number i is logged as W&B's step i. Rows that W&B has and that a resumed run writes again are not sent again
    (W&B takes nothing for a step that is past); rows that it lacks are sent from metrics.jsonl. Nothing here raises or
    waits but `close`, which waits for _FINISH_S at most.
    """

    def __init__(
        self, settings: LoggerSettings, workdir: pathlib.Path, name: str, kept: Sequence[dict[str, Any]],
        config: dict[str, Any], note: Callable[[str], None],
    ):  # fmt: skip
        self._settings, self._workdir, self._name, self._config, self._note = settings, workdir, name, config, note
        self._id, self._num_sent = _read_record(workdir / _FILE)
        self._queue: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        self._is_closed_to_rows = self._is_over = False
        self._room = _WAITING_ROWS + len(kept)
        for index, row in enumerate(kept):
            self._queue.put((index, row))
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def write(self, index: int, row: dict[str, Any]) -> None:
        if self._is_closed_to_rows:
            return
        if self._queue.qsize() > self._room:
            self._give_up("W&B is too far behind")
            return
        self._queue.put((index, row))

    def sync(self) -> None:
        """Rows are on disk in metrics.jsonl; W&B gets what it lacks at the next start."""

    def close(self) -> None:
        self._queue.put((_END, {}))
        self._thread.join(_FINISH_S)
        if self._thread.is_alive():
            self._is_closed_to_rows = self._is_over = True
            self._note(f"W&B has not taken all rows in {_FINISH_S:.0f}s; the next start sends what it lacks")

    def _tell(self, text: str) -> None:
        """Tells the user, unless the run has ended without this thread."""
        if not self._is_over:
            self._note(text)

    def _give_up(self, why: str) -> None:
        if not self._is_closed_to_rows:
            self._is_closed_to_rows = True
            self._note(f"{why}; metrics.jsonl has every row, and the next start sends what W&B lacks")

    def _work(self) -> None:
        try:
            run = self._start()
            if run is None:
                return
            while (item := self._queue.get())[0] != _END:
                self._send(run, *item)
            run.finish()
        except Exception as error:  # another program's faults must not end the run
            self._give_up(f"W&B failed ({_first_line(error)})")

    def _send(self, run: Any, index: int, row: dict[str, Any]) -> None:
        if index < self._num_sent:
            return
        run.log({**dict(scalars(row)), "step": row["step"]}, step=index)
        self._num_sent = index + 1
        _write_record(self._workdir / _FILE, self._id, self._num_sent)

    def _start(self) -> Any:
        try:
            wandb = importlib.import_module("wandb")
        except ImportError:
            self._give_up("wandb is not installed (pip install -e '.[wandb]')")
            return None
        is_offline = self._settings.wandb_mode == "offline"
        mode, why = ("offline", "wandb_mode=offline") if is_offline else _mode_of(os.environ)
        if mode == "disabled":
            self._give_up(why)
            return None
        later = f"`wandb sync {self._workdir / 'wandb'}/*` sends the rows later"
        if mode == "offline":
            self._tell(f"W&B is offline: {why}; {later}")
        try:
            run = self._init(wandb, mode)
        except Exception as error:
            if mode == "offline":
                raise
            self._tell(f"W&B cannot be reached ({_first_line(error)}); {later}")
            wandb.teardown()  # what is left of the attempt holds the id
            run = self._init(wandb, "offline")
        for kind in ("warm_start", "filter", "train", "eval"):
            run.define_metric(f"{kind}/*", step_metric="step")
        return run

    def _init(self, wandb: Any, mode: str) -> Any:
        # console="off": W&B must not take over the terminal, which the panel draws on.
        options = wandb.Settings(console="off", silent=True, init_timeout=_CONNECT_S)
        return wandb.init(
            project=self._settings.wandb_project, name=self._name, id=self._id, resume="allow", mode=mode,
            dir=str(self._workdir), config=self._config, settings=options,
        )  # fmt: skip


def _mode_of(environment: Mapping[str, str]) -> tuple[str, str]:
    """(mode, why): what WANDB_MODE forbids; else online if there is a key, since W&B would ask for one and wait."""
    asked = environment.get("WANDB_MODE", "")
    if asked in ("disabled", "offline", "dryrun"):
        return ("disabled" if asked == "disabled" else "offline"), f"WANDB_MODE={asked}"
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return "online", ""
    host = urllib.parse.urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        found = netrc.netrc(environment.get("NETRC") or os.path.expanduser("~/.netrc")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        found = None
    return ("online", "") if found else ("offline", "there is no key (`wandb login`)")


def _read_record(path: pathlib.Path) -> tuple[str, int]:
    """Id of the W&B run and the number of rows it has; a new id and 0 for a new run."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return str(record["id"]), int(record["num_rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return secrets.token_hex(8), 0


def _write_record(path: pathlib.Path, run_id: str, num_rows: int) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"id": run_id, "num_rows": num_rows}) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
