"""A task that a policy from nothing solves now and then: the sum of the response's token ids must be even.

It gives searches, caches and updates something to work with within a second, which no real task does.
"""

from deepsearch_jax.data.problems import Problem
from deepsearch_jax.data.tokenizers import CharTokenizer
from deepsearch_jax.runtime.tasks import Verdict

TOKENIZER = CharTokenizer("0123456789", eos="$")


class ParityTask:
    """`num_problems` problems named p0, p1, ...; `solvable` says which of them can be right at all."""

    def __init__(self, num_problems: int = 12, solvable=lambda problem: True):
        self.train_problems = [Problem(key=i, id=f"p{i}", question=f"{i:02d}", answer="-") for i in range(num_problems)]
        self.eval_problems = [Problem(key=100 + i, id=f"e{i}", question=f"{i:02d}", answer="-") for i in range(4)]
        self.tokenizer = TOKENIZER
        self._solvable = solvable
        self.closed = False
        self.mixture = ()

    def prompt(self, problem):
        return TOKENIZER.encode(problem.question)

    def score(self, items):
        return [
            Verdict(float(self._solvable(problem) and sum(map(int, text or "1")) % 2 == 0), bool(text))
            for problem, text in items
        ]

    def statistics(self):
        return {"questions": 0}

    def warm_start(self, step):
        return None

    def close(self):
        self.closed = True
