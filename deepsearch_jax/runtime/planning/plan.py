"""Compiles a run's programs ahead of time for shapes alone and adds up what they hold, compute and exchange."""

import dataclasses
import functools
import math
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deepsearch_jax.decode import DecodeSettings
from deepsearch_jax.policy import ModelConfig, blocks_for, compiling_for
from deepsearch_jax.runtime.device import Prompts
from deepsearch_jax.runtime.layout import coarse_rows, fine_bucket, has_few_operations
from deepsearch_jax.runtime.learning import Learner, sampling_params
from deepsearch_jax.runtime.memory import abstract_state, page_bytes, pool_pages, settle_pool, state_bytes
from deepsearch_jax.runtime.planning.chips import Chip
from deepsearch_jax.runtime.planning.hlo import Collectives, Traffic, read_collectives
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
from deepsearch_jax.runtime.search_device import Problems, Program, empty_state, search_iteration
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
class Compiled:
    """What a compiled program says of itself, per device.

    Attributes:
      arguments, temporary: bytes.
      counted_flops: XLA's own count, the body of every loop once.
      seconds: it took to compile.
    """

    program: jax.stages.Compiled
    arguments: int
    temporary: int
    counted_flops: float
    collectives: Collectives
    seconds: float


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
      work: operations and times by phase, per device and step.
    """

    settings: RunSettings
    model: ModelConfig
    chip: Chip
    mesh: dict[str, int]
    prompt_length: int
    stand_in: str
    forms: list[tuple[Rows, Compiled]]
    search: Compiled
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
        program, num_slots, num_batches, prompt_room = search_program(
            settings, compiled_model, num_devices, chip, prompt_length,
            chip.available / (num_devices if chip.is_cpu else 1), learner.mesh,
        )  # fmt: skip
        params = jax.eval_shape(
            functools.partial(sampling_params, settings=settings, model=compiled_model, backend=chip.backend),
            jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.params),
        )
        search, slots_bytes = compile_search(program, params, num_slots, prompt_room, settings.seed)
    copy = state_bytes(params)
    wanted = num_slots * num_batches * settings.search.capacity
    is_spread = settings.mesh.fsdp * settings.mesh.tensor > 1
    sent = model.num_parameters * model.dtypes[1 if not settings.rollout.int8 else 0].itemsize
    held = _Held(
        pieces=state_bytes(state.params), state=state_bytes(state), copy=copy, sent=sent if is_spread else 0,
        page_pool=program.num_pages * num_batches * page_bytes(compiled_model, settings.search.segment_length),
        slots=slots_bytes * num_batches,
    )  # fmt: skip
    phases = _phases(settings, model, chip, held, search, forms)
    plan = Plan(
        settings, model, chip, mesh, prompt_room, stand_in, forms, search, program.num_pages * num_batches, wanted,
        sent * (num_devices - 1) / num_devices if is_spread else 0.0, phases, {},
    )  # fmt: skip
    plan.work = _work(plan, copy, num_slots, prompt_room)
    return plan


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
    settings: RunSettings, model: ModelConfig, chip: Chip, held: _Held, search: Compiled,
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
    phases = [
        Phase("moving weights", resident | {"rollout weights": whole}),
        Phase(
            "rollouts",
            resident | {
                "rollout weights": held.copy, "page pool": held.page_pool,
                "trees and prompts": held.slots - held.page_pool, "decoding": search.temporary,
            },
        ),
    ]  # fmt: skip
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

    A tree is longest where its trajectories have nothing but the prompt in common.
    """
    search, pack, optimizer = settings.search, settings.pack, settings.optimizer
    per_problem = search.num_trajectories if settings.method == "deepsearch" else settings.rounds.group_size
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


def compile_program(lowered: jax.stages.Lowered, num_devices: int) -> Compiled:
    start = time.perf_counter()
    compiled = lowered.compile()
    memory: Any = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    collectives = Collectives({}, 0)
    if num_devices > 1:
        collectives = read_collectives(compiled.as_text() or "", num_devices)
    return Compiled(
        compiled,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        float(cost.get("flops", math.nan)),
        collectives,
        time.perf_counter() - start,
    )


