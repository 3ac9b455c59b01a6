"""The programs that sample: the search and the calls for direct samples, as `Sampler` makes them, for one device."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deepsearch_jax.decode import DecodeSettings
from deepsearch_jax.policy import ModelConfig
from deepsearch_jax.runtime.device import Prompts, sample_direct
from deepsearch_jax.runtime.memory import pool_pages, samples_at_once, settle_pool, state_bytes
from deepsearch_jax.runtime.planning.chips import Chip
from deepsearch_jax.runtime.planning.programs import Compiled, compile_program
from deepsearch_jax.runtime.rollouts import bucket, grafting
from deepsearch_jax.runtime.search_device import Problems, Program, empty_state, search_iteration
from deepsearch_jax.runtime.settings import RunSettings
from deepsearch_jax.tree import Samples, SearchSettings

# What `pool_gib` must be where nothing is left: 0 would ask the device that plans for its own memory.
_NOTHING = 1e-9


@dataclasses.dataclass
class Direct:
    """The direct samples of one phase.

    Attributes:
      num_samples: of a problem, K.
      decode: of one call; its num_samples are those that are drawn together.
      compiled: that call.
    """

    name: str
    num_samples: int
    decode: DecodeSettings
    compiled: Compiled

    @property
    def num_calls(self) -> int:
        return -(-self.num_samples // self.decode.num_samples)


def direct_group(settings: RunSettings) -> int:
    """Samples of a problem that a step draws directly, the most there are; 0 where trees give all."""
    rounds = settings.rounds
    if settings.method != "deepsearch" or rounds.search_when == "hard":
        return rounds.group_size
    sizes = [0]
    if rounds.search_when == "no_signal":
        sizes += [rounds.first_samples, rounds.group_size - rounds.first_samples]
    if settings.uses_cache:
        sizes.append(rounds.group_size - 1)  # beside one cached solution
    return max(sizes)


def searched(settings: RunSettings) -> SearchSettings:
    """The search that a run makes; under "no_signal" its trees start from the direct samples that were drawn first."""
    rounds = settings.rounds
    return grafting(settings.search, rounds.first_samples if rounds.search_when == "no_signal" else 0)


def pool_gib(settings: RunSettings, model: ModelConfig, mesh: Mesh | None, memory: float) -> float:
    """GiB of a device for keys and values of what it samples.

    Args:
      mesh: of the update, which says what training keeps.
      memory: bytes of a device.
    """
    return settle_pool(settings.rollout, model, settings.optimizer, mesh, memory).page_pool_gib or _NOTHING


def search_program(
    settings: RunSettings, model: ModelConfig, num_devices: int, chip: Chip, prompt_length: int, memory: float,
    mesh: Mesh | None,
) -> tuple[Program, int, int, int]:  # fmt: skip
    """The iteration of the search on the longest paths as `Sampler` makes it, for one device.

    Args:
      memory, mesh: as of `pool_gib`.
    Returns: the program, trees of a device and batch, batches, and the room for a prompt.
    Raises:
      ValueError: the devices cannot share the slots.
    """
    search, rollout = searched(settings), settings.rollout
    num_batches = rollout.num_batches(chip.backend, num_devices)
    num_slots = rollout.slots_of(num_devices) // num_batches
    gib = pool_gib(settings, model, mesh, memory)
    num_pages = pool_pages(model, search, num_slots, num_batches=num_batches, pool_gib=gib)
    decode = rollout.decoding(search.children_per_expansion, search.segment_length, model.eos_ids)
    recompute = num_pages < num_slots * search.capacity or search.num_grafts > 0
    decode = dataclasses.replace(decode, recompute=recompute)
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
    prompts = _prompts(num_slots, prompt_room, seed)
    prompts = prompts._replace(keys=jax.eval_shape(jax.random.key_data, prompts.keys))
    array: Any = jax.ShapeDtypeStruct
    samples = None
    if search.num_grafts:
        shape = (num_slots, search.num_grafts)
        rows = (*shape, search.max_response_length)
        samples = Samples(
            array(rows, jnp.int32), array(shape, jnp.int32), array(rows, jnp.float32), array(rows, jnp.float32),
            array(shape, jnp.int32),
        )  # fmt: skip
    waiting = Problems(array((num_slots,), jnp.int32), prompts, array((num_slots,), jnp.float32), samples)
    grid = (num_slots, search.picks_per_step, search.children_per_expansion)
    lowered = search_iteration.lower(params, state, array(grid, jnp.int32), waiting, None, program=program)
    compiled = compile_program(lowered, 1)
    return compiled, compiled.arguments - state_bytes(params)


def direct_calls(
    settings: RunSettings, model: ModelConfig, num_slots: int, gib: float
) -> list[tuple[str, int, DecodeSettings]]:
    """Who draws direct samples, how many of a problem, and the call, as `Sampler.direct` makes it.

    Args:
      num_slots: problems of one device.
      gib: from `pool_gib`.
    """
    rounds, rollout, evaluation = settings.rounds, settings.rollout, settings.evaluation
    length = settings.search.max_response_length
    found = []
    if rounds.filter_problems and (rounds.filter_first_round or rounds.num_rounds > 1):
        found.append(("filter", settings.filter.num_samples, rollout.decoding(1, length, model.eos_ids)))
    decode = rollout.decoding(1, evaluation.max_length or length, model.eos_ids, evaluation.temperature)
    found.append(("evaluation", evaluation.num_samples, decode))
    if group := direct_group(settings):
        found.append(("direct rollouts", group, rollout.decoding(1, length, model.eos_ids)))

    def bounded(num_samples: int, decode: DecodeSettings) -> DecodeSettings:
        together = samples_at_once(model, num_slots, num_samples, decode.segment_length, pool_gib=gib)
        return dataclasses.replace(decode, num_samples=together)

    return [(name, num_samples, bounded(num_samples, decode)) for name, num_samples, decode in found]


def compile_direct(
    calls: list[tuple[str, int, DecodeSettings]], model: ModelConfig, params: Any, num_slots: int, prompt_room: int,
    seed: int,
) -> list[Direct]:  # fmt: skip
    """Compiles the calls on one device; those that are alike once."""
    prompts = _prompts(num_slots, prompt_room, seed)
    found: dict[DecodeSettings, Compiled] = {}
    for _, _, decode in calls:
        if decode not in found:
            lowered = sample_direct.lower(params, prompts, None, model=model, decode=decode, mesh=None)
            found[decode] = compile_program(lowered, 1)
    return [Direct(name, num_samples, decode, found[decode]) for name, num_samples, decode in calls]


def _prompts(num_slots: int, prompt_room: int, seed: int) -> Prompts:
    """Prompts in all slots of a device, as shapes."""
    array: Any = jax.ShapeDtypeStruct
    keys = jax.eval_shape(lambda: jnp.repeat(jax.random.key(seed)[None], num_slots))
    return Prompts(array((num_slots, prompt_room), jnp.int32), array((num_slots,), jnp.int32), keys)
