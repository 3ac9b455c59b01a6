"""Makes the update of a kept batch again: `python -m experiments.replay_batch WORKDIR [--debug_nans]`.

A run that stops at updates that are not finite keeps the last one in WORKDIR/failed_batch, guards.save_batch_at those
of a step in WORKDIR/batch_STEP_NUMBER; either directory may be given. It tells loss and gradient norm beside the
recorded ones, extremes of log-probs and ratios, and the first row, token and parameter that are not finite. The status
is 1 if loss or gradient norm are not those of the record bit for bit.
"""

import argparse
import pathlib

from deepsearch_jax.runtime import replay_batch
from experiments.command_line import complain, leave_with


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path, help="of the batch, or the workdir of the run that stopped")
    parser.add_argument("--debug_nans", action="store_true", help="name the operation that makes the first NaN")
    parser.add_argument("--num_devices", type=int, default=0, help="other than those of the run; changes rounding")
    arguments = parser.parse_args()
    try:
        found = replay_batch(
            arguments.directory, num_devices=arguments.num_devices, debug_nans=arguments.debug_nans
        )  # fmt: skip
    except (ValueError, OSError) as error:
        return complain(str(error))
    print("\n".join(found.lines))
    return 0 if found.is_equal else 1


if __name__ == "__main__":
    leave_with(main)
