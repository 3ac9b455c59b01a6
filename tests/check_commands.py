"""Parses command lines without running them: `python -m tests.check_commands < LISTS.json`.

Reads a JSON list of [module, argument, ...]; prints a JSON list with what is wrong with each, "" for nothing. Modules
of this project are started as `python -m` does, up to where their flags are parsed; a config is loaded and turned into
settings, so that every setting exists and takes its value. Of other modules only the existence is looked at.
"""

import argparse
import functools
import importlib.util
import json
import os
import pathlib
import runpy
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

import deepsearch_jax.runtime  # noqa: F401  (loaded once here, what every command needs; each is parsed in a fork)
from deepsearch_jax.config import from_config

OURS = ("deepsearch_jax", "experiments", "benchmarks", "tests")
LIMIT_S = 60  # a module that parses nothing would run on


class Parsed(BaseException):
    """Raised where the arguments are through; not an Exception, so that no command catches it."""


def _parse_absl(main: Callable, argv: Sequence[str] | None = None, flags_parser: Callable | None = None) -> None:
    del main
    (flags_parser or flags.FLAGS)(list(argv or sys.argv))
    if isinstance(flags_parser, functools.partial) and "config" in flags.FLAGS:
        config = flags.FLAGS["config"].value.to_dict()
        if "architecture" in flags.FLAGS and flags.FLAGS["architecture"].value:
            config["model"]["path"] = "(architecture)"  # experiments.plan plans without a model's files
        from_config(flags_parser.args[0], config)
    raise Parsed


_parse_args = argparse.ArgumentParser.parse_args


def _parse_argparse(self: argparse.ArgumentParser, *arguments: Any, **options: Any) -> None:
    _parse_args(self, *arguments, **options)
    raise Parsed


def _find(module: str) -> pathlib.Path | None:
    """The file that `python -m module` starts."""
    try:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{module}.__main__")
    except ModuleNotFoundError:
        return None
    return None if spec is None or spec.origin is None else pathlib.Path(spec.origin)


def parse(module: str, arguments: Sequence[str]) -> str:
    """What is wrong with a command, "" for nothing; leaves this process with flags of the module."""
    path = _find(module)
    if path is None:
        return f"there is no module {module}"
    if module.split(".")[0] not in OURS:
        return ""
    text = path.read_text("utf-8")
    if "argparse" not in text and "app.run" not in text:
        return f"{module} takes no arguments" if arguments else ""
    app.run, argparse.ArgumentParser.parse_args = _parse_absl, _parse_argparse  # type: ignore[assignment,method-assign]
    sys.argv = [str(path), *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    except Parsed:
        return ""
    except ValueError as error:
        return str(error)
    return f"{module} ended without looking at its arguments"


def check(command: Sequence[str]) -> str:
    """`parse` in a fork."""
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            signal.alarm(LIMIT_S)
            status = 1
            try:
                complaint = parse(command[0], command[1:])
                print(complaint, flush=True)
                status = 0 if not complaint else 1
            except SystemExit as error:
                print("" if error.code is None else error.code, flush=True)
            except BaseException as error:  # a child must not go on as its parent would
                print(f"{type(error).__name__}: {error}", flush=True)
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        text = output.read().strip()
    return "" if status == 0 else text or f"ended with status {status}"


def main() -> None:
    warnings.simplefilter("ignore")  # jax warns of forks; none of them computes
    print(json.dumps([check(command) for command in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
