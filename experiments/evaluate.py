"""Evaluates a policy: `python -m experiments.evaluate --config=experiments/configs/evaluate.py --workdir=DIR`.

The same command continues an evaluation that was stopped. SIGTERM (or one Ctrl-C) leaves with status 0.
"""

from experiments.large_pages import begin_again_with_large_pages

if __name__ == "__main__":
    begin_again_with_large_pages()  # before the imports, which take seconds

import functools
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from deepsearch_jax.config import from_config
from deepsearch_jax.runtime import BenchmarkSettings, evaluate_benchmarks
from experiments.command_line import complain, parse

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Python file with get_config(); a variant follows a colon.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the evaluation: config, samples, results.")


def main(argv: list[str]) -> int:
    if not any(argument.startswith("--verbosity") for argument in sys.argv):
        logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        return complain(f"unknown argument {argv[1]!r}; settings are given as --config.NAME=VALUE")
    if not WORKDIR.value:
        return complain("--workdir is empty; name the directory of the evaluation")
    try:
        config = CONFIG.value.to_dict()
        evaluate_benchmarks(from_config(BenchmarkSettings, config), config, str(WORKDIR.value))
    except (ValueError, OSError) as error:
        logging.info("the error came from here", exc_info=True)  # shown with --verbosity=0
        return complain(str(error))
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=functools.partial(parse, BenchmarkSettings))
