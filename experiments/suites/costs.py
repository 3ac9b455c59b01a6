"""The points that `full` chose, on its five seeds again, for their CPU seconds: about an hour on two cores.

CPU seconds can be compared only between runs that had the machine alike: two busy threads of one core slow each other
down by up to half. The runs of `full` were spread over days and had company or none; these are made by two processes
that are held to a core each (`taskset`), both busy to the end. Starts are made anew by the same recipes, and need not
be the same to a bit.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.compare.suite import Method, Suite
from experiments.suites import full

# (learning rate, problems an update, temperature or that of the method) of each setting; `docs/results.md` has them.
_CHOSEN: Mapping[str, Mapping[str, tuple[float, int, float | None]]] = {
    "best first": {"sparse": (4e-4, 0, None), "plateau": (2e-4, 8, None), "moderate": (2e-4, 8, None)},
    "grpo": {"sparse": (2e-4, 8, 0.7), "plateau": (2e-4, 8, 1.3), "moderate": (2e-4, 8, 1.0)},
    "dapo": {"sparse": (4e-4, 8, 0.7), "plateau": (2e-4, 8, 1.3), "moderate": (4e-4, 8, 1.0)},
}


def _at_its_points(method: Method) -> Method:
    def overrides(rate: float, problems: int, temperature: float | None) -> dict[str, Any]:
        values = {"optimizer.learning_rate": rate, "rounds.problems_per_update": problems}
        return values if temperature is None else {**values, "rollout.temperature": temperature}

    points = {setting: overrides(*point) for setting, point in _CHOSEN[method.name].items()}
    return dataclasses.replace(method, grid=None, by_setting=points)


def get_suite() -> Suite:
    suite = full.get_suite()
    return dataclasses.replace(
        suite,
        name="costs",
        title="The points that suite `full` chose, from starts made anew, by two processes with a core each from the "
        "first run to the last: here CPU seconds can be compared, in `full` they cannot.",
        settings=("sparse", "plateau", "moderate"),
        methods=tuple(_at_its_points(method) for method in suite.methods),
        grid={},
    )
