"""Several processes that run one training, each with devices of its own.

All of them hold the same counters, problems and solution cache and take the same decisions; each samples and searches
its share of the problems, they exchange the responses, and one update runs over the devices of all. Only the first one
writes files and lines.
"""

import dataclasses
import io
import json
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from deepsearch_jax.data.problems import Problem
from deepsearch_jax.runtime.interrupt import Interrupted, StopRequest
from deepsearch_jax.runtime.responses import Group, Response
from deepsearch_jax.runtime.rollout_settings import RolloutSettings
from deepsearch_jax.runtime.rollouts import Purpose, Sampler, SearchStatistics
from deepsearch_jax.runtime.slots import SlotStatistics
from deepsearch_jax.types import Outcome

T = TypeVar("T")

_PIECE = 1 << 28  # bytes exchanged at a time
_PORT = 55527  # of the coordinator, where nobody chose one


def connect(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of a run before anything touches a device; one process alone does nothing.

    Args:
      coordinator: host:port of process 0; empty where a launcher says it (Slurm, Kubernetes, Open MPI, TPU pods).
      num_processes: all that a Kubernetes indexed job must say; id and coordinator follow from the pod's name.
    Raises:
      ValueError: some of the three are given and others not.
    """
    if not coordinator and process_id < 0 and num_processes > 1 and "JOB_COMPLETION_INDEX" in os.environ:
        coordinator, process_id = _indexed_job(os.environ["JOB_COMPLETION_INDEX"], socket.getfqdn())
    if not coordinator and num_processes in (0, 1) and process_id < 0:
        if _is_launched(os.environ):
            jax.distributed.initialize(local_device_ids=_visible_devices(os.environ))
        return
    if not coordinator or num_processes < 1 or not 0 <= process_id < num_processes:
        raise ValueError(
            f"coordinator={coordinator!r}, num_processes={num_processes} and process_id={process_id} belong together: "
            "give host:port of process 0, the number of processes, and an id from 0 to that number - 1"
        )
    jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=30)


def _is_launched(environment: Mapping[str, str]) -> bool:
    """Whether a launcher started several processes that JAX finds by itself."""
    if int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        return True
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return True
    return len([name for name in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]) > 1


def _visible_devices(environment: Mapping[str, str]) -> list[int] | None:
    """Which local devices a launched process takes: [] all of them, None what JAX makes of the launcher's variables.

    JAX gives a process of Slurm or Open MPI the one GPU with its number among the processes of its machine. That is
    right for a process a GPU; one that has a machine to itself would leave the other GPUs idle.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "")  # 1(x2) or 8,7
    is_alone = {part.partition("(")[0] for part in tasks.split(",")} == {"1"}
    return [] if is_alone or environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1" else None


def _indexed_job(index: str, host: str) -> tuple[str, int]:
    """Coordinator and process id in a pod NAME-INDEX.SERVICE... of an indexed job with a headless service.

    Raises:
      ValueError: the pod has another name.
    """
    pod, _, domain = host.partition(".")
    if not pod.endswith(f"-{index}") or not domain:
        raise ValueError(
            f"the pod of index {index} is called {host!r}, not NAME-{index}.SERVICE...; give the job a headless "
            "service as its subdomain, or say --coordinator, --num_processes and --process_id"
        )
    return f"{pod.removesuffix(index)}0.{domain}:{_PORT}", int(index)


def is_first() -> bool:
    return jax.process_index() == 0


def exchange(payload: bytes) -> list[bytes]:
    """What every process says, in the order of the processes; all of them must call it."""
    with jax.transfer_guard("allow"):  # jax's own helper moves arrays as it likes
        digits = multihost_utils.process_allgather(np.array(divmod(len(payload), _PIECE), np.int32))
        sizes = [int(pieces) * _PIECE + int(rest) for pieces, rest in np.reshape(digits, (-1, 2))]
        gathered: list[list[bytes]] = [[] for _ in sizes]
        for start in range(0, max(sizes), _PIECE):  # a piece at a time: it passes through the devices' memory
            padded = np.zeros(min(max(sizes) - start, _PIECE), np.uint8)
            piece = payload[start : start + _PIECE]
            padded[: len(piece)] = np.frombuffer(piece, np.uint8)
            rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
            for parts, row, size in zip(gathered, rows, sizes, strict=True):
                parts.append(row[: max(size - start, 0)].tobytes())
    return [b"".join(parts) for parts in gathered]


