"""Plans a run before it runs: does it fit, what does it exchange, how long does a step take.

`python -m experiments.plan --config=experiments/configs/NAME.py[:variant] --mesh=data:2,fsdp:8 --chip=h100` compiles
the update, the search and the calls for direct samples ahead of time on virtual devices, for shapes alone, and prints
memory, operations, collectives and expected times of one device. The last line is one JSON object. A run that cannot
fit ends with status 1 and the settings to change. Of a model directory only config.json is read; --architecture names a
known one instead.
"""

import functools
import json
import math
import os
import sys

AXES = ("data", "fsdp", "tensor")


def parse_mesh(text: str) -> dict[str, int]:
    """{"data": 2, "fsdp": 8, "tensor": 1} of "data:2,fsdp:8".

    Raises:
      ValueError: another axis, one twice, or no whole number.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition(":")
        if axis not in AXES or axis in sizes or not size.isdigit() or int(size) < 1:
            raise ValueError(f"mesh={text!r} is not AXIS:DEVICES,... with each of {', '.join(AXES)} once at most")
        sizes[axis] = int(size)
    return {axis: sizes.get(axis, 1) for axis in AXES}


def _prepare() -> None:
    """Asks for virtual devices, which must be done before jax is imported; a bad mesh is complained of later."""
    text = next((argument.split("=", 1)[1] for argument in sys.argv if argument.startswith("--mesh=")), "")
    try:
        count = math.prod(parse_mesh(text).values())
    except ValueError:
        count = 1
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"


if __name__ == "__main__":
    _prepare()

from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from deepsearch_jax.config import from_config  # noqa: E402
from deepsearch_jax.runtime import RunSettings  # noqa: E402
from deepsearch_jax.runtime.planning import (  # noqa: E402
    ARCHITECTURES,
    explain,
    find_chip,
    make_plan,
    planned_model,
    render,
    to_json,
)
from experiments.command_line import complain, parse  # noqa: E402

if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_file("config", help_string="As in experiments.run.", lock_config=True)
    MESH = flags.DEFINE_string(
        "mesh", None, "Devices by axis, data:2,fsdp:8[,tensor:1]; takes the place of config.mesh."
    )
    CHIP = flags.DEFINE_string("chip", "h100", "h100, h200, a100-80, v5e, v5p, v6e, or cpu (this machine).")
    ARCHITECTURE = flags.DEFINE_string("architecture", "", f"In place of model.path: {', '.join(ARCHITECTURES)}.")
    FRACTION = flags.DEFINE_float("memory_fraction", 0.0, "Share of a chip's memory that programs get; 0 = the usual.")


def main(argv: list[str]) -> int:
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        return complain(f"unknown argument {argv[1]!r}; settings are given as --config.NAME=VALUE")
    try:
        mesh, chip = parse_mesh(str(MESH.value)), find_chip(CHIP.value, FRACTION.value)
        config = CONFIG.value.to_dict()
        if ARCHITECTURE.value:
            config["model"]["path"] = f"(architecture {ARCHITECTURE.value})"
        settings = from_config(RunSettings, config)
        model, prompt_length = planned_model(settings, ARCHITECTURE.value, chip)
        plan = make_plan(settings, model, mesh, chip, prompt_length=prompt_length)
    except (ValueError, OSError) as error:
        return complain(str(error))
    print(render(plan), flush=True)
    if not plan.fits:
        print(f"error: {explain(plan)}", file=sys.stderr, flush=True)
    print(json.dumps(to_json(plan)))
    return 0 if plan.fits else 1


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "mesh"])
    app.run(main, flags_parser=functools.partial(parse, RunSettings))
