"""What a suite compares, and the cells (single runs) it is made of."""

import dataclasses
import difflib
import importlib
import importlib.util
import itertools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from deepsearch_jax.config import from_config, setting_names
from deepsearch_jax.runtime import RunSettings
from deepsearch_jax.runtime.workdir import write_json
from experiments.compare.claims import MEASURES, Claim
from experiments.settings import Setting, all_settings

Overrides = Mapping[str, Any]  # dotted name of a setting -> value
KINDS = ("train", "frozen", "starts")


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
      name: in tables and directories.
      overrides: what it changes in the config of a setting.
      is_baseline: whether the suite's method of interest is compared with it.
      grid: replaces the suite's grid; {} has one point and is not tuned.
      by_setting: further overrides in some settings, by name.
    """

    name: str
    overrides: Overrides = dataclasses.field(default_factory=dict)
    is_baseline: bool = False
    grid: Mapping[str, tuple[Any, ...]] | None = None
    by_setting: Mapping[str, Overrides] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Suite:
    """Methods x settings x seeds x grid.

    Attributes:
      name: of the suite.
      settings: names of experiments/settings, or of `own_settings`.
      own_settings: settings that a suite brings along.
      methods: what is compared; `ours` names the one whose ratio to the best baseline is given.
      grid: dotted setting -> values; every method is tuned over the product, on validation problems.
      grid_seeds: seeds that every grid point runs on; the best point of a method then runs on `seeds`.
      seeds: of the final comparison.
      levels: accuracies (validation pass@1) whose cost is told.
      select_by: the cost that a grid point is chosen by, see `results.tuning_score`.
      overrides: of all methods: the budget of a run above all.
      stop_at: validation pass@1 at which a run ends, the same for all methods; 0 trains to the end of the budget.
      test_samples: responses to each test problem; half of those of the start choose the hard problems.
      kind: "train"; "frozen", which searches with the policies before RL and trains nothing; or "starts", which only
        measures those policies.
      title: one line for the report.
      claims: what the suite is to decide, made before it runs.
    """

    name: str
    settings: tuple[str, ...]
    methods: tuple[Method, ...]
    ours: str
    title: str = ""
    grid: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    grid_seeds: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)
    levels: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7)
    select_by: str = "generated_tokens"
    overrides: Overrides = dataclasses.field(default_factory=dict)
    stop_at: float = 0.0
    test_samples: int = 16
    kind: str = "train"
    own_settings: tuple[Setting, ...] = ()
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        for name in self.settings:
            self.setting(name)
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names) or self.ours not in names:
            raise ValueError(f"suite {self.name!r}: ours={self.ours!r} must be one of the distinct methods {names}")
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is not known; choose one of {', '.join(KINDS)}")
        if self.test_samples < 2 or self.test_samples % 2:
            raise ValueError(f"test_samples={self.test_samples} must be even and at least 2: one half chooses problems")
        for claim in self.claims:
            self._check_claim(claim, names)
        if not self.levels or sorted(set(self.levels)) != list(self.levels):
            raise ValueError(f"levels={self.levels} must rise")
        if not self.seeds or not self.grid_seeds:
            raise ValueError(f"seeds={self.seeds} and grid_seeds={self.grid_seeds} must each hold a seed")
        valid = set(setting_names(RunSettings))
        for method in self.methods:
            more = (key for some in method.by_setting.values() for key in some)
            for key in (*self.overrides, *self.grid, *method.overrides, *(method.grid or {}), *more):
                if key not in valid:
                    near = difflib.get_close_matches(key, valid, n=1)
                    hint = f"; did you mean {near[0]}?" if near else ""
                    raise ValueError(f"{key!r} of suite {self.name!r} is not a setting{hint}")

    def _check_claim(self, claim: Claim, methods: list[str]) -> None:
        told = f"claim {claim.text!r} of suite {self.name!r}"
        if missing := {claim.better, claim.worse} - set(methods):
            raise ValueError(f"{told} names no method of it: {sorted(missing)}")
        if missing := set(claim.settings) - set(self.settings):
            raise ValueError(f"{told} names no setting of it: {sorted(missing)}")
        if MEASURES[claim.measure].kind != self.kind:
            of_kind = ", ".join(name for name, measure in MEASURES.items() if measure.kind == self.kind)
            raise ValueError(f"{told}: measure={claim.measure!r} is not of kind={self.kind!r}; choose one of {of_kind}")

    def setting(self, name: str) -> Setting:
        """Raises: ValueError for a setting that does not exist."""
        known = all_settings() | {setting.name: setting for setting in self.own_settings}
        if name not in known:
            raise ValueError(f"setting {name!r} of suite {self.name!r} is not known; choose of {', '.join(known)}")
        return known[name]

    def method(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)

    def points(self, method: Method) -> list[dict[str, Any]]:
        """The grid of a method, as overrides."""
        grid = self.grid if method.grid is None else method.grid
        return [dict(zip(grid, values)) for values in itertools.product(*grid.values())]

    def is_tuned(self, method: Method) -> bool:
        return len(self.points(method)) > 1


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run: a setting, a method, a grid point and a seed."""

    suite: Suite
    setting: Setting
    method: Method
    point: tuple[tuple[str, Any], ...]
    seed: int

    @property
    def point_name(self) -> str:
        """For example `learning_rate=0.0006,temperature=1.0`; `default` where nothing is tuned."""
        return ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.point) or "default"

    @property
    def name(self) -> str:
        return f"{self.setting.name}/{self.method.name}/{self.point_name}/seed-{self.seed}"

    def directory(self, workdir: pathlib.Path) -> pathlib.Path:
        return workdir / "runs" / self.name

    def config(self, start: pathlib.Path | None) -> ConfigDict:
        """The whole config of the run, which starts from the policy in `start`; None leaves the path empty."""
        config = seeded(self.setting, self.seed)
        for overrides in (
            self.suite.overrides, self.method.overrides, self.method.by_setting.get(self.setting.name, {}),
            dict(self.point), {"evaluation.stop_at": self.suite.stop_at},
        ):  # fmt: skip
            set_all(config, overrides)
        if self.setting.average_last:
            config.task.arithmetic.warm_start_stages = ()
            config.task.countdown.warm_start_steps = 0
            config.task.text.warm_start_steps = 0
        if start is not None:
            config.model.path = str(start)
        return config


