"""Talks to a policy in the terminal: `python -m experiments.chat WORKDIR_OR_HF_DIR [--search]`.

`/reset` forgets the conversation, `/quit` or the end of the input leaves, Ctrl-C stops an answer. Input may be piped.
"""

import argparse
import dataclasses
import pathlib
import signal
import sys
from collections.abc import Iterator

from deepsearch_jax.runtime import (
    ChatSettings,
    Conversation,
    Interrupted,
    StopRequest,
    Talker,
    load_directory,
    load_saved,
    search_settings,
    visible,
)
from experiments.command_line import complain, leave_with, warn

QUIT, RESET = "/quit", "/reset"


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        is_run = (options.place / "checkpoints").is_dir()
        policy = load_saved(options.place, options.step, warn) if is_run else load_directory(options.place)
        longest = (
            policy.settings.search.max_response_length if policy.settings
            else min(ChatSettings.max_tokens, policy.model.max_position_embeddings // 2)
        )  # fmt: skip
        settings = ChatSettings(
            temperature=options.temperature, top_p=options.top_p,
            max_tokens=longest if options.max_tokens is None else options.max_tokens, max_prompt=options.max_prompt,
            seed=options.seed, trajectories=options.trajectories, system=options.system,
        )  # fmt: skip
        if options.search:
            settings.check_search()
        search = search_settings(policy, settings)
        talker = Talker(policy.model, policy.params, policy.tokenizer, settings, search)
        conversation = Conversation(policy.tokenizer, settings, policy.line_end)
    except (ValueError, OSError) as error:
        return complain(str(error))
    if _is_terminal():
        print(f"{policy.model.architecture}; {RESET} forgets the conversation, {QUIT} leaves, Ctrl-C stops an answer")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # or one bad byte takes the lines around it along
    for question in _questions():
        if question == RESET:
            conversation.reset()
            continue
        try:
            prompt = conversation.prompt(question, talker.prompt_limit)
        except ValueError as error:
            complain(str(error))
            continue
        response = _searched(talker, prompt) if options.search else _streamed(talker, prompt)
        if response:
            conversation.add(question, response)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.chat", description=__doc__.splitlines()[0])
    parser.add_argument("place", type=pathlib.Path, help="workdir of a run, or a Hugging Face directory")
    parser.add_argument("--search", action="store_true", help="answer by a tree instead of one sample")
    defaults = {field.name: field.default for field in dataclasses.fields(ChatSettings)}
    parser.add_argument("--trajectories", type=int, default=defaults["trajectories"], help="attempts of a search")
    parser.add_argument(
        "--temperature", type=float, default=defaults["temperature"],
        help="0 takes the likeliest token (not with --search)",
    )  # fmt: skip
    parser.add_argument("--top-p", type=float, default=defaults["top_p"], help="probability mass kept; 1 keeps all")
    parser.add_argument(
        "--max-tokens", type=int, help="of a response; default: as in training, or 1024 if the model has room"
    )
    parser.add_argument("--max-prompt", type=int, default=defaults["max_prompt"], help="tokens of a conversation")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--system", default="", help="system message")
    parser.add_argument("--step", default="", help="of a workdir: training step of a kept checkpoint, or 'best'")
    return parser


def _is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _questions() -> Iterator[str]:
    """Lines of the user, without empty ones, until /quit or the end of the input."""
    is_terminal = _is_terminal()
    while sys.stdin is not None:
        try:
            line = input("> ") if is_terminal else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not is_terminal and not line:
            return
        question = line.strip()
        if question == QUIT:
            return
        if question:
            yield question


class _CtrlC(StopRequest):
    """Ctrl-C ends an answer, SIGTERM everything."""

    signals = (signal.SIGINT,)


def _streamed(talker: Talker, prompt: list[int]) -> str:
    """Shows a response as it grows; what there is of it when it is stopped."""
    stop, response = _CtrlC(), ""
    stop.install()
    try:
        for piece in talker.stream(prompt, stop.check):
            response += piece
            print(visible(piece), end="", flush=True)
    except Interrupted:
        print(" [stopped]", end="")
    finally:
        stop.restore()
    print(flush=True)
    return response


def _searched(talker: Talker, prompt: list[int]) -> str:
    """Shows how a search goes on and the response it chose."""
    is_terminal, stop = sys.stderr.isatty(), _CtrlC()

    def show(text: str) -> None:
        if is_terminal:
            print(f"\r\x1b[2K{text[:200]}", end="", file=sys.stderr, flush=True)

    stop.install()
    try:
        found = talker.search(prompt, stop.check, show)
    except Interrupted:
        print("[stopped]", flush=True)
        return ""
    finally:
        stop.restore()
        if is_terminal:
            print(file=sys.stderr)
    print(visible(found.text), flush=True)
    chosen = "no attempt has an answer" if found.answer is None else (
        f"{visible(found.answer)}: the answer of {found.votes} of {found.attempts} attempts"
    )  # fmt: skip
    print(f"[{chosen}]", flush=True)
    return found.text


if __name__ == "__main__":
    leave_with(main)
