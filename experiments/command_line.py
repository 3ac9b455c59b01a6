"""What the commands share: settings on the command line, mistakes answered in one line, and a quiet end."""

import difflib
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import flags

from deepsearch_jax.config import setting_names
from deepsearch_jax.runtime import printable

_TASK = re.compile(r"^(--?config\.task)(=.*|)$", re.DOTALL)


def parse(settings: type, argv: list[str]) -> list[str]:
    """Parses the flags; a misspelt setting is answered with the nearest one, without a traceback.

    Args:
      settings: the class whose settings the config holds.
    """
    names = setting_names(settings)
    # `--config.task=NAME` is short for `--config.task.name=NAME`. The config flag looks into sys.argv itself.
    for arguments in (argv, sys.argv):
        arguments[:] = [_TASK.sub(r"\1.name\2", argument) for argument in arguments]
    for argument in argv[1:]:
        name = argument.removeprefix("--").split("=")[0].removeprefix("config.")
        if argument.startswith("--config.") and name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean config.{nearest[0]}?" if nearest else "see the settings classes in the README"
            sys.exit(complain(f"config.{name} is not a setting; {hint}"))
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        # What get_config raised comes as the text of a whole traceback; its last line is what the user needs.
        lines = str(error).strip().splitlines()
        sys.exit(complain(lines[-1].strip() if "Traceback" in str(error) else " ".join(lines)))


def warn(text: str) -> None:
    """Prints what the user should know of a command that goes on."""
    print(f"warning: {printable(text)}", file=sys.stderr)


def complain(text: str, status: int = 2) -> int:
    """Prints the mistake; returns the exit status. Further lines of the text are indented: none can pass for ours."""
    print("error: " + "\n  ".join(printable(line) for line in text.split("\n")), file=sys.stderr)
    return status


def leave_with(main: Callable[[], int]) -> NoReturn:
    """Ends the process with the status of `main`.

    Ctrl-C, a reader that has gone (`| head`) and an output that takes no more (a full disk) end it without a traceback,
    with the status that a shell gives a command for the signal.
    """
    try:
        status = main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        status = complain("stopped", 128 + signal.SIGINT)
    except BrokenPipeError:
        status = _without_output(128 + signal.SIGPIPE)
    except OSError as error:  # of what was printed: commands answer those of their files themselves
        status = _without_output(complain(f"the output cannot be written ({error.strerror})"))
    sys.exit(status)


def _without_output(status: int) -> int:
    """The interpreter flushes once more at its end: into nothing, or that would be an error again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status
