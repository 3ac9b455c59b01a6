"""Host side of the rollouts: batches problems into slots, asks the device to decode and the task for verdicts."""

import dataclasses
import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from deepsearch_jax.data.problems import Problem
from deepsearch_jax.decode import DecodeSettings
from deepsearch_jax.policy import ModelConfig
from deepsearch_jax.runtime import device
from deepsearch_jax.runtime.tasks import CORRECT_FROM, Task, Verdict
from deepsearch_jax.tree import SearchSettings, SearchStatus
from deepsearch_jax.types import Outcome

T = TypeVar("T")


class Purpose(enum.IntEnum):
    """Who samples; a counter in the sampling keys, so no two samplers share noise."""

    FILTER = 0
    SEARCH = 1
    DIRECT = 2
    EVALUATION = 3
    CACHE = 4
    EASY = 5


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """How responses are sampled.

    Attributes:
      num_slots: prompts (or trees) decoded together; a multiple of the number of devices.
      temperature: of the sampling distribution; 1 is the policy itself.
      top_k: most likely tokens kept; 0 keeps all.
      top_p: probability mass kept; 1 keeps all.
      unroll_layers: decode with the layers' weights apart: "yes", "no", or "auto", which is yes on CPU, where it is
        faster, and costs a second copy of the weights.
      prompt_multiple: prompts are padded to a multiple of this many tokens; each length compiles once.
      path_multiple: paths to expanded nodes are padded to a multiple of this many segments; each length compiles once.
        At or above search.max_depth there is one program for all depths.
    """

    num_slots: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    unroll_layers: str = "auto"
    prompt_multiple: int = 32
    path_multiple: int = 4

    def __post_init__(self) -> None:
        if self.unroll_layers not in ("auto", "yes", "no"):
            raise ValueError(f"unroll_layers={self.unroll_layers!r} must be 'auto', 'yes' or 'no'")
        for name in ("num_slots", "prompt_multiple", "path_multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def unrolls(self, backend: str) -> bool:
        """Whether a jax backend of that name decodes with unrolled layers."""
        return self.unroll_layers == "yes" or (self.unroll_layers == "auto" and backend == "cpu")


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
    """

    tokens: np.ndarray
    segment_lengths: np.ndarray
    node_values: np.ndarray
    log_probs: np.ndarray | None
    reward: float
    outcome: Outcome
    text: str
    origin: str


@dataclasses.dataclass
class Group:
    """The responses to one problem that are compared with each other.

    Attributes:
      terminal_rewards: [X] float32 rewards of all verified terminals of the problem's tree, credited or not; None for
        groups that are no tree, where they are the rewards of the responses.
    """

    problem: Problem
    prompt: list[int]
    responses: list[Response]
    terminal_rewards: np.ndarray | None = None

    @property
    def num_correct(self) -> int:
        return sum(response.outcome == Outcome.CORRECT for response in self.responses)


@dataclasses.dataclass
class SearchStatistics:
    """Sums over the searches of a step; all deterministic."""

    trees: int = 0
    solved: int = 0
    expansions: int = 0
    nodes: int = 0
    tokens: int = 0
    depth: int = 0
    out_of_budget: int = 0
    exhausted: int = 0


def bucket(length: int, multiple: int) -> int:
    """Smallest multiple * {1, 1.5, 2, 3, 4, 6, 8, 12, ...} (rounded up to `multiple`) that is at least `length`."""
    size = multiple
    while size < length:
        middle = -(-(size + size // 2) // multiple) * multiple
        size = middle if length <= middle else 2 * size
    return size


class Sampler:
    """Samples responses and searches trees with one policy architecture on one mesh."""

    def __init__(
        self, task: Task, model: ModelConfig, search: SearchSettings, rollout: RolloutSettings, *, run_key: jax.Array,
        mesh: Mesh | None, check_stop: Callable[[], None], advance: Callable[[float, str], None],
    ):  # fmt: skip
        """`check_stop` may raise between device calls; `advance(done, detail)` reports progress.

        Raises:
          ValueError: slots that the devices cannot share, or responses longer than the model's positions.
        """
        devices = 1 if mesh is None else mesh.size
        if rollout.num_slots % devices:
            raise ValueError(
                f"rollout.num_slots={rollout.num_slots} cannot be shared by {devices} devices; the next size that "
                f"fits is {-(-rollout.num_slots // devices) * devices}"
            )
        self.task, self.model, self.search_settings, self.rollout = task, model, search, rollout
        self.run_key, self._mesh = run_key, mesh
        self._check_stop, self._advance = check_stop, advance
        longest = max(len(task.prompt(problem)) for problem in (*task.train_problems, *task.eval_problems))
        self._longest_prompt = longest
        self.check_fits(search.max_response_length)
        self._sharding = None if mesh is None else NamedSharding(mesh, device.ROWS)
        self.generated_tokens = 0  # every token sampled so far, whatever for; the caller saves and restores it

    def check_fits(self, response_length: int) -> None:
        """Raises: ValueError if the longest prompt and such a response need more positions than the model has."""
        settings = self._decode_settings(1, response_length)
        dataclasses.replace(settings, max_prompt_length=self._longest_prompt, max_depth=1).check_fits(self.model)

    def direct(
        self, params: Any, problems: Sequence[Problem], num_samples: int, purpose: Purpose, counters: tuple[int, int],
        *, temperature: float | None = None, max_length: int | None = None,
    ) -> list[Group]:  # fmt: skip
        """`num_samples` whole responses to each problem."""
        decode = self._decode_settings(num_samples, max_length or self.search_settings.max_response_length, temperature)
        groups = []
        for chunk, prompts in self._batches(problems, purpose, counters):
            segments = jax.device_get(
                device.sample_direct(params, prompts, model=self.model, decode=decode, mesh=self._mesh)
            )
            responses = [[_cut(segments, row, k) for k in range(num_samples)] for row in range(len(chunk))]
            self.generated_tokens += int(segments.lengths[: len(chunk)].sum())
            flat = [tokens for row in responses for tokens, _, _ in row]
            texts = [self.task.tokenizer.decode(tokens.tolist()) for tokens in flat]
            verdicts = iter(
                self.task.score([(problem, texts[i * num_samples + k])
                                 for i, problem in enumerate(chunk) for k in range(num_samples)])
            )  # fmt: skip
            text = iter(texts)
            for problem, row in zip(chunk, responses, strict=True):
                group = Group(problem, self.task.prompt(problem), [])
                for tokens, log_probs, is_eos in row:
                    outcome = outcome_of(next(verdicts), is_cut_off=not is_eos)
                    reward = self.reward(outcome)
                    group.responses.append(
                        Response(
                            tokens=tokens, segment_lengths=np.array([len(tokens)], np.int32),
                            node_values=np.array([reward], np.float32), log_probs=log_probs, reward=reward,
                            outcome=outcome, text=next(text), origin="direct",
                        )
                    )  # fmt: skip
                groups.append(group)
            self._advance(len(groups), f"{self.generated_tokens} tokens")
        return groups

    def search(
        self, params: Any, problems: Sequence[Problem], counters: tuple[int, int]
    ) -> tuple[list[Group], SearchStatistics]:
        """One tree a problem; returns the credited trajectories of each tree."""
        statistics = SearchStatistics()
        groups: list[Group] = []
        for chunk, prompts in self._batches(problems, Purpose.SEARCH, counters):
            trees = self._search_batch(params, chunk, prompts, statistics, len(groups))
            found = jax.device_get(device.finished_trajectories(trees, search=self.search_settings))
            statuses, sizes, num_tokens, depths, outcomes = jax.device_get(
                (trees.status, trees.num_nodes, trees.num_tokens, trees.depth, trees.outcome)
            )
            for row, problem in enumerate(chunk):
                verified = outcomes[row][outcomes[row] != Outcome.NONE]
                rewards = np.array([self.reward(Outcome(int(outcome))) for outcome in verified], np.float32)
                group = Group(problem, self.task.prompt(problem), self._responses(found, row), rewards)
                groups.append(group)
                statistics.trees += 1
                statistics.solved += group.num_correct > 0
                statistics.nodes += int(sizes[row])
                statistics.tokens += int(num_tokens[row])
                statistics.depth += int(depths[row].max())
                statistics.exhausted += int(statuses[row] == SearchStatus.EXHAUSTED)
                statistics.out_of_budget += int(
                    statuses[row] in (SearchStatus.OUT_OF_NODES, SearchStatus.OUT_OF_TOKENS)
                )
        self.generated_tokens += statistics.tokens
        return groups, statistics

    def _search_batch(
        self, params: Any, chunk: list[Problem], prompts: device.Prompts, statistics: SearchStatistics, done: int
    ) -> Any:
        search, model, mesh = self.search_settings, self.model, self._mesh
        decode = self._decode_settings(search.expansion_width, search.segment_length)
        pages, trees = device.start_trees(params, prompts, model=model, search=search, mesh=mesh)
        depth, tokens = 0, 0
        running = np.arange(self.rollout.num_slots) < len(chunk)
        while running.any():
            self._check_stop()
            pages, segments, view = device.expand_trees(
                params, pages, trees, prompts, model=model, search=search, decode=decode, mesh=mesh,
                path_bucket=self._path_bucket(depth),
            )  # fmt: skip
            outcomes = self._verify(chunk, jax.device_get(view))
            trees, status, depths = device.advance_trees(
                trees, segments, jnp.asarray(outcomes), prompts, search=search, mesh=mesh
            )
            status, depths, num_tokens = jax.device_get((status, depths, view.num_tokens))
            statistics.expansions += int(running.sum())
            running = status == SearchStatus.RUNNING
            depth = int(depths[running].max(initial=0))
            tokens += int(num_tokens.sum())
            self._advance(done + len(chunk) - int(running.sum()), f"{self.generated_tokens + tokens} tokens")
        return trees

    def _path_bucket(self, depth: int) -> int:
        """Segments of room for paths to nodes at `depth` or above; the root alone needs none."""
        limit, multiple = self.search_settings.max_depth, self.rollout.path_multiple
        return 0 if depth == 0 and multiple < limit else min(limit, bucket(depth, multiple))

    def _verify(self, chunk: list[Problem], view: device.ChildrenView) -> np.ndarray:
        """[B, K] int32 outcomes of the new terminals."""
        outcomes = np.full(view.is_terminal.shape, Outcome.NONE, np.int32)
        places = np.argwhere(view.is_terminal)
        if not len(places):
            return outcomes
        items, cut_off = [], []
        for row, k in places:
            own = view.tokens[row, k, : view.lengths[row, k]]
            tokens = np.concatenate([view.path_tokens[row, : view.path_length[row]], own])
            items.append((chunk[row], self.task.tokenizer.decode(tokens.tolist())))
            cut_off.append(int(own[-1]) not in self.model_eos)
        for (row, k), verdict, is_cut_off in zip(places, self.task.score(items), cut_off, strict=True):
            outcomes[row, k] = outcome_of(verdict, is_cut_off)
        return outcomes

    @property
    def model_eos(self) -> tuple[int, ...]:
        """Token ids that end a response."""
        return tuple(self.task.tokenizer.eos_ids)

    def reward(self, outcome: Outcome) -> float:
        """Reward of a terminal (Eq. 4): +1 correct, -1 wrong, `incomplete_score` where it was cut off unanswered."""
        if outcome == Outcome.CORRECT:
            return 1.0
        return self.search_settings.incomplete_score if outcome == Outcome.INCOMPLETE else -1.0

    def _responses(self, found: Any, row: int) -> list[Response]:
        responses = []
        for m in np.flatnonzero(found.valid[row]):
            depth = int((found.path[row, m] >= 0).sum())
            tokens = found.tokens[row, m, : found.lengths[row, m]]
            responses.append(
                Response(
                    tokens=tokens,
                    segment_lengths=found.segment_lengths[row, m, :depth],
                    node_values=found.node_values[row, m, :depth].astype(np.float32),
                    log_probs=found.log_probs[row, m, : len(tokens)],
                    reward=float(found.score[row, m]),
                    outcome=Outcome(int(found.outcome[row, m])),
                    text=self.task.tokenizer.decode(tokens.tolist()),
                    origin="search",
                )
            )
        return responses

    def _decode_settings(self, num_samples: int, length: int, temperature: float | None = None) -> DecodeSettings:
        return DecodeSettings(
            num_samples=num_samples,
            segment_length=length,
            temperature=self.rollout.temperature if temperature is None else temperature,
            top_k=self.rollout.top_k,
            top_p=self.rollout.top_p,
            eos_ids=self.model_eos,
        )

    def _batches(
        self, problems: Sequence[Problem], purpose: Purpose, counters: tuple[int, int]
    ) -> Iterator[tuple[list[Problem], device.Prompts]]:
        """Chunks of at most num_slots problems with their prompts on the device; free slots have length 0."""
        for chunk in chunks(list(problems), self.rollout.num_slots):
            self._check_stop()
            encoded = [self.task.prompt(problem) for problem in chunk]
            width = bucket(max(map(len, encoded)), self.rollout.prompt_multiple)
            tokens = np.zeros((self.rollout.num_slots, width), np.int32)
            lengths = np.zeros(self.rollout.num_slots, np.int32)
            ids = np.zeros(self.rollout.num_slots, np.int32)
            for row, (problem, prompt) in enumerate(zip(chunk, encoded, strict=True)):
                tokens[row, : len(prompt)], lengths[row], ids[row] = prompt, len(prompt), problem.key
            keys = device.problem_keys(self.run_key, int(purpose), counters, jnp.asarray(ids))
            prompts = device.Prompts(jnp.asarray(tokens), jnp.asarray(lengths), keys)
            yield chunk, prompts if self._sharding is None else jax.device_put(prompts, self._sharding)


def outcome_of(verdict: Verdict, is_cut_off: bool) -> Outcome:
    """A response that ended by itself without an answer is wrong; only one that was cut off is incomplete."""
    if verdict.score >= CORRECT_FROM:
        return Outcome.CORRECT
    return Outcome.INCOMPLETE if is_cut_off and not verdict.is_answered else Outcome.INCORRECT


def chunks(items: list[T], size: int) -> Iterator[list[T]]:
    """Consecutive parts of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _cut(segments: Any, row: int, k: int) -> tuple[np.ndarray, np.ndarray, bool]:
    length = int(segments.lengths[row, k])
    return segments.tokens[row, k, :length], segments.log_probs[row, k, :length], bool(segments.is_eos[row, k])
