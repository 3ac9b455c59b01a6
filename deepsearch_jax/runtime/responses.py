"""What rollouts give to learning: responses on the host, in groups by problem, and counts of the searches."""

import dataclasses

import numpy as np

from deepsearch_jax.data.problems import Problem
from deepsearch_jax.runtime.slots import SlotStatistics
from deepsearch_jax.runtime.tasks import CORRECT_FROM, Verdict
from deepsearch_jax.runtime.watch import WatchedTree
from deepsearch_jax.types import Outcome


@dataclasses.dataclass
class Response:
    """One trajectory on the host.

    Attributes:
      tokens: [T] int32 sampled tokens, end of sequence included.
      segment_lengths: [D] int32 tokens of each node on the path; a direct rollout is one node.
      node_values: [D] float32 value of each node on the path; the last one is the reward.
      log_probs: [T] float32 under the policy that sampled (raw); None where they are not known (cached paths).
      reward: final score of the trajectory (Eq. 4).
      outcome: the verdict.
      text: the decoded response.
      origin: "search", "direct" or "cache".
      sampling_log_probs: [T] float32 under the distribution sampled from; of direct rollouts alone, None elsewhere.
    """

    tokens: np.ndarray
    segment_lengths: np.ndarray
    node_values: np.ndarray
    log_probs: np.ndarray | None
    reward: float
    outcome: Outcome
    text: str
    origin: str
    sampling_log_probs: np.ndarray | None = None


@dataclasses.dataclass
class Group:
    """The responses to one problem that are compared with each other.

    Attributes:
      terminal_rewards: [X] float32 rewards of all verified terminals of the problem's tree, credited or not; None for
        groups that are no tree, where they are the rewards of the responses.
      terminal_nll: [X] float32 mean negative log-prob per token of their whole trajectories (nats).
      tree: the whole tree, where it was watched; its credited terminals are the responses in order.
    """

    problem: Problem
    prompt: list[int]
    responses: list[Response]
    terminal_rewards: np.ndarray | None = None
    terminal_nll: np.ndarray | None = None
    tree: WatchedTree | None = None

    @property
    def num_correct(self) -> int:
        return sum(response.outcome == Outcome.CORRECT for response in self.responses)


@dataclasses.dataclass
class SearchStatistics:
    """Sums over the searches of a step; all but `slots` follow from the problems alone."""

    trees: int = 0
    solved: int = 0
    expansions: int = 0
    nodes: int = 0
    tokens: int = 0
    depth: int = 0
    out_of_budget: int = 0
    exhausted: int = 0
    slots: SlotStatistics = dataclasses.field(default_factory=SlotStatistics)  # how the slots and pages were used


def outcome_of(verdict: Verdict, is_cut_off: bool) -> Outcome:
    """A response that ended by itself without an answer is wrong; only one that was cut off is incomplete."""
    if verdict.score >= CORRECT_FROM:
        return Outcome.CORRECT
    return Outcome.INCOMPLETE if is_cut_off and not verdict.is_answered else Outcome.INCORRECT
