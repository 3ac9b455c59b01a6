"""What the commands make of their arguments before any flag is parsed."""

import subprocess
import sys

import pytest

from deepsearch_jax.runtime import RunSettings
from experiments import command_line


@pytest.fixture
def parsed(monkeypatch):
    """Parses arguments as a command does; gives those that the flags see, and sys.argv."""
    seen = []
    monkeypatch.setattr(command_line.flags, "FLAGS", lambda argv: seen.append(list(argv)) or argv)

    def parse(*arguments):
        monkeypatch.setattr(sys, "argv", ["run", *arguments])
        command_line.parse(RunSettings, ["run", *arguments])
        return seen[-1][1:], sys.argv[1:]

    return parse


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ("--config.task=reasoning_gym:countdown", "--config.task.name=reasoning_gym:countdown"),
        ("--config.task=my=task.py:Task", "--config.task.name=my=task.py:Task"),
        ("--config.task.name=math", "--config.task.name=math"),
        ("--config.task.options=a=1", "--config.task.options=a=1"),
        ("--workdir=--config.task=x", "--workdir=--config.task=x"),
    ],
)
def test_task_is_short_for_the_name_of_the_task(parsed, given, flag):
    assert parsed(given) == ([flag], [flag])  # the config flag reads sys.argv itself


def test_a_misspelt_setting_is_answered_with_the_nearest(parsed, capsys):
    with pytest.raises(SystemExit) as leaving:
        parsed("--config.task.option=1")
    assert leaving.value.code == 2
    assert "did you mean config.task.options?" in capsys.readouterr().err


END = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell begins with it ignored
from experiments.command_line import leave_with

def main():
    print("a line of the result", flush=True)
    {act}
    return 3

leave_with(main)
"""


@pytest.mark.parametrize(
    ("act", "status", "told"),
    [
        ("", 3, ""),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "error: stopped\n"),
        ("raise BrokenPipeError", 141, ""),
        ("os.close(1); os.open('/dev/full', os.O_WRONLY)\n    print('more')", 2,
         "error: the output cannot be written (No space left on device)\n"),
    ],
)  # fmt: skip
def test_commands_end_without_a_traceback(act, status, told):
    done = subprocess.run([sys.executable, "-c", END.format(act=act)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "a line of the result\n", told)
