"""Trains a policy: `python -m experiments.run --config=experiments/configs/NAME.py[:variant] --workdir=DIR`.

The same command continues a run that was stopped. SIGTERM (or one Ctrl-C) saves and leaves with status 0, or that of
--stopped_status.
"""

from experiments.large_pages import begin_again_with_large_pages

if __name__ == "__main__":
    begin_again_with_large_pages()  # before the imports, which take seconds

import functools
import os
import sys
import traceback

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from deepsearch_jax.config import from_config
from deepsearch_jax.runtime import (
    AlarmStop,
    CheckpointError,
    RunSettings,
    TooManySkipped,
    WorkdirError,
    connect,
    run,
    tells_of_lost_process,
)
from experiments.command_line import complain, parse

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Python file with get_config(); a variant follows a colon.", lock_config=True
)
COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0, where several processes share a run.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Processes of the run; with --coordinator.")
PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Number of this process, from 0; with --coordinator.")
STOPPED_STATUS = flags.DEFINE_integer(
    "stopped_status", 0, "Exit status of a run that was stopped before its end and saved; for schedulers that start "
    "again what did not end well.", lower_bound=0, upper_bound=255,
)  # fmt: skip
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: config, metrics, checkpoints, curves.")
# What a user can mend; a line says how.
_MISTAKES = (ValueError, OSError, AlarmStop, CheckpointError, TooManySkipped, WorkdirError)


def main(argv: list[str]) -> int:
    if not any(argument.startswith("--verbosity") for argument in sys.argv):
        logging.set_verbosity(logging.WARNING)  # the libraries tell a lot at the usual level
    if len(argv) > 1:
        return complain(f"unknown argument {argv[1]!r}; settings are given as --config.NAME=VALUE")
    if not WORKDIR.value:
        return complain("--workdir is empty; name the directory of the run")
    try:
        connect(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        config = CONFIG.value.to_dict()
        is_finished = run(from_config(RunSettings, config), config, str(WORKDIR.value))
    except Exception as error:
        return _leave(_status_of(error))
    return 0 if is_finished else STOPPED_STATUS.value


def _status_of(error: Exception) -> int:
    """Tells what ended the run: a line where a user can mend it. Raises: any other error of a process alone."""
    logging.info("the error came from here", exc_info=error)  # shown with --verbosity=0
    if tells_of_lost_process(error):
        text = str(error).splitlines()[0]
        return complain(f"another process of this run has ended or cannot be reached ({text}); start all of them again "
                         "with the same commands to go on from the last checkpoint")  # fmt: skip
    if isinstance(error, _MISTAKES):
        return complain(str(error))
    if jax.process_count() == 1:
        raise error
    traceback.print_exception(error)
    return 1


def _leave(status: int) -> int:
    """Ends a process of several at once: the usual way out waits for the others, who may be gone."""
    if status and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=functools.partial(parse, RunSettings))
