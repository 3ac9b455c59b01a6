"""Writes the policy of a run as a Hugging Face directory: `python -m experiments.export WORKDIR --out DIR`.

Reads the newest checkpoint (`--step N` or `--step best` another one); the run may be going on. Adapters are merged.
"""

import argparse
import pathlib

from deepsearch_jax.runtime import DTYPES, check_new, export_policy, load_saved
from experiments.command_line import complain, leave_with, warn


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.export", description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path, help="of the run")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="new directory for the policy")
    parser.add_argument("--step", default="", help="training step of a kept checkpoint, or 'best'; default: the newest")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; default: as they were trained")
    options = parser.parse_args(arguments)
    try:
        check_new(options.out)
        policy = load_saved(options.workdir, options.step, warn)
        export_policy(
            options.out, policy.model, policy.params, policy.tokenizer, source=policy.source, line_end=policy.line_end,
            dtype=options.dtype,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        return complain(str(error))
    print(f"{options.out}: {policy.model.architecture} after {policy.step} training steps")
    return 0


if __name__ == "__main__":
    leave_with(main)
