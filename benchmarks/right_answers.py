"""What a teacher that is always right would bring: supervised steps on right answers, at the rate of a suite's updates.

`python -m benchmarks.right_answers --workdir DIR [--settings saturated countdown]`: from the starts of the suite `full`
in DIR (made if they are not there), new problems of the setting with their right answers, one AdamW update of 64 rows
a step at a constant rate. Prints held-out pass@1 (T = 1) over trained tokens, to be held against the trained tokens of
a run of the suite: a method that learns from its own samples cannot be expected to learn faster. The last line is one
JSON object: `value` is the median pass@1 over all settings and seeds after the last step, `ratio` that over the
start's.
"""

import argparse
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from benchmarks.common import finish, median
from deepsearch_jax.runtime import RunSettings, build_mesh, build_policy
from deepsearch_jax.runtime.evaluate import summarise
from deepsearch_jax.runtime.learning import Learner, sampling_params
from deepsearch_jax.runtime.rollouts import Purpose, Sampler
from deepsearch_jax.runtime.tasks import build_task
from experiments.compare.cells import make_start
from experiments.compare.suite import load_suite, seeded, set_all, settings_of
from experiments.settings import Setting


def lesson(setting: Setting, seed: int, steps: int, rate: float) -> RunSettings:
    """The setting with supervised steps on its own problems, without noise or forgetting, instead of its warm start."""
    config = seeded(setting, seed)
    stage = {
        "num_steps": steps, "learning_rate": rate, "lengths": config.task.arithmetic.problem_lengths, "weights": (),
        "plus_noise": 0.0, "minus_noise": 0.0, "forget_borrow": 0.0,
    }  # fmt: skip
    changes = {
        "task.arithmetic.warm_start_stages": (stage,), "task.countdown.warm_start_steps": steps,
        "task.countdown.warm_start_learning_rate": rate, "warm_start.schedule": "constant",
    }  # fmt: skip
    set_all(config, changes)
    return settings_of(config)


def learn(setting: Setting, seed: int, at: list[int], rate: float, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Cases of one start, before the steps and after each number of them in `at`."""
    settings = lesson(setting, seed, max(at), rate)
    start = make_start(workdir, setting, seed, print)
    task = build_task(settings.task, "", settings.seed)
    pretrained = dataclasses.replace(settings.model, path=str(start))
    model, params = build_policy(pretrained, task, settings.search, settings.seed)
    learner = Learner(settings, model, build_mesh(1), workdir)
    sampler = Sampler(
        task, model, settings.search, settings.rollout, run_key=jax.random.key(seed), mesh=None,
        check_stop=lambda: None, advance=lambda done, detail: None,
    )  # fmt: skip
    held_out = task.eval_problems[: settings.evaluation.num_problems]
    state, tokens, cases = learner.init(params), 0, []
    for step in range(max(at) + 1):
        if step in (0, *at):
            decoding = sampling_params(learner.policy_params(state), settings, model)
            groups = sampler.direct(decoding, held_out, 8, Purpose.EVALUATION, (0, step))
            right = round(float(summarise(groups)["pass_at_1"]), 4)
            cases.append({"setting": setting.name, "seed": seed, "steps": step, "tokens": tokens, "pass_at_1": right})
            print(cases[-1], flush=True)
        if (item := task.warm_start(step)) is not None:
            state, _ = learner.supervised(state, *item)
            tokens += int(np.asarray(item[0].loss_mask).sum())
    task.close()
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="of the suite `full`, or an empty one")
    parser.add_argument("--settings", nargs="+", default=["saturated", "countdown"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 100, 400])
    parser.add_argument("--rate", type=float, default=4e-4, help="the larger one of the suite's grid")
    options = parser.parse_args()
    suite = load_suite("full")
    cases = [
        case
        for name in options.settings
        for seed in options.seeds
        for case in learn(suite.setting(name), seed, options.steps, options.rate, options.workdir)
    ]
    before, after = (
        median([case["pass_at_1"] for case in cases if case["steps"] == steps]) for steps in (0, max(options.steps))
    )
    finish(
        "right_answers", after, "held-out pass@1", after / before if before else None, rate=options.rate, cases=cases
    )


if __name__ == "__main__":
    main()