def rollout_share(rollout: RolloutSettings) -> RolloutSettings:
    """The settings of one process: its share of the slots.

    Raises:
      ValueError: the slots do not divide.
    """
    count = jax.process_count()
    if rollout.num_slots % count:
        raise ValueError(
            f"rollout.num_slots={rollout.num_slots} cannot be shared by {count} processes; the next size that fits is "
            f"{-(-rollout.num_slots // count) * count}"
        )
    return dataclasses.replace(rollout, num_slots=rollout.num_slots // count)


class SharedStop(StopRequest):
    """A stop that one process is asked for is one for all: every look is taken by all of them together.

    Notices of preemption, of which SIGTERM is one, go to JAX, whose coordination service agrees with all processes on
    the look at which they stop (multihost_utils.reached_preemption_sync_point); without that service (the setting
    jax_enable_preemption_service) SIGTERM is told to the others as Ctrl-C is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._num_looks, self._is_told_by_jax = 0, bool(jax.config.values["jax_enable_preemption_service"])
        if self._is_told_by_jax:
            self.signals = (signal.SIGINT,)  # taking SIGTERM over would keep the notice from JAX

    def check(self) -> None:
        """Raises Interrupted in all processes if a stop was asked for in one."""
        self._num_looks += 1
        if self._is_told_by_jax and multihost_utils.reached_preemption_sync_point(self._num_looks):
            raise Interrupted("preemption notice (SIGTERM)")
        asked = [text.decode() for text in exchange((self._asked or "").encode())]
        if names := sorted({name for name in asked if name}):
            raise Interrupted(", ".join(names))


class SharedSampler(Sampler):
    """A sampler that works on every n-th problem and gets the others' responses; the same calls in every process."""

    def direct(
        self, params: Any, problems: Sequence[Problem], num_samples: int, purpose: Purpose, counters: tuple[int, int],
        *, temperature: float | None = None, max_length: int | None = None,
    ) -> list[Group]:  # fmt: skip
        """As Sampler.direct."""
        before, mine = self.generated_tokens, _share(problems)
        groups = super().direct(
            params, mine, num_samples, purpose, counters, temperature=temperature, max_length=max_length
        )
        return self._exchange(problems, groups, before, SearchStatistics())[0]

    def search(
        self, params: Any, problems: Sequence[Problem], counters: tuple[int, int], *,
        entropy_weight: float | None = None, samples: Sequence[Group] | None = None,
    ) -> tuple[list[Group], SearchStatistics]:  # fmt: skip
        """As Sampler.search."""
        before, mine = self.generated_tokens, _share(problems)
        groups: list[Group] = []
        statistics = SearchStatistics()
        if mine:
            groups, statistics = super().search(
                params, mine, counters, entropy_weight=entropy_weight, samples=_share(samples) if samples else None
            )
        return self._exchange(problems, groups, before, statistics)

    def _exchange(
        self, problems: Sequence[Problem], groups: list[Group], before: int, statistics: SearchStatistics
    ) -> tuple[list[Group], SearchStatistics]:
        said = {"tokens": self.generated_tokens - before, "statistics": dataclasses.asdict(statistics)}
        parts = [decode(part) for part in exchange(encode(groups, said))]
        self.generated_tokens = before + sum(said["tokens"] for _, said in parts)
        found: list[Group] = []
        for number, problem in enumerate(problems):
            process, place = number % len(parts), number // len(parts)
            group = Group(problem, self.task.prompt(problem), *parts[process][0][place])
            if process == jax.process_index():
                group.tree = groups[place].tree  # whole trees stay where they grew
            found.append(group)
        return found, _sum_of([said["statistics"] for _, said in parts])


def _share(problems: Sequence[T]) -> list[T]:
    return list(problems[jax.process_index() :: jax.process_count()])


def _sum_of(statistics: list[dict[str, Any]]) -> SearchStatistics:
    def add(kind: type[T], parts: list[dict[str, Any]]) -> T:
        names = [field.name for field in dataclasses.fields(kind) if field.name != "slots"]  # type: ignore[arg-type]
        return kind(**{name: sum(part[name] for part in parts) for name in names})

    total = add(SearchStatistics, statistics)
    total.slots = add(SlotStatistics, [part["slots"] for part in statistics])
    return total


def encode(groups: Sequence[Group], said: dict[str, Any]) -> bytes:
    """Groups without their problems and prompts, and a few numbers, as plain arrays and JSON (nothing pickled)."""
    responses = [response for group in groups for response in group.responses]
    facts = [
        {"reward": r.reward, "outcome": int(r.outcome), "text": r.text, "origin": r.origin, "tokens": len(r.tokens),
         "nodes": len(r.segment_lengths), "is_known": r.log_probs is not None,
         "is_sampled": r.sampling_log_probs is not None}
        for r in responses
    ]  # fmt: skip
    rewards = [None if group.terminal_rewards is None else len(group.terminal_rewards) for group in groups]
    header = {
        "said": said,
        "responses": facts,
        "sizes": [len(group.responses) for group in groups],
        "rewards": rewards,
        "nll": [None if group.terminal_nll is None else len(group.terminal_nll) for group in groups],
    }
    arrays = {
        "tokens": _joined([r.tokens for r in responses], np.int32),
        "segment_lengths": _joined([r.segment_lengths for r in responses], np.int32),
        "node_values": _joined([r.node_values for r in responses], np.float32),
        "log_probs": _joined([r.log_probs for r in responses if r.log_probs is not None], np.float32),
        "sampling_log_probs": _joined(
            [r.sampling_log_probs for r in responses if r.sampling_log_probs is not None], np.float32
        ),
        "rewards": _joined([g.terminal_rewards for g in groups if g.terminal_rewards is not None], np.float32),
        "nll": _joined([g.terminal_nll for g in groups if g.terminal_nll is not None], np.float32),
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


Terminals = np.ndarray | None


def decode(payload: bytes) -> tuple[list[tuple[list[Response], Terminals, Terminals]], dict[str, Any]]:
    """(responses, rewards and negative log-probs of terminals) of each group, and the numbers `encode` was given."""
    with np.load(io.BytesIO(payload), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    header, taken = json.loads(arrays.pop("header").tobytes()), dict.fromkeys(arrays, 0)

    def take(name: str, count: int) -> np.ndarray:
        taken[name] += count
        return arrays[name][taken[name] - count : taken[name]]

    responses = iter(
        Response(
            tokens=take("tokens", fact["tokens"]), segment_lengths=take("segment_lengths", fact["nodes"]),
            node_values=take("node_values", fact["nodes"]),
            log_probs=take("log_probs", fact["tokens"]) if fact["is_known"] else None,
            reward=fact["reward"], outcome=Outcome(fact["outcome"]), text=fact["text"], origin=fact["origin"],
            sampling_log_probs=take("sampling_log_probs", fact["tokens"]) if fact["is_sampled"] else None,
        )
        for fact in header["responses"]
    )  # fmt: skip
    groups = []
    for size, *counts in zip(header["sizes"], header["rewards"], header["nll"], strict=True):
        members = [next(responses) for _ in range(size)]
        names = ("rewards", "nll")
        rewards, nll = (None if n is None else take(name, n) for name, n in zip(names, counts, strict=True))
        groups.append((members, rewards, nll))
    return groups, header["said"]


def _joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.asarray(part, dtype) for part in parts]) if parts else np.zeros(0, dtype)
