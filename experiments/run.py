"""Trains a policy: `python -m experiments.run --config=experiments/configs/NAME.py[:variant] --workdir=DIR`.

The same command continues a run that was stopped. SIGTERM (or one Ctrl-C) saves and leaves with status 0.
"""

import difflib
import os
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from deepsearch_jax.config import from_config, setting_names
from deepsearch_jax.runtime import CheckpointError, RunSettings, TooManySkipped, connect, run

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Python file with get_config(); a variant follows a colon.", lock_config=True
)
COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0, where several processes share a run.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Processes of the run; with --coordinator.")
PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Number of this process, from 0; with --coordinator.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: config, metrics, checkpoints, curves.")


def main(argv: list[str]) -> int:
    if not any(argument.startswith("--verbosity") for argument in sys.argv):
        logging.set_verbosity(logging.WARNING)  # the libraries tell a lot at the usual level
    if len(argv) > 1:
        return _complain(f"unknown argument {argv[1]!r}; settings are given as --config.NAME=VALUE")
    if not WORKDIR.value:
        return _complain("--workdir is empty; name the directory of the run")
    try:
        connect(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        config = CONFIG.value.to_dict()
        run(from_config(RunSettings, config), config, str(WORKDIR.value))
    except (ValueError, OSError, CheckpointError, TooManySkipped) as error:
        logging.info("the error came from here", exc_info=True)  # shown with --verbosity=0
        return _leave(_complain(str(error)))
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        logging.info("the error came from here", exc_info=True)
        text = str(error).splitlines()[0]
        return _leave(_complain(f"another process of this run has ended or cannot be reached ({text}); start all of "
                                "them again with the same commands to go on from the last checkpoint"))  # fmt: skip
    return 0


def _leave(status: int) -> int:
    """Ends a process of several at once: the usual way out waits for the others, who may be gone."""
    if status and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; a misspelt setting is answered with the nearest one, without a traceback."""
    names = setting_names(RunSettings)
    for argument in argv[1:]:
        name = argument.removeprefix("--").split("=")[0].removeprefix("config.")
        if argument.startswith("--config.") and name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean config.{nearest[0]}?" if nearest else "see the settings classes in the README"
            sys.exit(_complain(f"config.{name} is not a setting; {hint}"))
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        # What get_config raised comes as the text of a whole traceback; its last line is what the user needs.
        lines = str(error).strip().splitlines()
        sys.exit(_complain(lines[-1].strip() if "Traceback" in str(error) else " ".join(lines)))


def _complain(text: str) -> int:
    print(f"error: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)
