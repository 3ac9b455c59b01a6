"""A scorer without processes, for the conformance suite: what another task would plug in."""

import time
from concurrent.futures import Future

from deepsearch_jax.verify import ScorerStats, Status, Verdict


class LastWordScorer:
    """The answer is the last boxed word; correct if it is the reference, letter by letter."""

    def __init__(self):
        self._cases = 0
        self._is_closed = False

    @property
    def stats(self):
        return ScorerStats(cases=self._cases)

    def submit(self, response_text, ground_truth):
        if self._is_closed:
            raise RuntimeError("closed")
        if not isinstance(response_text, str) or not isinstance(ground_truth, str):
            raise TypeError("text wanted")
        begin = time.perf_counter()
        self._cases += 1
        head, found, tail = response_text.rpartition("\\boxed{")
        answer = tail.partition("}")[0] if found and "}" in tail else None
        status = Status.NO_ANSWER if answer is None else Status.INCORRECT
        if answer and answer == ground_truth:
            status = Status.CORRECT
        future = Future()
        future.set_result(Verdict(float(status is Status.CORRECT), status, answer, time.perf_counter() - begin))
        return future

    def score(self, cases):
        return [future.result() for future in [self.submit(*case) for case in cases]]

    def close(self):
        self._is_closed = True
