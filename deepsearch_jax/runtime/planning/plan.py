"""Compiles a run's programs ahead of time for shapes alone and adds up what they hold, compute and exchange."""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deepsearch_jax.policy import ModelConfig, blocks_for, compiling_for
from deepsearch_jax.runtime.layout import coarse_rows, fine_bucket, has_few_operations
from deepsearch_jax.runtime.learning import Learner, sampling_params
from deepsearch_jax.runtime.memory import abstract_state, page_bytes, state_bytes
from deepsearch_jax.runtime.planning.chips import Chip
from deepsearch_jax.runtime.planning.hlo import Traffic
from deepsearch_jax.runtime.planning.programs import Compiled, compile_program
from deepsearch_jax.runtime.planning.sampling import (
    Direct,
    compile_direct,
    compile_search,
    direct_calls,
    direct_group,
    pool_gib,
    search_program,
)
from deepsearch_jax.runtime.planning.work import (
    DECODE_SHARE,
    MFU,
    Times,
    decode_step_bytes,
    forward_flops,
    update_flops,
    weight_counts,
)
from deepsearch_jax.runtime.rollouts import bucket
from deepsearch_jax.runtime.settings import RunSettings
from deepsearch_jax.training import TrainState, num_row_shards
from deepsearch_jax.types import PackedBatch, TokenBatch, TokenSums


@dataclasses.dataclass(frozen=True)
class Rows:
    """The longest rows that the settings can lead to.

    Attributes:
      is_trees: packed trees, or one row a response.
      micro_batch_rows: of one device; 0 = all.
    """

    is_trees: bool
    num_rows: int
    length: int
    micro_batch_rows: int

    def micro_batch_tokens(self, shards: int) -> int:
        """Tokens that a device computes at a time."""
        return (self.micro_batch_rows or self.num_rows // shards) * self.length


@dataclasses.dataclass
class Phase:
    """What a device holds at its fullest in one phase of a step.

    Attributes:
      shares: bytes by kind.
    """

    name: str
    shares: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.shares.values())


@dataclasses.dataclass
class Plan:
    """What a run will need.

    Attributes:
      mesh: devices by axis.
      stand_in: dtype that the programs were compiled with in place of the compute dtype; "" where it is the same.
      forms: the rows that were compiled, and their programs.
      direct: who draws direct samples, and their programs.
      search: its iteration; None where no tree is grown.
      work: operations and times by phase, per device and step.
    """

    settings: RunSettings
    model: ModelConfig
    chip: Chip
    mesh: dict[str, int]
    prompt_length: int
    stand_in: str
    forms: list[tuple[Rows, Compiled]]
    direct: list[Direct]
    search: Compiled | None
    num_pages: int
    wanted_pages: int
    transfer_bytes: float
    phases: list[Phase]
    work: dict[str, Any]

    @property
    def num_devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def available(self) -> float:
        """Bytes that one device's programs get; CPU devices share their machine's."""
        return self.chip.available / (self.num_devices if self.chip.is_cpu else 1)

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def fits(self) -> bool:
        return self.peak.total <= self.available


