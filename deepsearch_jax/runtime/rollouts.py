"""Host side of the rollouts: batches problems into slots, asks the device to decode and the task for verdicts."""

import collections
import dataclasses
import enum
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepsearch_jax.data.problems import Problem
from deepsearch_jax.decode import DecodeSettings, StopTable, build_stop_table
from deepsearch_jax.policy import ModelConfig
from deepsearch_jax.runtime import device
from deepsearch_jax.runtime.memory import pool_pages, samples_at_once
from deepsearch_jax.runtime.responses import Group, Response, SearchStatistics, outcome_of
from deepsearch_jax.runtime.rollout_settings import RolloutSettings
from deepsearch_jax.runtime.search_device import FinishedTrees, Program
from deepsearch_jax.runtime.slots import Slots
from deepsearch_jax.runtime.tasks import Task
from deepsearch_jax.runtime.watch import TreeWatch
from deepsearch_jax.tree import Samples, SearchSettings, SearchStatus
from deepsearch_jax.types import Outcome, Segments

T = TypeVar("T")


class Purpose(enum.IntEnum):
    """Who samples; a counter in the sampling keys, so no two samplers share noise."""

    FILTER = 0
    SEARCH = 1
    DIRECT = 2
    EVALUATION = 3
    CACHE = 4
    EASY = 5
    FILL_UP = 6


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
        rollout.slots_of(devices)  # or they cannot share them
        self._num_devices, self._num_batches = devices, rollout.num_batches(jax.default_backend(), devices)
        self.task, self.model, self.search_settings, self.rollout = task, model, search, rollout
        self.run_key, self._mesh = run_key, mesh
        self._check_stop, self._advance = check_stop, advance
        longest = max(len(task.prompt(problem)) for problem in (*task.train_problems, *task.eval_problems))
        self._longest_prompt = longest
        self._sharding = None if mesh is None else NamedSharding(mesh, device.ROWS)
        self._stop_table = self.put_everywhere(self._build_stop_table())
        self.generated_tokens = 0  # every token sampled so far, whatever for; the caller saves and restores it
        self.num_before = 0  # problems that earlier calls of a phase have done, for its progress; set by the caller
        self.num_watched = 0  # problems whose trees a search keeps as a whole, the first ones; set by the caller

    def put_everywhere(self, tree: T) -> T:
        """Host or device values on each of the devices that roll out."""
        return jax.device_put(tree, None if self._mesh is None else NamedSharding(self._mesh, PartitionSpec()))

    def check_fits(self, response_length: int) -> None:
        """Raises: ValueError if the longest prompt and such a response need more positions than the model has."""
        settings = self._decode_settings(1, response_length)
        dataclasses.replace(settings, max_prompt_length=self._longest_prompt, max_depth=1).check_fits(self.model)

    def direct(
        self, params: Any, problems: Sequence[Problem], num_samples: int, purpose: Purpose, counters: tuple[int, int],
        *, temperature: float | None = None, max_length: int | None = None,
    ) -> list[Group]:  # fmt: skip
        """`num_samples` whole responses to each problem, all together or in parts whose keys and values fit."""
        decode = self._decode_settings(num_samples, max_length or self.search_settings.max_response_length, temperature)
        groups: list[Group] = []
        # The next chunk decodes while the verdicts of this one are found.
        in_flight: collections.deque[tuple[list[Problem], list[Segments]]] = collections.deque()
        for chunk, prompts in self._batches(problems, purpose, counters):
            in_flight.append((chunk, self._sample(params, prompts, decode)))
            if len(in_flight) > 1:
                groups += self._direct_groups(*in_flight.popleft())
                self._advance(self.num_before + len(groups), f"{self.generated_tokens} tokens")
        while in_flight:
            groups += self._direct_groups(*in_flight.popleft())
            self._advance(self.num_before + len(groups), f"{self.generated_tokens} tokens")
        return groups

    def _sample(self, params: Any, prompts: device.Prompts, decode: DecodeSettings) -> list[Segments]:
        """The responses of a chunk, still on the device, by the calls that sample them one after the other."""
        num_samples = decode.num_samples
        together = samples_at_once(
            self.model, self.rollout.slots_of(self._num_devices), num_samples, decode.segment_length,
            pool_gib=self.rollout.page_pool_gib,
        )  # fmt: skip
        call = functools.partial(device.sample_direct, model=self.model, mesh=self._mesh)
        if together == num_samples:
            return [call(params, prompts, self._stop_table, decode=decode)]
        parts = []
        for first in range(0, num_samples, together):
            part = dataclasses.replace(decode, num_samples=min(together, num_samples - first))
            parts.append(call(params, prompts, self._stop_table, self.put_everywhere(np.int32(first)), decode=part))
        return parts

    def _direct_groups(self, chunk: list[Problem], on_device: list[Segments]) -> list[Group]:
        """Reads the responses of a chunk, which may have come in parts, and asks for their verdicts."""
        parts: list[Segments] = jax.device_get(on_device)
        segments: Segments = jax.tree.map(lambda *fields: np.concatenate(fields, axis=1), *parts)
        num_samples = segments.lengths.shape[1]
        self.generated_tokens += int(segments.lengths[: len(chunk)].sum())
        responses = [[_cut(segments, row, k) for k in range(num_samples)] for row in range(len(chunk))]
        texts = [self.task.tokenizer.decode(tokens.tolist()) for row in responses for tokens, *_ in row]
        items = [(problem, texts[i * num_samples + k]) for i, problem in enumerate(chunk) for k in range(num_samples)]
        scored = iter(zip(self.task.score(items), texts, strict=True))
        groups = []
        for problem, row in zip(chunk, responses, strict=True):
            group = Group(problem, self.task.prompt(problem), [])
            for tokens, log_probs, sampling_log_probs, is_eos in row:
                verdict, text = next(scored)
                outcome = outcome_of(verdict, is_cut_off=not is_eos)
                reward = self.reward(outcome)
                group.responses.append(
                    Response(
                        tokens=tokens, segment_lengths=np.array([len(tokens)], np.int32),
                        node_values=np.array([reward], np.float32), log_probs=log_probs, reward=reward,
                        outcome=outcome, text=text, origin="direct", sampling_log_probs=sampling_log_probs,
                    )
                )  # fmt: skip
            groups.append(group)
        return groups

    def search(
        self, params: Any, problems: Sequence[Problem], counters: tuple[int, int], *,
        entropy_weight: float | None = None, samples: Sequence[Group] | None = None,
    ) -> tuple[list[Group], SearchStatistics]:  # fmt: skip
        """One tree a problem; returns the credited trajectories of each tree, in the order of the problems.

        Args:
          entropy_weight: lambda2 of the trees where search.confidence is "adaptive"; None is the configured one.
          samples: direct rollouts of each problem that its tree starts from, the same number of all.
        """
        self.check_fits(self.search_settings.max_response_length)
        statistics = SearchStatistics()
        groups: dict[int, Group] = {}
        prompts = [self.task.prompt(problem) for problem in problems]
        prompt_length = bucket(max(map(len, prompts)), self.rollout.prompt_multiple)

        def verify(items: list[tuple[int, np.ndarray, bool]]) -> list[Outcome]:
            texts = [self.task.tokenizer.decode(tokens.tolist()) for _, tokens, _ in items]
            asked = [(problems[index], text) for (index, _, _), text in zip(items, texts, strict=True)]
            return [
                outcome_of(verdict, is_cut_off=not has_ended)
                for (_, _, has_ended), verdict in zip(items, self.task.score(asked), strict=True)
            ]

        def finish(index: int, found: FinishedTrees, row: int) -> None:
            groups[index] = self._group(problems[index], found, row)
            statistics.trees += 1
            statistics.solved += groups[index].num_correct > 0
            statistics.nodes += int(found.num_nodes[row])
            statistics.tokens += int(found.num_tokens[row])
            statistics.depth += int(found.depth[row])
            statistics.exhausted += int(found.status[row] == SearchStatus.EXHAUSTED)
            statistics.out_of_budget += int(
                found.status[row] in (SearchStatus.OUT_OF_NODES, SearchStatus.OUT_OF_TOKENS)
            )

        num_grafts = len(samples[0].responses) if samples else 0
        search = grafting(self.search_settings, num_grafts)
        watch = TreeWatch(range(min(self.num_watched, len(problems))), search) if self.num_watched else None
        slots = Slots(
            self._search_program(search), self._path_bucket, num_slots=self.rollout.num_slots,
            num_batches=self._num_batches, run_key=self.run_key, stop_table=self._stop_table, verify=verify,
            finish=finish, check_stop=self._check_stop,
            advance=lambda done, tokens: self._advance(
                done, f"{self.generated_tokens + tokens} tokens, {slots.statistics.expansions} expansions"
            ),
            watch=watch,
        )  # fmt: skip
        ids = np.array([problem.key for problem in problems], np.int32)
        keys = device.problem_keys(self.run_key, int(Purpose.SEARCH), counters, ids)
        slots.run(
            params, prompts, keys, prompt_length, samples=_as_samples(samples, search) if samples else None,
            entropy_weight=search.frontier_entropy_weight if entropy_weight is None else entropy_weight,
        )  # fmt: skip
        for index, tree in (watch.collect() if watch else {}).items():
            groups[index].tree = tree
        statistics.slots, statistics.expansions = slots.statistics, slots.statistics.expansions
        self.generated_tokens += statistics.tokens
        return [groups[index] for index in range(len(problems))], statistics

    def _search_program(self, search: SearchSettings) -> Program:
        slots = self.rollout.num_slots // self._num_batches // self._num_devices
        num_pages = pool_pages(
            self.model, search, slots, num_batches=self._num_batches, pool_gib=self.rollout.page_pool_gib
        )
        decode = self._decode_settings(search.children_per_expansion, search.segment_length)
        # The nodes of samples come without a page, wherever there is room.
        recompute = num_pages < slots * search.capacity or search.num_grafts > 0
        decode = dataclasses.replace(decode, recompute=recompute)
        lot_size = self.rollout.lot_size(jax.default_backend(), search, slots * search.picks_per_step)
        return Program(self.model, search, decode, self._mesh, num_pages, path_bucket=0, lot_size=lot_size)

    def _path_bucket(self, depth: int) -> int:
        """Segments of room for paths to nodes at `depth` or above; the root alone needs none."""
        limit, multiple = self.search_settings.max_depth, self.rollout.path_multiple
        return 0 if depth == 0 and multiple < limit else min(limit, bucket(depth, multiple))

    def _build_stop_table(self) -> StopTable | None:
        if not self.rollout.stop_strings:
            return None
        return build_stop_table(self.rollout.stop_strings, self.task.tokenizer.token_bytes(), self.model.vocab_size)

    def _group(self, problem: Problem, found: FinishedTrees, row: int) -> Group:
        verified = found.outcomes[row] != Outcome.NONE
        rewards = np.array(
            [self.reward(Outcome(int(outcome))) for outcome in found.outcomes[row][verified]], np.float32
        )
        responses = self._responses(found.trajectories, row, int(found.num_grafted[row]))
        nll = np.asarray(found.path_entropies[row])[verified]
        return Group(problem, self.task.prompt(problem), responses, rewards, nll)

    @property
    def model_eos(self) -> tuple[int, ...]:
        """Token ids that end a response."""
        return tuple(self.task.tokenizer.eos_ids)

    def reward(self, outcome: Outcome) -> float:
        """Reward of a terminal (Eq. 4): +1 correct, -1 wrong, `incomplete_score` where it was cut off unanswered."""
        if outcome == Outcome.CORRECT:
            return 1.0
        return self.search_settings.incomplete_score if outcome == Outcome.INCOMPLETE else -1.0

    def _responses(self, found: Any, row: int, num_grafted: int) -> list[Response]:
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
                    origin="direct" if found.leaf[row, m] <= num_grafted else "search",
                )
            )
        return responses

    def _decode_settings(self, num_samples: int, length: int, temperature: float | None = None) -> DecodeSettings:
        return self.rollout.decoding(num_samples, length, self.model_eos, temperature)

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
            keys = device.problem_keys(self.run_key, int(purpose), counters, ids)
            prompts = device.Prompts(tokens, lengths, keys)  # type: ignore[arg-type]  # host arrays, placed here
            yield chunk, jax.device_put(prompts, self._sharding)


