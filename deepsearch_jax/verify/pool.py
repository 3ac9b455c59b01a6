"""The scorer: easy answers are decided in the caller's thread, the others by worker processes with a hard deadline."""

import atexit
import collections
import dataclasses
import queue
import threading
import time
import weakref
from collections.abc import Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from deepsearch_jax.verify.boxed import WINDOW_CHARS, last_box_content, score_boxed
from deepsearch_jax.verify.extract import last_complete_box
from deepsearch_jax.verify.judge import judge
from deepsearch_jax.verify.process import Overrun, Reply, WorkerDied, WorkerProcess
from deepsearch_jax.verify.verdict import ScorerStats, Status, Verdict, VerifySettings


class Scorer(Protocol):
    """What the search needs of a verifier; another task plugs in by providing these four."""

    @property
    def stats(self) -> ScorerStats: ...

    def submit(self, response_text: str, ground_truth: str) -> "Future[Verdict]": ...

    def score(self, cases: Iterable[tuple[str, str]]) -> list[Verdict]: ...

    def close(self) -> None: ...


class WorkersUnavailable(OSError):
    """Workers are needed and none could ever be started; a run goes no further, since every such answer would fail."""


class _Task(NamedTuple):
    answer: str
    ground_truth: str
    seconds: float  # already spent in the caller's thread
    future: "Future[Verdict]"


_open_pools: "weakref.WeakSet[VerifierPool]" = weakref.WeakSet()