def search_program(
    settings: RunSettings, model: ModelConfig, num_devices: int, chip: Chip, prompt_length: int, memory: float,
    mesh: Mesh | None,
) -> tuple[Program, int, int, int]:  # fmt: skip
    """The iteration of the search on the longest paths as `Sampler` makes it, for one device.

    Args:
      memory: bytes of a device; for the page pool.
      mesh: of the update, which says what training keeps.
    Returns: the program, trees of a device and batch, batches, and the room for a prompt.
    Raises:
      ValueError: the devices cannot share the slots.
    """
    search = settings.search
    rollout = settle_pool(settings.rollout, model, settings.optimizer, mesh, memory)
    if rollout.num_slots % num_devices:
        raise ValueError(
            f"rollout.num_slots={rollout.num_slots} cannot be shared by {num_devices} devices; the next size that "
            f"fits is {-(-rollout.num_slots // num_devices) * num_devices}"
        )
    num_batches = rollout.num_batches(chip.backend, num_devices)
    num_slots = rollout.num_slots // num_batches // num_devices
    num_pages = pool_pages(model, search, num_slots, num_batches=num_batches, pool_gib=rollout.page_pool_gib or 1e-9)
    decode = DecodeSettings(
        num_samples=search.children_per_expansion, segment_length=search.segment_length,
        temperature=rollout.temperature, top_k=rollout.top_k, top_p=rollout.top_p, min_p=rollout.min_p,
        entropy=rollout.entropy, eos_ids=model.eos_ids, recompute=num_pages < num_slots * search.capacity,
    )  # fmt: skip
    longest = min(search.max_depth, bucket(search.max_depth, rollout.path_multiple))
    room = bucket(prompt_length, rollout.prompt_multiple)
    lot_size = rollout.lot_size(chip.backend, search, num_slots * search.picks_per_step)
    program = Program(model, search, decode, None, num_pages, longest, lot_size)
    return program, num_slots, num_batches, room


def compile_search(program: Program, params: Any, num_slots: int, prompt_room: int, seed: int) -> tuple[Compiled, int]:
    """Compiles an iteration of the search on one device; also the bytes of its slots, page pool included."""
    search = program.search
    key = jax.eval_shape(lambda: jax.random.key(seed))
    make = functools.partial(empty_state, program=program, num_slots=num_slots, prompt_length=prompt_room)
    state = jax.eval_shape(make, key)
    data = jax.eval_shape(lambda: jax.random.key_data(jnp.repeat(jax.random.key(seed)[None], num_slots)))
    array: Any = jax.ShapeDtypeStruct
    prompts = Prompts(array((num_slots, prompt_room), jnp.int32), array((num_slots,), jnp.int32), data)
    waiting = Problems(array((num_slots,), jnp.int32), prompts, array((num_slots,), jnp.float32))
    grid = (num_slots, search.picks_per_step, search.children_per_expansion)
    lowered = search_iteration.lower(params, state, array(grid, jnp.int32), waiting, None, program=program)
    compiled = compile_program(lowered, 1)
    return compiled, compiled.arguments - state_bytes(params)


def _work(plan: Plan, copy: float, num_slots: int, prompt_room: int) -> dict[str, Any]:
    """Operations and times of a step whose responses are all as long as they may be."""
    settings, model, chip, devices = plan.settings, plan.model, plan.chip, plan.num_devices
    search, rounds = settings.search, settings.rounds
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
    K, S = search.children_per_expansion, search.segment_length
    nodes = settings.rollout.lot_size(chip.backend, search, num_slots * search.picks_per_step)
    prefix = prompt_room + search.max_depth / 2 * S
    read = decode_step_bytes(model, copy, nodes, K, prefix, S / 2)
    work = 2.0 * nodes * K * sum(weight_counts(model))
    step = Times(work / (chip.flops * MFU), read / (chip.bandwidth * DECODE_SHARE), 0.0)
    expansions = (search.max_nodes - 1) // K
    return {
        "updates": updates, "update_flops": flops * updates / devices, "update": update, "passes": passes,
        "link": link, "is_far": is_far, "decode_step": step, "decode_bytes": read,
        "tokens_per_second": devices * nodes * K / step.expected,
        "expansion_seconds": S * step.expected,
        "full_tree_seconds": S * step.expected * rounds.problems_per_step * expansions / (nodes * devices),
        "moving_seconds": plan.transfer_bytes / link,
    }  # fmt: skip


def traffic_of(plan: Plan) -> dict[str, Traffic]:
    """Collectives of one update on rows of one response."""
    return plan.forms[0][1].collectives.by_kind
