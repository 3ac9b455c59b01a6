"""What a program says of itself once it is compiled."""

import dataclasses
import math
import time
from typing import Any

import jax

from deepsearch_jax.runtime.planning.hlo import Collectives, read_collectives


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
