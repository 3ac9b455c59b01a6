"""Planned memory against what a process really takes: an update and an iteration of the search, on this CPU.

`python -m benchmarks.planned_memory` plans each case (`runtime/planning`, chip cpu) in a process of its own, compiles
the programs there, gives back what compiling took, and then makes the state and runs an iteration of the search and an
update on rows of full length; measured is the largest resident size of each phase above the one before. Cases: the
quick start, and a decoder of the real vocabulary with two layers (6.5 GB). The last line is one JSON object: `value` is
the measured peak over the planned one that is furthest from 1, in the phase that the plan says is the fullest.
"""

import argparse
import ctypes
import dataclasses
import functools
import json
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import finish, plain, settings_of
from deepsearch_jax.policy import ModelConfig
from deepsearch_jax.runtime.device import Prompts
from deepsearch_jax.runtime.learning import Learner, sampling_params
from deepsearch_jax.runtime.memory import abstract_state
from deepsearch_jax.runtime.planning import find_chip, make_plan, planned_model
from deepsearch_jax.runtime.planning.plan import batch_shapes
from deepsearch_jax.runtime.planning.sampling import search_program
from deepsearch_jax.runtime.search_device import Problems, empty_state
from deepsearch_jax.runtime.settings import RunSettings

CASES = ("quickstart", "real_vocabulary")


def case_of(name: str) -> tuple[RunSettings, ModelConfig, int]:
    """Settings, decoder and longest prompt."""
    settings = dataclasses.replace(settings_of("quickstart", "deepsearch"), num_devices=1)
    model, prompt = planned_model(settings, "", find_chip("cpu"))
    if name == "quickstart":
        return settings, model, prompt
    settings = settings_of(
        "quickstart", "deepsearch", search__segment_length=32, search__max_depth=16, search__capacity=65,
        rollout__num_slots=4, rounds__problems_per_step=1, pack__min_rows=2, pack__row_multiple=576,
        search__num_trajectories=2, rounds__group_size=2, pack__trees="never",
        optimizer__micro_batch_rows=1, cache__page_length=512, filter__min_direct=0,
    )  # fmt: skip
    return settings, ModelConfig(num_layers=2, remat="full"), 64


def resident(kind: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the most since the last reset."""
    text = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(kind)) * 1024


def settle() -> int:
    """Gives freed memory back, resets the peak; resident bytes."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def filled(shapes: Any) -> Any:
    """A compiled maker of arrays of these shapes, all of them written."""

    def make() -> Any:
        return jax.tree.map(lambda s: jnp.full(s.shape, 0.01 if jnp.issubdtype(s.dtype, jnp.floating) else 1, s.dtype),
                            shapes)  # fmt: skip

    return jax.jit(make).lower().compile()


def measure(name: str) -> dict[str, Any]:
    """Planned and measured bytes of the phases of one case, in this process."""
    settings, model, prompt = case_of(name)
    plan = make_plan(settings, model, {}, find_chip("cpu"), prompt_length=prompt)
    learner = Learner(settings, model, None, pathlib.Path("."))
    state_shapes = abstract_state(model, settings.optimizer, None)
    copy = functools.partial(sampling_params, settings=settings, model=model)
    copy_shapes = jax.eval_shape(copy, state_shapes.params)
    (rows, update), available = plan.forms[0], plan.available
    program, num_slots, num_batches, room = search_program(
        settings, model, 1, plan.chip, prompt, available, learner.mesh
    )
    key = jax.random.key(0)
    empty = functools.partial(empty_state, program=program, num_slots=num_slots, prompt_length=room)
    make_slots = jax.jit(empty).lower(key).compile()
    make_state, make_copy = filled(state_shapes), filled(copy_shapes)
    make_batch = filled(batch_shapes(rows, None))
    prompts = Prompts(
        np.ones((num_slots, room), np.int32),
        np.full(num_slots, prompt, np.int32),
        np.asarray(jax.random.key_data(jax.random.split(key, num_slots))),
    )  # type: ignore[arg-type]
    weights = np.zeros(num_slots, np.float32)
    waiting = Problems(np.arange(num_slots, dtype=np.int32), prompts, weights)  # type: ignore[arg-type]
    search = settings.search
    outcomes = np.zeros((num_slots, search.picks_per_step, search.children_per_expansion), np.int32)

    assert plan.search is not None  # both cases grow trees
    base = settle()
    state, params = make_state(), make_copy()
    slots = [make_slots(key) for _ in range(num_batches)]
    for index, one in enumerate(slots):
        slots[index], view = plan.search.program(params, one, outcomes, waiting, None)
        jax.block_until_ready(view)
    found = {"search": resident("VmHWM") - base}
    del slots, one, view
    settle()
    batch = make_batch()
    state, metrics = update.program(state, batch)
    jax.block_until_ready(metrics)
    found["update on responses"] = resident("VmHWM") - base
    planned = {phase.name: phase.total for phase in plan.phases if phase.name in found}
    fullest = max(planned, key=lambda phase: planned[phase])
    return {
        "case": name, "parameters": model.num_parameters, "planned_mib": {k: v / 2**20 for k, v in planned.items()},
        "measured_mib": {k: v / 2**20 for k, v in found.items()}, "fullest": fullest,
        "ratios": {k: found[k] / planned[k] for k in found}, "ratio": found[fullest] / planned[fullest],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--child", action="store_true", help="measure the case in this process")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(plain(measure(options.cases[0]))))
        return
    cases = []
    for name in options.cases:
        command = [sys.executable, "-m", "benchmarks.planned_memory", "--child", "--cases", name]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        cases.append(json.loads(run.stdout.splitlines()[-1]))
        print(json.dumps(cases[-1]), flush=True)
    worst = max((case["ratio"] for case in cases), key=lambda ratio: abs(ratio - 1))
    finish("planned_memory", worst, "measured peak per planned byte", worst, cases=cases)


if __name__ == "__main__":
    main()
