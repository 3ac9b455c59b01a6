"""reasoning-gym datasets from outside: problems drawn in a process of their own, answers scored in worker processes."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from deepsearch_jax.verify.extract import last_complete_box
from deepsearch_jax.verify.pool import VerifierPool
from deepsearch_jax.verify.process import WorkerProcess, worker_command, worker_environment
from deepsearch_jax.verify.verdict import Status

ANSWERS = ("tag", "box", "all")
MAX_ANSWER = 20_000  # characters; a longer answer is none
_BEGIN, _END = "<answer>", "</answer>"


class GymItem(NamedTuple):
    """One problem.

    Attributes:
      question, answer: its texts; the answer is None where the dataset knows none.
      entry: the library's record of it as JSON; what `GymPool` takes as the reference.
    """

    question: str
    answer: str | None
    entry: str


def draw_items(dataset: str, options: dict[str, Any], parts: Sequence[tuple[int, int]]) -> list[list[GymItem]]:
    """Problems of a dataset by (seed, count): as many distinct ones of each part as can be found, in a fixed order.

    No question of the first part occurs in another one.
    Raises:
      ValueError: the library is missing, has no such dataset, or the dataset does not take the options.
    """
    request = json.dumps({"dataset": dataset, "options": options, "parts": [list(part) for part in parts]})
    done = subprocess.run(
        [sys.executable, "-P", "-m", "deepsearch_jax.verify.gym_problems"],
        input=request, capture_output=True, text=True, env=worker_environment(), check=False,
    )  # fmt: skip
    found: list[list[GymItem]] = [[] for _ in parts]
    for line in done.stdout.splitlines():
        record = json.loads(line)
        if record.get("is_missing"):
            raise ValueError(
                f"the task reasoning_gym:{dataset} needs the package reasoning-gym ({record['error']}); install it "
                "with `pip install reasoning-gym`, or together with this project: pip install -e '.[eval]'"
            )
        if "error" in record:
            raise ValueError(record["error"])
        found[record["part"]].append(GymItem(record["question"], record["answer"], record["entry"]))
    if done.returncode:
        raise ValueError(f"drawing problems of {dataset!r} failed: {done.stderr.strip()[-500:]}")
    return found


def find_answer(response: str, how: str) -> str | None:
    """The part of a response that is the answer: what the last <answer> tag or box holds, or "all" of it."""
    if how == "all":
        answer: str | None = response
    elif how == "box":
        answer = last_complete_box(response)
    else:
        answer = _last_tag(response)
    answer = answer.strip() if answer is not None else ""
    return answer if answer and len(answer) <= MAX_ANSWER else None


def _last_tag(response: str) -> str | None:
    """What the last complete <answer> tag holds; one pass, however many tags a response begins and never ends."""
    found, place = None, 0
    while (begin := response.find(_BEGIN, place)) >= 0 and (end := response.find(_END, begin)) >= 0:
        found, place = response[begin + len(_BEGIN) : end], end + len(_END)
    return found


class GymPool(VerifierPool):
    """Scores answers in [0, 1] by the dataset's own `score_answer`; the reference is GymItem.entry."""

    def __init__(
        self, dataset: str, options: dict[str, Any], example: GymItem, how: str, *,
        num_workers: int, deadline_s: float, memory_mb: int,
    ):  # fmt: skip
        """`example` warms a worker up; `how` is one of ANSWERS and says where in a response the answer stands."""
        super().__init__(num_workers, deadline_s, memory_mb=memory_mb, recycle_mb=memory_mb)
        self._how = how
        self._setup = json.dumps(
            {"dataset": dataset, "options": options, "answer": example.answer or "0", "entry": example.entry}
        )

    def _decide_here(self, response_text: str, ground_truth: str) -> tuple[str | None, Status | None]:
        answer = find_answer(response_text, self._how)
        return answer, Status.NO_ANSWER if answer is None else None

    def _start_worker(self) -> WorkerProcess:
        return WorkerProcess(self.settings.memory_mb, worker_command("deepsearch_jax.verify.gym_worker"), self._setup)
