"""Keeps sampled trees of a run in its workdir, within a limit on the disk."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deepsearch_jax.data.degenerate import DegenerateSettings, is_degenerate
from deepsearch_jax.data.tokenizers import Tokenizer
from deepsearch_jax.runtime.responses import Group, Response
from deepsearch_jax.runtime.tree_records import (
    FATES,
    FOLDER,
    Lesson,
    Words,
    path_of,
    record_of,
    recorded_steps,
    write_trees,
)
from deepsearch_jax.types import Outcome


@dataclasses.dataclass(frozen=True)
class RecordSettings:
    """Which trees a run keeps for the viewer (`python -m experiments.view`); nothing that is computed depends on it.

    Attributes:
      every_steps: training steps from one that is recorded to the next; the first one is. 0 records nothing.
      problems: problems recorded of such a step: searched ones first, then groups of direct samples.
      max_mib: size of WORKDIR/trees. Beyond it recorded steps are thinned out evenly; the first and the newest stay.
    """

    every_steps: int = 10
    problems: int = 2
    max_mib: float = 64.0

    def __post_init__(self) -> None:
        for name, least in (("every_steps", 0), ("problems", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"record.{name}={getattr(self, name)} must be at least {least}")
        if not self.max_mib > 0:
            raise ValueError(f"record.max_mib={self.max_mib} must be above 0; record.every_steps=0 records nothing")


class Recorder:
    """Collects what a step says of some of its problems, and writes it when the step is done."""

    def __init__(
        self, settings: RecordSettings, degenerate: DegenerateSettings, tokenizer: Tokenizer, workdir: pathlib.Path,
        say: Callable[[str], None], *, is_owner: bool = True,
    ):  # fmt: skip
        """
        Args:
          degenerate: says which responses the update leaves out.
          say: takes a line for the user.
          is_owner: False in processes that do not write.
        """
        self._settings, self._degenerate, self._say, self._is_owner = settings, degenerate, say, is_owner
        self._folder, self._words = workdir / FOLDER, Words(tokenizer)
        self._step = 0
        self._lessons: dict[str, tuple[Group, list[np.ndarray]]] = {}

    def begin(self, step: int) -> int:
        """Starts the step of this number; returns how many problems' trees are wanted whole."""
        self._step, self._lessons = step, {}
        return self._settings.problems if self._is_due else 0

    @property
    def _is_due(self) -> bool:
        every = self._settings.every_steps
        return self._is_owner and every > 0 and (self._step - 1) % every == 0

    def learnt(self, groups: Sequence[Group], advantages: Sequence[list[np.ndarray]]) -> None:
        """Takes note of what the update is about to learn from."""
        if self._is_due:
            self._lessons = {g.problem.id: (g, of_nodes) for g, of_nodes in zip(groups, advantages, strict=True)}

    def write(self, groups: Sequence[Group], facts: dict[str, Any]) -> None:
        """Writes the trees of the step, if it is one to be recorded; a full disk costs the record, not the run.

        Args:
          groups: all that the step has drawn.
          facts: plain values that go with every tree of the step.
        """
        chosen = [group for group in groups if group.tree is not None or _is_direct(group)]
        chosen = sorted(chosen, key=lambda group: group.tree is None)[: self._settings.problems]
        if not self._is_due or not chosen:
            return
        records = [
            record_of(group, self._lesson(group), {"step": self._step, **facts}, self._words) for group in chosen
        ]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_trees(path_of(self._folder, self._step), records)
            self._thin_out()
        except OSError as error:
            self._say(f"warning: the trees of step {self._step} are not recorded ({error.strerror})")
        self._lessons = {}

    def _lesson(self, group: Group) -> Lesson:
        kept, of_nodes = self._lessons.get(group.problem.id, (None, []))
        advantages = {id(r): a for r, a in zip(kept.responses, of_nodes, strict=True)} if kept else {}
        nothing = np.zeros(0, np.float32)
        left = {r.reward for r in group.responses if not self._is_left_out(r)}
        fates = []
        for response in group.responses:
            if id(response) in advantages:
                fate = "trained"
            elif self._is_left_out(response):
                fate = "degenerate"
            else:
                fate = "no signal" if len(left) == 1 else "not needed"
            fates.append(FATES.index(fate))
        return Lesson(fates, [advantages.get(id(response), nothing) for response in group.responses])

    def _is_left_out(self, response: Response) -> bool:
        return response.outcome != Outcome.CORRECT and is_degenerate(response.text, self._degenerate)

    def _thin_out(self) -> None:
        """Deletes recorded steps until the rest fits: each time the one whose neighbours are nearest to each other."""
        limit, steps = self._settings.max_mib * 2**20, recorded_steps(self._folder)
        sizes = {step: path_of(self._folder, step).stat().st_size for step in steps}
        while sum(sizes[step] for step in steps) > limit:
            if len(steps) > 2:
                gaps = [steps[i + 1] - steps[i - 1] for i in range(1, len(steps) - 1)]
                gone = steps[1 + int(np.argmin(gaps))]
            else:
                gone = steps[0]
                if len(steps) == 1:
                    self._say(
                        f"warning: the trees of step {gone} take {sizes[gone] / 2**20:.1f} MiB and are not kept; raise "
                        f"record.max_mib={self._settings.max_mib:g} or lower record.problems"
                    )
            steps.remove(gone)
            path_of(self._folder, gone).unlink()


def _is_direct(group: Group) -> bool:
    """Whether the group holds whole responses; another process may have searched it and kept its tree."""
    return bool(group.responses) and all(
        response.origin != "search" and len(response.segment_lengths) == 1 for response in group.responses
    )