def make_plan(
    settings: RunSettings, model: ModelConfig, mesh: dict[str, int], chip: Chip, *, prompt_length: int
) -> Plan:  # fmt: skip
    """Plans a run; nothing of the model's size is allocated.

    Args:
      settings: `mesh` of them is replaced by the argument.
      model: as the run would build it; its compute dtype is that of the chip.
      mesh: devices by axis: data, fsdp, tensor. As many (virtual) devices must be there.
      prompt_length: tokens of the longest prompt.
    Raises:
      ValueError: too few devices, sizes that do not divide, or adapters, whose update is not planned.
    """
    if settings.lora.rank:
        raise ValueError(
            f"lora.rank={settings.lora.rank}: only the training of all parameters is planned; plan with lora.rank=0 "
            "for an upper bound (docs/memory.md has measured sizes of both)"
        )
    mesh = {axis: mesh.get(axis, 1) for axis in ("data", "fsdp", "tensor")}
    num_devices = math.prod(mesh.values())
    if num_devices > len(jax.devices()):
        raise ValueError(
            f"a mesh of {num_devices} devices needs as many virtual ones, but there are {len(jax.devices())}; start "
            f"with XLA_FLAGS=--xla_force_host_platform_device_count={num_devices}"
        )
    spread = dataclasses.replace(settings.mesh, fsdp=mesh["fsdp"], tensor=mesh["tensor"])
    settings = dataclasses.replace(settings, mesh=spread)
    # XLA's CPU compiler turns bfloat16 into float32; float16 has the same size and stays as it is, but for the products
    # of dense attention, which it does not know in float16: updates of short rows are planned too large.
    stand_in = "float16" if model.compute_dtype == "bfloat16" and jax.default_backend() == "cpu" else ""
    compiled_model = dataclasses.replace(model, compute_dtype=stand_in) if stand_in else model
    run_mesh = _run_mesh(num_devices)
    with compiling_for(chip.backend):
        learner = Learner(settings, compiled_model, run_mesh, pathlib.Path("."), rollout_mesh=run_mesh)
        state = abstract_state(compiled_model, settings.optimizer, learner.mesh)
        shards = num_row_shards(learner.mesh)
        own = Learner(settings, model, run_mesh, pathlib.Path("."), rollout_mesh=run_mesh)
        forms = [
            (rows, compile_update(own if blocks_for(rows.length) is None else learner, state, rows))
            for rows in longest_rows(settings, model, shards, prompt_length)
        ]
        memory = chip.available / (num_devices if chip.is_cpu else 1)
        prompt_room = bucket(prompt_length, settings.rollout.prompt_multiple)
        params = jax.eval_shape(
            functools.partial(sampling_params, settings=settings, model=compiled_model, backend=chip.backend),
            jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.params),
        )
        num_slots = settings.rollout.slots_of(num_devices)
        gib = pool_gib(settings, compiled_model, learner.mesh, memory)
        calls = direct_calls(settings, compiled_model, num_slots, gib)
        direct = compile_direct(calls, compiled_model, params, num_slots, prompt_room, settings.seed)
        trees = _NO_TREES
        if settings.method == "deepsearch":
            program, of_batch, num_batches, _ = search_program(
                settings, compiled_model, num_devices, chip, prompt_length, memory, learner.mesh
            )
            search, slots_bytes = compile_search(program, params, of_batch, prompt_room, settings.seed)
            trees = _Trees(
                search, of_batch, program.num_pages * num_batches, num_slots * program.search.capacity,
                slots_bytes * num_batches,
            )  # fmt: skip
    copy = state_bytes(params)
    is_spread = settings.mesh.fsdp * settings.mesh.tensor > 1
    sent = model.num_parameters * model.dtypes[1 if not settings.rollout.int8 else 0].itemsize
    held = _Held(
        pieces=state_bytes(state.params), state=state_bytes(state), copy=copy, sent=sent if is_spread else 0,
        page_pool=trees.num_pages * page_bytes(compiled_model, settings.search.segment_length), slots=trees.slots,
    )  # fmt: skip
    phases = _phases(settings, model, chip, held, direct, trees.search, forms)
    plan = Plan(
        settings, model, chip, mesh, prompt_room, stand_in, forms, direct, trees.search, trees.num_pages,
        trees.wanted_pages, sent * (num_devices - 1) / num_devices if is_spread else 0.0, phases, {},
    )  # fmt: skip
    plan.work = _work(plan) | _decoding(plan, copy, trees.num_slots or num_slots)
    return plan


@dataclasses.dataclass(frozen=True)
class _Trees:
    """What the trees of a device take: the iteration, trees of a batch; of all batches the pages, those that full trees
    would have, and the bytes of the slots with the pages."""

    search: Compiled | None
    num_slots: int
    num_pages: int
    wanted_pages: int
    slots: int


