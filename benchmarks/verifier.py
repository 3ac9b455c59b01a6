"""Answers checked per second: `python -m benchmarks.verifier [--seconds 20]`, against math-verify alone in one process.

Two mixes of labelled cases (the shared ones where they are, and those of the tests): *easy* is what strings, fractions
and doubles decide in the asking process, *symbolic* what needs a worker. Each answer is asked once a pass with the
caches of parsed texts emptied before, so nothing is remembered from pass to pass; inputs that are meant to cost time
(category `resource`) are left out of both and told apart.
"""

import argparse
import collections
import contextlib
import json
import logging
import os
import pathlib
import resource
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.common import finish, median
from deepsearch_jax.verify import Status, VerifierPool, VerifySettings
from deepsearch_jax.verify.judge import forget_answers

TESTS = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "verifier_extra.jsonl"
SHARED = (
    pathlib.Path(os.environ.get("DEEPSEARCH_SHARED", TESTS.parents[3] / "shared")) / "data" / "verifier_cases.jsonl"
)
Case = dict[str, Any]


def split(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """(easy, symbolic) cases: whether a pool asks a worker is seen from outside, by its future."""
    parts: tuple[list[Case], list[Case]] = ([], [])
    with VerifierPool(num_workers=2) as pool:
        for case in cases:
            future = pool.submit(case["prediction"], case["ground_truth"])
            parts[not future.done()].append(case)
            future.result()
    return parts


def cpu_seconds() -> float:
    """CPU seconds of this process, all threads."""
    return time.process_time()


def worker_cpu_seconds(pids: Sequence[int]) -> float:
    """CPU seconds of the worker processes so far; 0 where the system does not tell."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def rate(pool: VerifierPool, cases: Sequence[Case], seconds: float) -> dict[str, float]:
    """Answers per wall second and per CPU second (of this process and the workers): medians over passes.

    A first pass that starts the workers does not count.
    """
    pairs = [(case["prediction"], case["ground_truth"]) for case in cases]
    pool.score(pairs)
    walls, cpus, until = [], [], time.perf_counter() + seconds
    while time.perf_counter() < until or len(walls) < 3:
        forget_answers()
        pids = pool.worker_pids
        wall, cpu = time.perf_counter(), cpu_seconds() + worker_cpu_seconds(pids)
        pool.score(pairs)
        cpus.append((cpu_seconds() + worker_cpu_seconds(pids) - cpu) / len(pairs))
        walls.append((time.perf_counter() - wall) / len(pairs))
    return {"per_s": 1 / median(walls), "per_cpu_s": 1 / median(cpus), "passes": len(walls)}


def math_verify_rate(cases: Sequence[Case], seconds: float) -> dict[str, float]:
    """The same answers by math-verify alone, in this process, as its own guide says: parse both, then verify."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)

    def check(case: Case) -> bool:
        try:
            gold = parse(f"${case['ground_truth']}$", parsing_timeout=5)
            return bool(verify(gold, parse(case["prediction"], parsing_timeout=5), timeout_seconds=5))
        except Exception:  # it raises what its parser raises
            return False

    check(cases[0])
    done, right, cpu, begin = 0, 0, cpu_seconds(), time.perf_counter()
    for case in cases:
        right += check(case) == case["expected"]
        done += 1
        if time.perf_counter() - begin > seconds:
            break
    return {
        "per_s": done / (time.perf_counter() - begin),
        "per_cpu_s": done / (cpu_seconds() - cpu),
        "right": right / done,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verifier")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--workers", type=int, default=VerifySettings.num_workers)
    options = parser.parse_args()
    files = [path for path in (SHARED, TESTS) if path.exists()]
    cases = [
        json.loads(line) for path in files for line in path.read_text(encoding="utf-8").split("\n") if line.strip()
    ]
    meant = [case for case in cases if case["category"] != "resource"]
    easy, symbolic = split(meant)
    found: dict[str, dict[str, float]] = {}
    for name, chosen in (("easy", easy), ("symbolic", symbolic)):
        with VerifierPool(num_workers=options.workers) as pool:
            found[name] = rate(pool, chosen, options.seconds)
            verdicts = pool.score([(case["prediction"], case["ground_truth"]) for case in chosen])
        pairs = zip(chosen, verdicts, strict=True)
        found[name]["right"] = sum((v.status is Status.CORRECT) == c["expected"] for c, v in pairs) / len(chosen)
        found[name + "_peer"] = math_verify_rate(chosen, options.seconds)
        mix = collections.Counter(case["category"] for case in chosen)
        print(f"{name}: {len(chosen)} cases ({', '.join(f'{n} {kind}' for kind, n in mix.most_common())})")
        for who in (name, name + "_peer"):
            told = found[who]
            print(
                f"  {'math-verify, one process' if who != name else 'this verifier':26} {told['per_s']:8.0f} answers/s "
                f"{told['per_cpu_s']:8.0f} per CPU second, {100 * told['right']:.1f} % as labelled"
            )
    print(f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB (Linux)")
    finish(
        "verifier", found["symbolic"]["per_s"], "symbolic answers/s",
        found["symbolic"]["per_s"] / found["symbolic_peer"]["per_s"],
        easy_per_s=found["easy"]["per_s"], easy_ratio=found["easy"]["per_s"] / found["easy_peer"]["per_s"],
        num_easy=len(easy), num_symbolic=len(symbolic), left_out=len(cases) - len(meant), workers=options.workers,
        load=os.getloadavg()[0], measured=found,
    )  # fmt: skip


if __name__ == "__main__":
    main()
