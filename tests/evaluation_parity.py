"""The same evaluation by this project and by transformers: accuracies of the same model on the same problems.

    python -m tests.evaluation_parity MODEL_DIR --transformers PYTHON --workdir DIR [--problems 64] [--samples 4]

The two sample with noise of their own, so the accuracies differ by chance: the 95 % interval of the mean difference
over problems (paired bootstrap) must hold 0. Lengths are compared in the same way. Both sides go on where they were
stopped. PYTHON is that of an environment with torch and transformers. The last line says PASS or FAIL.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

from deepsearch_jax.data.benchmarks import benchmark_paths
from deepsearch_jax.data.problems import ProblemSettings
from deepsearch_jax.data.prompts import PromptSettings
from deepsearch_jax.runtime import BenchmarkSettings, evaluate_benchmarks
from deepsearch_jax.runtime.accuracy import bootstrap_interval
from deepsearch_jax.runtime.metrics import read_rows
from deepsearch_jax.runtime.rollout_settings import RolloutSettings
from deepsearch_jax.runtime.settings import ModelSettings
from deepsearch_jax.runtime.tasks import MathSettings, MathTask

PEER = pathlib.Path(__file__).with_name("transformers_samples.py")


def settings_of(options: argparse.Namespace) -> BenchmarkSettings:
    return BenchmarkSettings(
        model=ModelSettings(path=options.model), benchmarks=(options.set,), num_problems=options.problems,
        num_samples=options.samples, max_length=options.max_length, num_devices=1,
        data=os.environ.get("DEEPSEARCH_DATA", "../shared/data"),
        rollout=RolloutSettings(num_slots=options.slots, temperature=0.6, top_p=0.95),
        prompt=PromptSettings(max_prompt_length=1024),
    )  # fmt: skip


def theirs(options: argparse.Namespace, settings: BenchmarkSettings, workdir: pathlib.Path) -> dict[str, dict]:
    """Rows by problem id: correct and lengths of the samples that transformers made, judged by the same verifier."""
    problems = ProblemSettings(benchmark_paths(options.set, settings.data), limit=settings.num_problems)
    math = MathSettings(train=problems, num_heldout=0, prompt=settings.prompt, verify=settings.verify)
    task = MathTask(math, settings.model.path, settings.seed)
    try:
        request = {
            "directory": settings.model.path, "prompts": [task.prompt(p) for p in task.train_problems],
            "num_samples": settings.num_samples, "max_length": settings.max_length, "seed": settings.seed,
            "temperature": settings.rollout.temperature, "top_p": settings.rollout.top_p,
            "eos_ids": list(task.tokenizer.eos_ids),
        }  # fmt: skip
        request_file, samples_file = workdir / "request.json", workdir / "transformers.jsonl"
        request_file.write_text(json.dumps(request))
        subprocess.run([options.transformers, str(PEER), str(request_file), str(samples_file)], check=True)
        rows = {}
        for line in samples_file.read_text().splitlines():
            found = json.loads(line)
            problem = task.train_problems[found["index"]]
            verdicts = task.score([(problem, task.tokenizer.decode(sample)) for sample in found["samples"]])
            lengths = [len(sample) for sample in found["samples"]]
            rows[problem.id] = {"correct": [int(v.score >= 1) for v in verdicts], "lengths": lengths}
        return rows
    finally:
        task.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hugging Face directory")
    parser.add_argument("--transformers", required=True, help="python with torch and transformers")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--set", default="gsm8k")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max_length", type=int, default=384)
    parser.add_argument("--slots", type=int, default=8)
    options = parser.parse_args()
    settings, workdir = settings_of(options), pathlib.Path(options.workdir)
    if evaluate_benchmarks(settings, dataclasses.asdict(settings), workdir) is None:
        return 1
    sampled = [row for row in read_rows(workdir / "samples" / f"{options.set}.jsonl") if row["kind"] == "problem"]
    ours, peer = {row["id"]: row for row in sampled}, theirs(options, settings, workdir)
    if set(ours) != set(peer):
        print(f"FAIL: {len(ours)} problems here, {len(peer)} there")
        return 1
    passed = True
    for name in ("correct", "lengths"):
        pairs = np.array([[np.mean(ours[id_][name]), np.mean(peer[id_][name])] for id_ in sorted(ours)])
        low, high = bootstrap_interval(pairs[:, 0] - pairs[:, 1])
        passed &= low <= 0 <= high
        print(
            f"{name}: ours {pairs[:, 0].mean():.4f}, transformers {pairs[:, 1].mean():.4f}, difference "
            f"[{low:.4f}, {high:.4f}] on {len(pairs)} problems"
        )
    print("PASS" if passed else "FAIL")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