def seeded(setting: Setting, seed: int) -> ConfigDict:
    """A setting's config with a seed for everything: problems, warm start, training."""
    config = setting.build()
    config.seed = config.task.arithmetic.seed = config.task.countdown.seed = seed
    return config


def set_all(config: ConfigDict, overrides: Overrides) -> None:
    """Sets dotted names."""
    for key, value in overrides.items():
        *groups, last = key.split(".")
        target = config
        for group in groups:
            target = target[group]
        target[last] = value


def settings_of(config: ConfigDict) -> RunSettings:
    return from_config(RunSettings, config.to_dict())


def grid_cells(suite: Suite) -> list[Cell]:
    """Runs that choose the grid points: all of a tuned method, none of one with a single point."""
    return [
        Cell(suite, suite.setting(name), method, tuple(point.items()), seed)
        for seed in suite.grid_seeds
        for name in suite.settings
        for method in suite.methods
        if suite.is_tuned(method)
        for point in suite.points(method)
    ]


def final_cells(suite: Suite, chosen: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[Cell]:
    """Runs of the comparison itself; `chosen` has the point of each (setting, method)."""
    return [
        Cell(suite, suite.setting(name), method, tuple(chosen[name, method.name].items()), seed)
        for seed in suite.seeds
        for name in suite.settings
        for method in suite.methods
        if (name, method.name) in chosen
    ]


def load_suite(name: str) -> Suite:
    """The suite of experiments/suites/NAME.py, or of a file. Raises: ValueError if there is none."""
    folder = pathlib.Path(__file__).resolve().parent.parent / "suites"
    known = sorted(path.stem for path in folder.glob("*.py") if "def get_suite(" in path.read_text("utf-8"))
    if name.endswith(".py"):
        path = pathlib.Path(name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.exists():
            raise ValueError(f"suite file {name} does not exist")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.get_suite()
    if name not in known:
        raise ValueError(f"suite {name!r} is not known; choose one of {', '.join(known)}, or give a .py file")
    return importlib.import_module(f"experiments.suites.{name}").get_suite()


def write_suite(workdir: pathlib.Path, name: str) -> None:
    """Notes which suite a workdir holds. Raises: ValueError if it holds another one."""
    path = workdir / "suite.json"
    workdir.mkdir(parents=True, exist_ok=True)
    name = str(pathlib.Path(name).resolve()) if name.endswith(".py") else name
    if not path.exists():
        write_json(path, {"suite": name})
    elif (other := json.loads(path.read_text())["suite"]) != name:
        raise ValueError(f"workdir {workdir} holds suite {other!r}, not {name!r}; choose another workdir")


def suite_in(workdir: pathlib.Path) -> Suite:
    """The suite a workdir holds. Raises: ValueError if there is none."""
    path = workdir / "suite.json"
    if not path.exists():
        raise ValueError(f"{workdir} holds no suite (no suite.json); give workdirs of experiments.compare")
    return load_suite(json.loads(path.read_text())["suite"])