def chunks(items: list[T], size: int) -> Iterator[list[T]]:
    """Consecutive parts of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _cut(segments: Any, row: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Tokens, log-probs, sampling log-probs of one response, and whether it ended by itself."""
    fields = (segments.tokens, segments.log_probs, segments.sampling_log_probs)
    tokens, log_probs, sampling_log_probs = (field[row, k, : int(segments.lengths[row, k])] for field in fields)
    return tokens, log_probs, sampling_log_probs, bool(segments.is_eos[row, k])


def grafting(search: SearchSettings, num_grafts: int) -> SearchSettings:
    """The settings of searches that start from so many direct samples of each problem."""
    room = num_grafts * search.max_depth
    return dataclasses.replace(search, num_grafts=num_grafts, capacity=search.capacity + room)


def _as_samples(groups: Sequence[Group], search: SearchSettings) -> Samples:
    """Direct rollouts as host arrays [number of groups, G, ...]."""
    shape = len(groups), search.num_grafts
    rows = *shape, search.max_response_length
    tokens, lengths, outcomes = np.zeros(rows, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    log_probs, sampling_log_probs = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
    for g, group in enumerate(groups):
        for m, response in enumerate(group.responses):
            length = len(response.tokens)
            lengths[g, m], outcomes[g, m] = length, response.outcome
            tokens[g, m, :length], log_probs[g, m, :length] = response.tokens, response.log_probs
            sampling_log_probs[g, m, :length] = response.sampling_log_probs
    # Host arrays: the search places them.
    return Samples(tokens, lengths, log_probs, sampling_log_probs, outcomes)  # type: ignore[arg-type]
