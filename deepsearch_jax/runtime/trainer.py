"""A run from start to end: warm start, rounds of filter and training steps, evaluations, checkpoints, report.

Everything that happens follows from (settings, arrays, position): a step draws its keys from counters, so a run that is
killed and started again repeats the steps after its last checkpoint exactly.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from deepsearch_jax.cache import init_cache, is_hard, shard_cache
from deepsearch_jax.data.iterator import ProblemIterator
from deepsearch_jax.data.problems import Problem, fingerprint, fingerprint_tokens
from deepsearch_jax.policy import ModelConfig
from deepsearch_jax.runtime.alarms import AlarmStop, check_alarms
from deepsearch_jax.runtime.checkpoints import CheckpointError, Checkpoints, shapes_of
from deepsearch_jax.runtime.compile_cache import CompileCount
from deepsearch_jax.runtime.confidence import Evidence, entropy_weight, evidence_of
from deepsearch_jax.runtime.debug import hot_steps
from deepsearch_jax.runtime.device import problem_keys
from deepsearch_jax.runtime.evaluate import summarise
from deepsearch_jax.runtime.filtering import candidate_pool, choose_problems, draw_candidates, forget
from deepsearch_jax.runtime.imported import import_solutions
from deepsearch_jax.runtime.interrupt import Interrupted, StopRequest
from deepsearch_jax.runtime.learning import Learner
from deepsearch_jax.runtime.lengths import length_metrics
from deepsearch_jax.runtime.memory import settle_pool
from deepsearch_jax.runtime.metrics import MetricsWriter, SilentMetrics
from deepsearch_jax.runtime.processes import SharedSampler, is_first, rollout_share
from deepsearch_jax.runtime.progress import RemainingTime, Reporter, peak_memory_gib, step_line
from deepsearch_jax.runtime.record import Recorder
from deepsearch_jax.runtime.rollout_metrics import rollout_metrics
from deepsearch_jax.runtime.rollout_step import StepRollouts, sample_step
from deepsearch_jax.runtime.rollouts import Group, Purpose, Sampler
from deepsearch_jax.runtime.settings import RunSettings
from deepsearch_jax.runtime.state import Position, RunArrays, as_saved, placed, refuse_other_data
from deepsearch_jax.runtime.tasks import Task
from deepsearch_jax.runtime.workdir import refuse_other_config
from deepsearch_jax.training import committed

_WARM_START_CHUNK = 50  # supervised steps between two looks at the clock and at stop requests
_FILTER_CHUNK = 16  # batches of rollout.num_slots problems between two such looks of a filter
_WARM_START_PER_STEP = 50  # supervised steps that count as one training step for checkpoint.every_steps


class Trainer:
    """One run in one workdir."""

    def __init__(
        self, settings: RunSettings, task: Task, model: ModelConfig, params: Any, workdir: pathlib.Path, *,
        mesh: Mesh | None, reporter: Reporter, stop: StopRequest, rollout_mesh: Mesh | None = None,
    ):  # fmt: skip
        """Starts anew or from the newest checkpoint of the workdir.

        Args:
          mesh: all devices of the run.
          rollout_mesh: those of this process, where there are several; one process rolls out on `mesh`.

        Raises:
          ValueError: settings, problems or frozen weights are not those of the run being resumed, or sizes do not fit.
        """
        self.settings, self.task, self.workdir, self.reporter, self._stop = settings, task, workdir, reporter, stop
        if not task.eval_problems:
            raise ValueError(
                f"task.name={settings.task.name!r} has no held-out problems, on which a run is judged; give files of "
                "them (task.math.evaluation.paths) or hold some out (task.math.num_heldout)"
            )
        self.problems: list[Problem] = list(task.train_problems)
        self._keys = np.array([problem.key for problem in self.problems], np.int32)
        self._run_key = jax.random.key(settings.seed)
        self._checkpoints = Checkpoints(workdir, settings.checkpoint, reporter.line)
        is_alone = jax.process_count() == 1
        rollout_mesh = mesh if is_alone else rollout_mesh
        self._learner = Learner(settings, model, mesh, workdir, rollout_mesh=rollout_mesh)
        self._sampler = (Sampler if is_alone else SharedSampler)(
            task, model, settings.search,
            settle_pool(
                rollout_share(settings.rollout), model, settings.optimizer, self._learner.mesh,
                is_frozen=settings.lora.rank > 0,
            ),
            run_key=self._run_key,
            # Processes look for stops together, and only where all of them come by.
            mesh=rollout_mesh, check_stop=stop.check if is_alone else lambda: None, advance=reporter.advance,
        )  # fmt: skip
        self._sampler.check_fits(max(settings.search.max_response_length, settings.evaluation.max_length))
        self.arrays = self._initial_arrays(params, rollout_mesh)
        if self._learner.mesh is None:
            self.arrays = committed(self.arrays)
        self.position = Position(
            fingerprint=fingerprint(self.problems), held_out_fingerprint=fingerprint(task.eval_problems),
            prompts=fingerprint_tokens(map(task.prompt, (*self.problems, *task.eval_problems))),
            base=self._learner.base_fingerprint,
        )  # fmt: skip
        if self._checkpoints.latest is not None:
            self._resume(params)
        elif paths := settings.cache.import_paths:
            cache = import_solutions(self.arrays.cache, paths, task, self.problems, reporter.line)
            self.arrays = dataclasses.replace(self.arrays, cache=cache)
        self._sampler.generated_tokens = self.position.generated_tokens
        make_metrics = MetricsWriter if is_first() else SilentMetrics
        self._metrics = make_metrics(
            workdir, self.position.num_rows, settings.loggers, config=dataclasses.asdict(settings), note=reporter.line
        )
        self._recorder = Recorder(
            settings.record, settings.degenerate, task.tokenizer, workdir, reporter.line, is_owner=is_first()
        )
        self._saved = dataclasses.replace(self.position)
        self._rollout_params: Any = None
        self._compilations = CompileCount()

    def _resume(self, params: Any) -> None:
        """Arrays and position of the newest checkpoint in place of those that the run would start with.

        Args:
          params: what the arrays were made of.
        Raises:
          ValueError: it was made with other settings, problems or frozen weights.
        """
        settings, workdir, now = self.settings, self.workdir, self.position
        record = self._checkpoints.restore_record()
        # config.json may have been removed or written by hand; what the arrays were made with stands beside them.
        wanted = json.loads(json.dumps(dataclasses.asdict(settings)))
        refuse_other_config(record["config"], wanted, f"checkpoint {self._checkpoints.latest} in {workdir}")
        self.position = Position(**record["position"])
        refuse_other_data(self.position, now, settings, workdir)
        self.arrays = self._restore_in_place_of(self.arrays, params if not settings.lora.rank else None)
        self.reporter.line(f"resumed at step {self.position.step} (checkpoint {self._checkpoints.latest})")

    def _restore_in_place_of(self, arrays: RunArrays, params: Any) -> RunArrays:
        """The arrays of the newest checkpoint, laid out like `arrays`.

        What the run would have started with goes first: nothing is in memory twice.
        Args:
          params: those that `arrays` were made of; None where they are still needed.
        """
        like = shapes_of(as_saved(arrays))
        shardings = jax.tree.map(lambda leaf: leaf.sharding, arrays)
        for leaf in jax.tree.leaves((arrays, params)):
            if isinstance(leaf, jax.Array) and not leaf.is_deleted():
                leaf.delete()
        return jax.tree.map(placed, self._checkpoints.restore_arrays(like), shardings)

    def _initial_arrays(self, params: Any, mesh: Mesh | None) -> RunArrays:
        search, cache = self.settings.search, self.settings.cache
        pages = -(-search.max_response_length // cache.page_length)
        if self.settings.uses_cache:
            solutions = init_cache(cache.capacity, cache.paths_per_problem, pages, cache.page_length)
            solutions = solutions if mesh is None else shard_cache(solutions, mesh)
        else:
            solutions = init_cache(1, 1, 1, 1)  # nobody looks at it
        train = self._learner.init(params)
        return RunArrays(
            train=train,
            reference=self._learner.reference(train),
            cache=solutions,
            num_correct=jnp.full(len(self.problems), -1, jnp.int32),
            num_samples=jnp.zeros(len(self.problems), jnp.int32),
            subset=jnp.ones(len(self.problems), bool),
        )  # fmt: skip

    def run(self) -> None:
        """Runs to the end, or until a stop is asked for; either way the state is saved.

        Raises:
          Interrupted: a stop was asked for and the state of the last finished step is on disk.
          AlarmStop: an alarm was raised, alarms.stop is set, and the state of that step is on disk.
        """
        try:
            self._warm_start()
            rounds, total = self.settings.rounds, None
            # A filter that was stopped ends first, as it would have, also where it has spent the budget.
            while self.position.round_index < rounds.num_rounds and (self.position.filtered or not self._is_over()):
                self._choose_problems()
                steps = rounds.steps_per_round or self._batches.batches_per_epoch
                total = total or RemainingTime(
                    (rounds.num_rounds - self.position.round_index) * steps + self.position.step
                    - self.position.step_in_round, self.position.step,
                )  # fmt: skip
                self.reporter.expect(total, rounds.num_rounds)
                while self.position.step_in_round < steps:
                    self._evaluate_if_due()
                    if self._is_over():
                        break
                    self._step(total)
                else:
                    self._end_round()
            self._evaluate_if_due(is_last=True)
            self._save(wait=True)
        except Interrupted as interrupted:
            self.reporter.line(f"{interrupted}: saving step {self.position.step}")
            self._save(wait=True)
            raise

    def policy_params(self, dtype: str | None = None) -> Any:
        """The parameters of the policy as it is now; see `Learner.policy_params`."""
        return self._learner.policy_params(self.arrays.train, dtype)

    def close(self) -> None:
        """Closes the files. What had to be on disk is there since `run` ended, or `run` has said why it is not."""
        for close in (self._checkpoints.close, self._metrics.close):
            try:
                close()
            except (OSError, CheckpointError) as error:
                self.reporter.line(f"closing the files of {self.workdir}: {error}")

    # Phases. Each one leaves `arrays` and `position` at a boundary only when it is complete.

    def _warm_start(self) -> None:
        if self.task.warm_start(self.position.warm_start_step) is None:
            return
        with self.reporter.phase("warm start"), hot_steps(self.settings.debug):
            begin = self.position.warm_start_step
            last_loss: Any = np.float32(np.nan)
            while (item := self.task.warm_start(self.position.warm_start_step)) is not None:
                self._pause_in_warm_start(last_loss)
                batch, learning_rate = item
                train, last_loss = self._learner.supervised(self.arrays.train, batch, learning_rate)
                self.arrays = dataclasses.replace(self.arrays, train=train)
                self.position.warm_start_step += 1
        self._learner.check_supervised(self.arrays.train, self.position.warm_start_step)
        train = self._learner.fresh_optimizer(self.arrays.train)
        self.arrays = dataclasses.replace(self.arrays, train=train, reference=self._learner.reference(train))
        times, loss = self.reporter.take_times(), float(jax.device_get(last_loss))
        steps = self.position.warm_start_step
        self._write("warm_start", {"loss": loss, "warm_start_steps": steps}, times)
        self.reporter.line(f"warm start: {steps - begin} supervised steps, {sum(times.values()):.0f}s, loss {loss:.3f}")
        self._save(wait=False)

    def _pause_in_warm_start(self, loss: jax.Array) -> None:
        """Progress, stop requests and checkpoints between two supervised steps, now and then."""
        step = self.position.warm_start_step
        if step % _WARM_START_CHUNK == 0:
            self.reporter.advance(step, f"loss {float(jax.device_get(loss)):.3f}")
            self._stop.check()
            self._learner.check_supervised(self.arrays.train, step)
            if step > self._saved.warm_start_step and self._checkpoints.is_late():
                self._save(wait=False)
        if step and step % (_WARM_START_PER_STEP * self.settings.checkpoint.every_steps) == 0:
            self._save(wait=False)

    def _choose_problems(self) -> None:
        """The problems of the round: all, or those that direct samples of the present policy rarely solve (Eq. 8-9)."""
        rounds = self.settings.rounds
        if not self.position.is_filtered:
            if rounds.filter_problems and (rounds.filter_first_round or self.position.round_index > 0):
                self._filter()
            self.position.is_filtered = True
            self.position.iterator = {}
            self._save(wait=False)
        chosen = np.flatnonzero(np.asarray(self.arrays.subset))
        self._batches = ProblemIterator(
            chosen, batch_size=rounds.problems_per_step, seed=self.settings.seed,
            round_index=self.position.round_index, fingerprint=self.position.fingerprint,
            components=[self.problems[i].component for i in chosen], weights=self.task.mixture,
        )  # fmt: skip
        if self.position.iterator:
            self._batches.set_state(self.position.iterator)

    def _filter(self) -> None:
        settings, position = self.settings, self.position
        counters = (position.round_index, 0)
        pool = candidate_pool(np.asarray(self.arrays.subset), settings.rounds)
        candidates = draw_candidates(pool, settings.rounds, settings.seed, position.round_index)
        num_samples = settings.filter.num_samples
        with self.reporter.phase("filter", len(candidates)), hot_steps(settings.debug):
            while (done := len(position.filtered)) < len(candidates):
                part = candidates[done : done + _FILTER_CHUNK * settings.rollout.num_slots]
                self._sampler.num_before = done
                groups = self._sampler.direct(
                    self._sampling_params(), [self.problems[i] for i in part], num_samples, Purpose.FILTER, counters
                )
                known_so_far = Evidence(**position.filter_evidence)
                position.filter_evidence = dataclasses.asdict(known_so_far.plus(evidence_of(groups)))
                position.filtered = position.filtered + [group.num_correct for group in groups]
                position.generated_tokens = self._sampler.generated_tokens
                self._pause_in_filter(len(candidates))
        self._sampler.num_before = 0
        self._learn_confidence(Evidence(**position.filter_evidence))
        correct, position.filtered, position.filter_evidence = position.filtered, [], {}
        key = problem_keys(self._run_key, int(Purpose.EASY), counters, np.zeros(1, np.int32))[0]
        known = np.asarray(self.arrays.num_correct), np.asarray(self.arrays.num_samples)
        chosen = choose_problems(key, self._keys, pool, candidates, correct, known, settings.filter)
        if chosen.is_all:
            self.reporter.line("filter: no candidate is hard; the round takes all of them")
        # Paths of problems that pass leave the cache, also of those that stay in the round as its easy share (Eq. 10).
        cache = forget(self.arrays.cache, chosen.passed) if settings.uses_cache else self.arrays.cache
        self.arrays = dataclasses.replace(
            self.arrays, num_correct=jnp.asarray(chosen.num_correct), num_samples=jnp.asarray(chosen.num_samples),
            subset=jnp.asarray(chosen.subset), cache=cache,
        )  # fmt: skip
        rate = float(sum(correct) / (len(candidates) * num_samples))
        values = {
            "round": position.round_index, "candidates": len(candidates), "hard": chosen.num_hard,
            "subset": int(chosen.subset.sum()), "success_rate": rate,
            "cached": int((np.asarray(cache.problem_ids) >= 0).sum()), "generated_tokens": position.generated_tokens,
        }  # fmt: skip
        times = self.reporter.take_times()
        self._write("filter", values, times)
        self.reporter.line(
            f"round {position.round_index}: {values['hard']} of {len(candidates)} problems are hard "
            f"(success rate {rate:.3f}), {values['cached']} cached, {sum(times.values()):.0f}s"
        )

    def _pause_in_filter(self, num_candidates: int) -> None:
        """Stop requests and checkpoints between two parts of a filter: verdicts that are known need not come again."""
        if len(self.position.filtered) < num_candidates:
            self._stop.check()
            if self._checkpoints.is_late():
                self._save(wait=False)

    def _evaluate_if_due(self, *, is_last: bool = False) -> None:
        every, position = self.settings.evaluation.every_steps, self.position
        is_due = is_last or position.step == 0 or (every > 0 and position.step % every == 0)
        if not is_due or position.evaluated_step == position.step:
            return
        evaluation = self.settings.evaluation
        problems = list(self.task.eval_problems)[: evaluation.num_problems or None]
        before = self._sampler.generated_tokens
        with self.reporter.phase("evaluate", len(problems)), hot_steps(self.settings.debug):
            groups = self._sampler.direct(
                self._sampling_params(), problems, evaluation.num_samples, Purpose.EVALUATION, (0, 0),
                temperature=evaluation.temperature, max_length=evaluation.max_length or None,
            )  # fmt: skip
        self._sampler.generated_tokens = before  # evaluation is not part of the training's token budget
        values = {**summarise(groups), "generated_tokens": position.generated_tokens}
        times = self.reporter.take_times()
        position.evaluated_step, position.held_out = position.step, values["pass_at_1"]
        position.has_reached = 0 < evaluation.stop_at <= values["pass_at_1"]
        self._write("eval", values, times)
        self.reporter.line(
            f"step {position.step}: held-out pass@1 {values['pass_at_1']:.3f} "
            f"[{values['pass_at_1_low']:.3f}, {values['pass_at_1_high']:.3f}] on {values['num_problems']} problems, "
            f"{sum(times.values()):.0f}s"
        )
        if self.settings.checkpoint.keep_best:
            self._save(wait=False)  # these parameters with what they are worth

    def _step(self, remaining: RemainingTime) -> None:
        position, before = self.position, self._sampler.generated_tokens
        self._sampler.num_watched = self._recorder.begin(position.step + 1)
        drawn, groups = self._sample()
        with self.reporter.phase("update"), hot_steps(self.settings.debug):
            train, learned = self._learner.learn(
                self.arrays.train,
                groups,
                self.arrays.reference,
                counters=(position.round_index, position.step),
                tell=self._recorder.learnt,
            )
        num_correct, num_samples = self._known_rates(drawn)
        self.arrays = dataclasses.replace(
            self.arrays, train=train, cache=drawn.cache, num_correct=num_correct, num_samples=num_samples
        )
        evidence = self._learn_confidence(evidence_of(drawn.groups))
        self._rollout_params = None
        position.step += 1
        position.step_in_round += 1
        position.iterator = self._batches.get_state()
        position.generated_tokens = self._sampler.generated_tokens
        position.trained_tokens += int(learned["trained_tokens"])
        values = {
            **rollout_metrics(drawn),
            **length_metrics(drawn.groups, self._sampler.model_eos, self.settings.rollout.stop_strings),
            **learned,
            "drawn_groups": len(drawn.groups),
            "entropy_weight": drawn.entropy_weight,
            "confidence_slope": evidence.slope,
            "round": position.round_index,
        }
        values["step_tokens"] = position.generated_tokens - before
        values |= {"generated_tokens": position.generated_tokens, "total_trained_tokens": position.trained_tokens}
        position.alarm_counts, alarms = check_alarms(position.alarm_counts, values, self.settings.alarms)
        values["alarms"] = [alarm.limit.name for alarm in alarms]
        times = self.reporter.take_times()
        self._recorder.write(drawn.groups, {"round": position.round_index, "method": self.settings.method})
        times["tokens_per_second"] = values["step_tokens"] / max(sum(times.values()), 1e-9)
        self._write("train", values, times)
        self.reporter.line(step_line(position.step, values, times, remaining.text(position.step)))
        for alarm in alarms:
            self.reporter.line(f"warning: {alarm}")
        if alarms and self.settings.alarms.stop:
            # The same command goes on: the alarms that stopped it have their patience anew.
            position.alarm_counts = {}
            self._save(wait=True)
            raise AlarmStop(
                f"stopped at step {position.step}: {'; '.join(map(str, alarms))}. The state is saved: the same command "
                "goes on from there; change the limits or --config.alarms.stop=false in the same workdir, or what "
                "caused it (optimizer.learning_rate; other settings in a new workdir)"
            )
        if self._checkpoints.is_due(position.step):
            self._save(wait=False)
        self._stop.check()

    def _sample(self) -> tuple[StepRollouts, list[Group]]:
        """Responses to the next batch of problems: all that was drawn, and the groups to learn from.

        DAPO draws on until enough groups are mixed and learns from those; the others learn from what they drew.
        """
        rounds, is_dapo = self.settings.rounds, self.settings.method == "dapo"
        counters = (self.position.round_index, self.position.step)
        # A batch drawn by a step that is interrupted must come again: the drawing starts from the saved position.
        if self.position.iterator:
            self._batches.set_state(self.position.iterator)
        drawn: StepRollouts | None = None
        mixed: list[Group] = []
        seen: set[str] = set()
        for _ in range(rounds.dynamic_sampling_batches if is_dapo else 1):
            # Within one step a problem is sampled once: its keys would repeat the same responses.
            batch = {self.problems[i].id: i for i in next(self._batches) if self.problems[i].id not in seen}
            if not batch:
                break
            seen |= batch.keys()
            numbers = np.array(list(batch.values()))
            hard = is_hard(self.arrays.num_correct, self.arrays.num_samples, self.settings.filter.threshold)
            with self.reporter.phase("rollout", len(batch)), hot_steps(self.settings.debug):
                fresh = sample_step(
                    self._sampler, self._sampling_params(), self.arrays.cache, [self.problems[i] for i in numbers],
                    counters, self.settings, is_hard=np.asarray(hard)[numbers],
                    entropy_weight_of=self._entropy_weight,
                )  # fmt: skip
            mixed += [group for group in fresh.groups if 0 < group.num_correct < len(group.responses)]
            fresh.groups = (drawn.groups if drawn else []) + fresh.groups
            drawn = fresh
            if len(mixed) >= rounds.problems_per_step:
                break
        assert drawn is not None
        return drawn, mixed[: rounds.problems_per_step] if is_dapo else drawn.groups

    def _is_over(self) -> bool:
        """Whether the run ends before its last round does: its budget is spent or its goal reached."""
        limit = self.settings.rounds.max_generated_tokens
        return self.position.has_reached or 0 < limit <= self.position.generated_tokens

    def _end_round(self) -> None:
        self.position.round_index += 1
        self.position.step_in_round, self.position.is_filtered, self.position.iterator = 0, False, {}

    def _entropy_weight(self, groups: Sequence[Group]) -> float:
        """lambda2 of the searches to come, from what is known and what the direct groups of this step add to it."""
        settings, start = self.settings, self.settings.search.frontier_entropy_weight
        if settings.search.confidence == "fixed":
            return start
        evidence = Evidence(**self.position.evidence).decayed(settings.confidence.decay, evidence_of(groups))
        return entropy_weight(evidence, start, settings.confidence)

    def _learn_confidence(self, new: Evidence) -> Evidence:
        """Adds what the responses of a step or a filter say of confidence to what is known."""
        known = Evidence(**self.position.evidence).decayed(self.settings.confidence.decay, new)
        self.position.evidence = dataclasses.asdict(known)
        return known

    def _known_rates(self, drawn: StepRollouts) -> tuple[jax.Array, jax.Array]:
        """Correct and all of the last direct samples of every problem, with those of the step just drawn."""
        if self.settings.rounds.search_when == "always":
            return self.arrays.num_correct, self.arrays.num_samples
        counts = np.array(self.arrays.num_correct), np.array(self.arrays.num_samples)
        for i, problem in enumerate(self.problems):
            if problem.id in drawn.sampled:
                counts[0][i], counts[1][i] = drawn.sampled[problem.id]
        return jnp.asarray(counts[0]), jnp.asarray(counts[1])

    # Helpers at the edge.

    def _sampling_params(self) -> Any:
        if self._rollout_params is None:
            self._rollout_params = self._learner.sampling_params(self.arrays.train)
        return self._rollout_params

    def _write(self, kind: str, values: dict[str, Any], times: dict[str, float]) -> None:
        machine = {**times, "peak_memory_gib": peak_memory_gib(), "cpu_seconds": time.process_time()}
        machine |= self.reporter.take_cpu_times() | {"compilations": self._compilations.take()}
        machine |= {f"task_{name}": value for name, value in self.task.statistics().items()}
        self._metrics.write(kind, self.position.step, values, machine)
        self.reporter.row(kind, self.position.step, values, machine)
        self.position.num_rows = self._metrics.num_rows

    def _save(self, *, wait: bool) -> None:
        if dataclasses.replace(self.position, saves=self._saved.saves) == self._saved:
            if wait:
                self._checkpoints.wait()
            return
        self._metrics.sync()
        self.position.saves += 1
        record = {"position": dataclasses.asdict(self.position), "config": dataclasses.asdict(self.settings)}
        is_evaluated = self.position.evaluated_step == self.position.step
        self._checkpoints.save(
            self.position.saves, as_saved(self.arrays), record, wait=wait,
            held_out=self.position.held_out if is_evaluated else None,
        )  # fmt: skip
        self._saved = dataclasses.replace(self.position)
