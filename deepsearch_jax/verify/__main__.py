"""Scores a file of verifier cases: `python -m deepsearch_jax.verify FILE.jsonl [--mode math|boxed] [--workers 2]`.

One JSON object a line with the texts `prediction`, `ground_truth` and the boolean `expected`; `why`, `category`,
`policy` and `resource` are optional. Prints the wrong ones and ends with one JSON line.
"""

import argparse
import collections
import json
import sys
import time
from typing import Any

from deepsearch_jax.verify import Status, VerifySettings, make_scorer

_FIELDS: dict[str, type] = {"prediction": str, "ground_truth": str, "expected": bool}


def read_cases(path: str) -> list[dict[str, Any]]:
    """The cases of a file. Raises ValueError naming file, line and field; OSError if it cannot be read."""
    cases = []
    with open(path, encoding="utf-8", errors="strict") as file:
        lines = file.read().split("\n")  # not splitlines: U+2028 and its like may stand inside a string
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            case = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not a JSON object ({error}); write one object a line") from None
        if not isinstance(case, dict):
            raise ValueError(f"{path}, line {number}: a JSON {type(case).__name__}; write one object a line")
        for field, kind in _FIELDS.items():
            if not isinstance(case.get(field), kind):
                found = type(case[field]).__name__ if field in case else "nothing"
                expected = {str: "text", bool: "true or false"}[kind]
                raise ValueError(f"{path}, line {number}, field {field!r}: expected {expected}, found {found}")
        cases.append(case)
    if not cases:
        raise ValueError(f"{path}: no cases; write one JSON object a line with {', '.join(_FIELDS)}")
    return cases


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deepsearch_jax.verify", description=__doc__.split("\n")[0])
    parser.add_argument("file", help="JSON lines with prediction, ground_truth, expected")
    parser.add_argument("--mode", choices=("math", "boxed"), default="math")
    parser.add_argument("--workers", type=int, default=VerifySettings.num_workers, help="worker processes")
    parser.add_argument("--deadline", type=float, default=VerifySettings.deadline_s, help="seconds per symbolic check")
    options = parser.parse_args(arguments)
    try:
        settings = VerifySettings(mode=options.mode, num_workers=options.workers, deadline_s=options.deadline)
        cases = read_cases(options.file)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    begin = time.perf_counter()
    with make_scorer(settings) as scorer:
        verdicts = scorer.score((case["prediction"], case["ground_truth"]) for case in cases)
        stats = scorer.stats
    seconds = time.perf_counter() - begin
    wrong = 0
    by_category: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for case, verdict in zip(cases, verdicts):
        is_right = (verdict.status is Status.CORRECT) == case["expected"]
        counts = by_category[str(case.get("category", "all"))]
        counts[0] += is_right
        counts[1] += 1
        if not is_right:
            wrong += 1
            # json.dumps escapes control characters: an answer cannot forge a line of this report.
            shown = [str(verdict.answer)[:120], case["ground_truth"][:120], str(case.get("why", ""))]
            print(f"wrong: {json.dumps(shown)} expected {case['expected']}, got {verdict.status.value}")
    slowest = max(verdict.seconds for verdict in verdicts)
    print(
        json.dumps(
            {
                "cases": len(cases),
                "correct": len(cases) - wrong,
                "seconds": round(seconds, 3),
                "slowest": round(slowest, 3),
                "symbolic": stats.symbolic,
                "timeouts": stats.timeouts,
                "errors": stats.errors,
                "restarts": stats.restarts,
                "refused": stats.refused,
                "by_category": {name: f"{right}/{total}" for name, (right, total) in sorted(by_category.items())},
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
