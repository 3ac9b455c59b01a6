"""What a scorer says of one answer, and how a scorer is set up."""

import dataclasses
import enum


class Status(enum.Enum):
    CORRECT = "correct"
    INCORRECT = "incorrect"
    NO_ANSWER = "no_answer"  # no complete box, or nothing in it
    TIMEOUT = "timeout"  # the check overran its deadline; counts as wrong
    ERROR = "error"  # the check failed (out of memory, library error); counts as wrong


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Attributes:
    score: 1.0 if correct, else 0.0.
    status: why.
    answer: what was taken from the response, None if nothing; untrusted text, escape it before logging.
    seconds: wall time of the check, without waiting in the queue or for a worker to start.
    """

    score: float
    status: Status
    answer: str | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class VerifySettings:
    """Settings of a scorer (`make_scorer`)."""

    mode: str = "math"  # "math": symbolic equality; "boxed": the authors' string test, last 300 characters
    num_workers: int = 2  # processes for symbolic checks, started when the first is needed; each up to memory_mb
    deadline_s: float = 3.0  # seconds of wall time per symbolic check; then the worker is killed, the answer wrong
    memory_mb: int = 1024  # address space of a worker; a check that needs more ends as ERROR
    recycle_mb: int = 512  # a worker that holds more resident memory than this after a check is replaced

    def __post_init__(self) -> None:
        if self.mode not in ("math", "boxed"):
            raise ValueError(f"mode={self.mode!r} is no scorer; use 'math' or 'boxed'")
        if self.num_workers < 1:
            raise ValueError(f"num_workers={self.num_workers} must be at least 1; idle workers are not started")
        if not 0 < self.deadline_s < 3600:
            raise ValueError(f"deadline_s={self.deadline_s} must be a number of seconds between 0 and 3600")
        if self.memory_mb < 256:
            raise ValueError(f"memory_mb={self.memory_mb} cannot hold sympy; use 512 or more")
        if self.recycle_mb < 128:
            raise ValueError(f"recycle_mb={self.recycle_mb} would replace a worker after every check; use 256 or more")


@dataclasses.dataclass(frozen=True)
class ScorerStats:
    """Counts since the scorer was made."""

    cases: int = 0  # answers asked about
    symbolic: int = 0  # of these, sent to a worker
    timeouts: int = 0
    errors: int = 0
    restarts: int = 0  # workers replaced: after a timeout, a death, or too much memory
    refused: int = 0  # attempts inside a check to use files, network or processes or to evaluate text; refused