class VerifierPool:
    """Scores responses against references; thread-safe; results come in the order asked and do not depend on it.

    Workers are started by the first answer that needs one. `close`, leaving the `with` block, and the end of the
    interpreter end them; they also end by themselves if this process is killed. Questions still open at `close` get
    a cancelled future. If none of them ever starts, checks end with `WorkersUnavailable`.
    """

    def __init__(
        self,
        num_workers: int = VerifySettings.num_workers,
        deadline_s: float = VerifySettings.deadline_s,
        *,
        mode: str = VerifySettings.mode,
        memory_mb: int = VerifySettings.memory_mb,
        recycle_mb: int = VerifySettings.recycle_mb,
    ):
        self.settings = VerifySettings(mode, num_workers, deadline_s, memory_mb, recycle_mb)
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stats = ScorerStats()
        self._events: collections.Counter[str] = collections.Counter()
        self._threads: list[threading.Thread] = []
        self._workers: dict[int, WorkerProcess] = {}
        self._num_waiting = 0  # tasks queued or being worked on
        self._has_started = False  # a worker, ever
        self._is_closed = False
        _open_pools.add(self)

    # Asking ----------------------------------------------------------------------------------------------------------
    def submit(self, response_text: str, ground_truth: str) -> "Future[Verdict]":
        """A future of the verdict on one response; already done if no symbolic check is needed.

        The future itself raises WorkersUnavailable if a check is needed and no worker has ever started.

        Raises:
          TypeError: an argument is not text.
          RuntimeError: the pool is closed.
        """
        for name, text in (("response_text", response_text), ("ground_truth", ground_truth)):
            if not isinstance(text, str):
                raise TypeError(f"{name} is {type(text).__name__}, not str; pass the decoded text")
        future: Future[Verdict] = Future()
        begin = time.perf_counter()
        answer, status = self._decide_here(response_text, ground_truth)
        seconds = time.perf_counter() - begin
        with self._lock:
            if self._is_closed:
                raise RuntimeError("this VerifierPool is closed; make a new one")
            self._count(cases=1, symbolic=status is None, errors=status is Status.ERROR)
            if status is None:
                assert answer is not None
                self._num_waiting += 1
                if len(self._threads) < min(self._num_waiting, self.settings.num_workers):
                    self._start_thread()
                self._tasks.put(_Task(answer, ground_truth, seconds, future))
        if status is not None:
            future.set_result(_verdict(status, answer, seconds))
        return future

    def score(self, cases: Iterable[tuple[str, str]]) -> list[Verdict]:
        """Verdicts on (response_text, ground_truth) pairs, in their order."""
        return [future.result() for future in [self.submit(response, gold) for response, gold in cases]]

    @property
    def stats(self) -> ScorerStats:
        with self._lock:
            return self._stats

    @property
    def events(self) -> dict[str, int]:
        """Audit events of files, code and processes inside the workers while they checked answers, by name; those
        refused (`stats.refused`) and the imports of modules that a library makes late."""
        with self._lock:
            return dict(self._events)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers alive now."""
        with self._lock:
            return [worker.pid for worker in self._workers.values()]

    def _decide_here(self, response_text: str, ground_truth: str) -> tuple[str | None, Status | None]:
        """The answer found and its status; status None asks for a worker."""
        if self.settings.mode == "boxed":
            content = last_box_content(response_text[-WINDOW_CHARS:])
            is_correct = score_boxed(response_text, ground_truth).acc
            missing = Status.NO_ANSWER if content is None else Status.INCORRECT
            return content, Status.CORRECT if is_correct else missing
        answer = last_complete_box(response_text)
        if answer is None or not answer.strip():
            return answer, Status.NO_ANSWER
        try:
            equal = judge(answer, ground_truth)
        except Exception:  # the border to untrusted text: a failing check is a result and must not end a run
            return answer, Status.ERROR
        return answer, None if equal is None else Status.CORRECT if equal else Status.INCORRECT

    # Dispatcher threads, one for each worker -------------------------------------------------------------------------
    def _start_thread(self) -> None:
        slot = len(self._threads)
        thread = threading.Thread(target=self._serve, args=(slot,), name=f"verifier-{slot}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self, slot: int) -> None:
        while (task := self._tasks.get()) is not None:
            if task.future.set_running_or_notify_cancel():
                self._answer(slot, task)
            with self._lock:
                self._num_waiting -= 1
        self._drop(slot)

    def _answer(self, slot: int, task: _Task) -> None:
        """Ends the task's future, whatever happens: a caller waits for it, and this thread serves the next ones."""
        try:
            verdict = self._ask(slot, task)
        except WorkersUnavailable as error:
            task.future.set_exception(error)
            return
        except Exception:  # nothing known raises here; a mistake of ours must cost one answer, not the run
            self._drop(slot, restarts=1)
            with self._lock:
                self._count(errors=1)
            verdict = _verdict(Status.ERROR, task.answer, task.seconds)
        if verdict is None:
            task.future.set_exception(RuntimeError("the VerifierPool was closed during this check"))
        else:
            task.future.set_result(verdict)

    def _ask(self, slot: int, task: _Task) -> Verdict | None:
        """The verdict of a worker; None if the pool was closed meanwhile."""
        seconds, status, score = task.seconds, Status.ERROR, 0.0
        # A worker that dies may have been killed from outside: one more try on a fresh one.
        for is_last in (False, True):
            try:
                worker = self._worker(slot)
            except (WorkerDied, OSError) as error:
                self._drop(slot, restarts=1)
                if self._is_closed:
                    return None
                if is_last and not self._has_started:
                    raise self._unavailable(error) from error
                continue
            begin = time.perf_counter()
            try:
                reply = worker.ask(task.answer, task.ground_truth, self.settings.deadline_s)
            except Overrun:
                self._drop(slot, restarts=1)
                status = Status.TIMEOUT
                break
            except (WorkerDied, OSError):
                self._drop(slot, restarts=1)
                if self._is_closed:
                    return None
                continue
            finally:
                seconds += time.perf_counter() - begin
            if reply.equal is not None:
                status = Status.CORRECT if reply.equal else Status.INCORRECT
                score = float(reply.equal) if reply.score is None else reply.score
            self._note(reply)
            # An error may have left a library in a bad state, and memory once taken rarely comes back.
            if reply.equal is None or reply.memory_mb > self.settings.recycle_mb:
                self._drop(slot, restarts=1)
            break
        if self._is_closed and status is Status.ERROR:
            return None
        with self._lock:
            self._count(timeouts=status is Status.TIMEOUT, errors=status is Status.ERROR)
        return Verdict(score, status, task.answer, seconds)

    def _unavailable(self, error: Exception) -> "WorkersUnavailable":
        return WorkersUnavailable(
            f"no verifier worker could be started ({error or type(error).__name__}), so they cannot check answers; "
            f"look at the limits of memory and processes here: each worker may take memory_mb={self.settings.memory_mb}"
        )

    def _start_worker(self) -> WorkerProcess:
        return WorkerProcess(self.settings.memory_mb)

    def _note(self, reply: Reply) -> None:
        with self._lock:
            self._count(refused=reply.refused)
            self._events.update(reply.events)

    def _worker(self, slot: int) -> WorkerProcess:
        worker = self._workers.get(slot)
        if worker is None:
            worker = self._start_worker()
            with self._lock:
                self._has_started = True
                self._workers[slot] = worker
                is_closed = self._is_closed
            if is_closed:
                raise WorkerDied("the pool is closed")
        return worker

    def _drop(self, slot: int, restarts: int = 0) -> None:
        with self._lock:
            worker = self._workers.pop(slot, None)
            self._count(restarts=restarts)
        if worker is not None:
            worker.kill()

    def _count(self, **more: int) -> None:
        """Adds to the counters; the lock is held."""
        new = {name: getattr(self._stats, name) + int(count) for name, count in more.items()}
        self._stats = dataclasses.replace(self._stats, **new)

    # Ending ----------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Ends all workers at once and waits for them; calling it again does nothing."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            workers, threads = list(self._workers.values()), list(self._threads)
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                break
            if task is not None:
                task.future.cancel()
        for _ in threads:
            self._tasks.put(None)
        for worker in workers:
            worker.interrupt()
        for thread in threads:
            thread.join(timeout=10.0)
        _open_pools.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _verdict(status: Status, answer: str | None, seconds: float) -> Verdict:
    return Verdict(float(status is Status.CORRECT), status, answer, seconds)


@atexit.register
def _close_open_pools() -> None:
    for pool in list(_open_pools):
        pool.close()


def make_scorer(settings: VerifySettings) -> VerifierPool:
    """The scorer that `settings` describe."""
    return VerifierPool(
        settings.num_workers,
        settings.deadline_s,
        mode=settings.mode,
        memory_mb=settings.memory_mb,
        recycle_mb=settings.recycle_mb,
    )


def score_math(response_text: str, ground_truth: str, settings: VerifySettings | None = None) -> Verdict:
    """The verdict of mode `math` on one response. For many, keep a pool: this one starts a worker when it needs one."""
    with make_scorer(settings or VerifySettings(num_workers=1)) as pool:
        return pool.score([(response_text, ground_truth)])[0]
