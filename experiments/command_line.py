"""What the commands share: settings on the command line, and mistakes answered in one line."""

import difflib
import re
import sys

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


def complain(text: str) -> int:
    """Prints the mistake; returns the exit status. Further lines of the text are indented: none can pass for ours."""
    print("error: " + "\n  ".join(printable(line) for line in text.split("\n")), file=sys.stderr)
    return 2
