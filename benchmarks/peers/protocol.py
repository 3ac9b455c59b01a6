"""How benchmarks.decode talks to an engine in another virtual environment; the standard library only.

A worker prints one JSON line when it is ready and then answers every line on its standard input, a JSON object with
`prompts` (lists of token ids, all of one length), `new_tokens` and `seed`, by one JSON object with the `tokens`
generated and the processor and wall seconds of the whole generation and of its first part, the prompts. `exit` ends it.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import NamedTuple


class Clock(NamedTuple):
    """A moment in processor seconds of all threads of this process and in wall seconds."""

    cpu: float
    wall: float

    @classmethod
    def now(cls) -> "Clock":
        return cls(time.process_time(), time.perf_counter())


class Generation(NamedTuple):
    """What a generation took: start, end of the prompts, end, and how many tokens it made."""

    start: Clock
    prompt_end: Clock
    end: Clock
    num_tokens: int

    def seconds(self) -> dict[str, float]:
        return {
            "tokens": self.num_tokens,
            "cpu": self.end.cpu - self.start.cpu,
            "wall": self.end.wall - self.start.wall,
            "prompt_cpu": self.prompt_end.cpu - self.start.cpu,
            "prompt_wall": self.prompt_end.wall - self.start.wall,
        }


def serve(versions: dict[str, str], generate: Callable[[list[list[int]], int, int], Generation]) -> None:
    """Answers requests until standard input ends. What libraries print goes to standard error."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    print(json.dumps({"ready": True, **versions}), file=out, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        for line in sys.stdin:
            if line.strip() == "exit":
                return
            request = json.loads(line)
            result = generate(request["prompts"], request["new_tokens"], request["seed"])
            print(json.dumps(result.seconds()), file=out, flush=True)