_NO_TREES = _Trees(None, 0, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class _Held:
    """Bytes that a device holds: of the parameters, of them with the optimizer's moments, of the rollouts' copy, of
    all weights where they arrive from other devices, of the pages, and of the slots with the pages."""

    pieces: float
    state: float
    copy: float
    sent: float
    page_pool: float
    slots: float


def _phases(
    settings: RunSettings, model: ModelConfig, chip: Chip, held: _Held, direct: list[Direct], search: Compiled | None,
    forms: list[tuple[Rows, Compiled]],
) -> list[Phase]:  # fmt: skip
    """What a device holds in every phase of a step."""
    is_spread = settings.mesh.fsdp * settings.mesh.tensor > 1
    cast = held.pieces * model.dtypes[1].itemsize / model.dtypes[0].itemsize  # the pieces in the compute dtype
    whole = held.sent  # what arrives, beside the pieces that are sent
    if is_spread and model.param_dtype != model.compute_dtype and not settings.rollout.int8:
        whole += cast
    if not is_spread or settings.rollout.int8 or settings.rollout.unrolls(chip.backend):
        whole += held.copy
    resident = {"parameters": held.pieces, "optimizer": held.state - held.pieces}
    if settings.loss.kl_coefficient:
        resident["reference policy"] = cast
    phases = [Phase("moving weights", resident | {"rollout weights": whole})]
    sampling = resident | {"rollout weights": held.copy}
    if search is not None:
        shares = {"page pool": held.page_pool, "trees and prompts": held.slots - held.page_pool}
        phases.append(Phase("search", sampling | shares | {"decoding": search.temporary}))
    for call in direct:
        prompts = call.compiled.arguments - held.copy
        phases.append(Phase(call.name, sampling | {"trees and prompts": prompts, "decoding": call.compiled.temporary}))
    for rows, compiled in forms:
        gradients = min(held.pieces * 4 / model.dtypes[0].itemsize, compiled.temporary)
        phases.append(
            Phase(
                f"update on {'trees' if rows.is_trees else 'responses'}",
                resident | {
                    "rollout weights": held.copy, "gradients": gradients,
                    "activations and temporary": compiled.temporary - gradients,
                    "batch": compiled.arguments - held.state,
                },
            )
        )  # fmt: skip
    return phases


def _run_mesh(num_devices: int) -> Mesh | None:
    if num_devices == 1:
        return None
    return Mesh(np.array(jax.devices()[:num_devices]), ("data",), axis_types=(AxisType.Auto,))


def longest_rows(settings: RunSettings, model: ModelConfig, shards: int, prompt_length: int) -> list[Rows]:
    """Rows of one response, and of trees where the settings allow them, as long and as many as they can be.

    A tree is longest where its trajectories have nothing but the prompt in common. Groups of direct samples, alone or
    beside cached solutions, may be larger than what a tree gives.
    """
    search, pack, optimizer = settings.search, settings.pack, settings.optimizer
    per_problem = search.num_trajectories if settings.method == "deepsearch" else 0
    if direct_group(settings):
        per_problem = max(per_problem, settings.rounds.group_size)
    num_responses = settings.rounds.update_problems * per_problem
    length = bucket(prompt_length + search.max_response_length, pack.row_multiple)
    num_rows = pack.min_rows
    while num_rows < num_responses:
        num_rows *= 2
    at_once, budget = optimizer.micro_batch_rows, optimizer.micro_batch_rows * length
    if optimizer.micro_batch_tokens:
        at_once, budget = max(optimizer.micro_batch_tokens // length, 1), optimizer.micro_batch_tokens
        num_rows = -(-num_responses // (shards * at_once)) * shards * at_once  # rows of filling are not computed
    found = [Rows(False, num_rows, length, at_once)]
    if pack.trees != "never":
        tree = prompt_length + per_problem * search.max_response_length
        tree = min(tree, pack.max_tree_tokens or tree)
        num_trees = settings.rounds.update_problems
        if has_few_operations(model, num_trees * tree):
            room, num_rows, at_once = coarse_rows(tree, num_trees, pack.row_multiple, shards, budget)
        else:
            room = fine_bucket(tree, pack.row_multiple)
            at_once = max(budget // room, 1) if budget else 0
            unit = shards * max(at_once, 1)
            num_rows = -(-num_trees // unit) * unit
        found.append(Rows(True, num_rows, room, at_once))
    return found


def batch_shapes(rows: Rows, mesh: Mesh | None, *, has_reference: bool = False) -> Any:
    """A batch of such rows as shapes, laid out over the update's mesh.

    Args:
      has_reference: with log-probs under a reference policy.
    """
    sharding = None
    if mesh is not None:
        sharding = NamedSharding(mesh, PartitionSpec(tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)))

    def table(dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((rows.num_rows, rows.length), dtype, sharding=sharding)

    more = {"sampler_log_probs": table(), "reference_log_probs": table() if has_reference else None}
    ids = table(jnp.int32)
    if not rows.is_trees:
        return TokenBatch(ids, ids, table(bool), table(), table(), **more)
    sums = TokenSums(**{field.name: table() for field in dataclasses.fields(TokenSums)})
    divisors: Any = jax.ShapeDtypeStruct((rows.num_rows,), jnp.float32, sharding=sharding)
    return PackedBatch(ids, ids, ids, ids, ids, sums, table(), divisors, **more)


def compile_update(learner: Learner, state: TrainState, rows: Rows) -> Compiled:
    """Compiles the update of a run on such rows."""
    mesh = learner.mesh
    batch = batch_shapes(rows, mesh, has_reference=bool(learner.settings.loss.kl_coefficient))
    lowered = learner.lower(state, batch, rows.micro_batch_rows)
    return compile_program(lowered, 1 if mesh is None else mesh.size)


def _work(plan: Plan) -> dict[str, Any]:
    """Operations and times of the updates of a step whose responses are all as long as they may be."""
    settings, model, chip, devices = plan.settings, plan.model, plan.chip, plan.num_devices
    rounds = settings.rounds
    is_far = chip.host > 0 and devices > chip.host
    link = chip.far_link if is_far else chip.link
    updates = rounds.problems_per_step // rounds.update_problems
    rows, compiled = plan.forms[0]
    with compiling_for(chip.backend):
        blocks = blocks_for(rows.length)
    block = blocks.size if blocks else 0
    flops = update_flops(model, rows.num_rows, rows.length, block)
    on_policy = settings.optimizer.on_policy or (updates == 1 and settings.old_log_probs == "recompute")
    if not on_policy and settings.old_log_probs == "recompute":
        flops += forward_flops(model, rows.num_rows, rows.length, block)
    shards = plan.mesh["data"] * plan.mesh["fsdp"]
    passes = rows.num_rows // shards // (rows.micro_batch_rows or rows.num_rows // shards)
    resident = sum(plan.phases[-1].shares[name] for name in ("parameters", "optimizer"))
    # Weights forward, again and backward in every pass, gradients added; the optimizer reads and writes its state.
    moved = passes * 4 * model.num_parameters * model.dtypes[1].itemsize / plan.mesh["tensor"] + 3 * resident
    update = Times(flops / devices / (chip.flops * MFU), moved / chip.bandwidth, compiled.collectives.sent / link)
    return {
        "updates": updates, "update_flops": flops * updates / devices, "update": update, "passes": passes,
        "link": link, "is_far": is_far, "moving_seconds": plan.transfer_bytes / link,
    }  # fmt: skip


def _decoding(plan: Plan, copy: float, num_slots: int) -> dict[str, Any]:
    """Times of the rollouts of such a step: of its searches, or of its direct samples where nothing is searched.

    Args:
      num_slots: of a device: trees of a batch, or problems.
    """
    settings, model, chip = plan.settings, plan.model, plan.chip
    search, problems = settings.search, settings.rounds.problems_per_step
    if plan.search is not None:
        K, S = search.children_per_expansion, search.segment_length
        rows = settings.rollout.lot_size(chip.backend, search, num_slots * search.picks_per_step)
        prefix, calls = plan.prompt_length + search.max_depth / 2 * S, (search.max_nodes - 1) // K
    else:
        call = plan.direct[-1]
        K, S, rows = call.decode.num_samples, call.decode.segment_length, num_slots
        prefix, calls = float(plan.prompt_length), call.num_calls
    read = decode_step_bytes(model, copy, rows, K, prefix, S / 2)
    work = 2.0 * rows * K * sum(weight_counts(model))
    step = Times(work / (chip.flops * MFU), read / (chip.bandwidth * DECODE_SHARE), 0.0)
    at_once = rows * plan.num_devices
    return {
        "decode_step": step, "decode_bytes": read, "tokens_per_second": at_once * K / step.expected,
        "call_seconds": S * step.expected, "rollout_seconds": S * step.expected * calls * problems / at_once,
    }  # fmt: skip


def traffic_of(plan: Plan) -> dict[str, Traffic]:
    """Collectives of one update on rows of one response."""
    return plan.forms[0][1].collectives.by_kind
