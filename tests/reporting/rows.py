"""Runs as a report finds them on disk, with few and known numbers."""

import json


def train(step, *, round=0, tokens=0, **values):
    machine = values.pop("machine", {"seconds_rollout": 3.0, "seconds_update": 1.0, "peak_memory_gib": 1.5})
    return {"kind": "train", "step": step, "round": round, "generated_tokens": tokens, "updates": 2,
            "skipped_updates": 0, "step_tokens": 100, "alarms": [], **values, "machine": machine}  # fmt: skip


def evaluation(step, accuracy, *, tokens=0, **values):
    return {"kind": "eval", "step": step, "pass_at_1": accuracy, "pass_at_1_low": accuracy - 0.05,
            "pass_at_1_high": accuracy + 0.05, "pass_at_4": min(1.0, accuracy + 0.2), "generated_tokens": tokens,
            **values, "machine": {"seconds_evaluate": 0.5}}  # fmt: skip


def filtering(round, **values):
    return {"kind": "filter", "step": 0, "round": round, "candidates": 10, "hard": 7, "success_rate": 0.2,
            "generated_tokens": 50, **values, "machine": {"seconds_filter": 2.0}}  # fmt: skip


def write_run(folder, rows, *, config=None, versions=None, tail=""):
    """A workdir with these rows; `tail` follows the last line end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    (folder / "config.json").write_text(json.dumps({"method": "deepsearch", "seed": 0} if config is None else config))
    (folder / "versions.json").write_text(json.dumps(versions or {"jax": "0.10.2"}))
    return folder


def two_rounds():
    """Two rounds of two steps: trees of known sizes, an evaluation before, between and after."""
    search = {"responses": 8, "reward": -0.5, "drawn_groups": 4, "solved_share": 0.5, "cached_share": 0.0,
              "tree_nodes": 9.0, "terminal_depth": 2.5, "tree_solved_share": 0.25, "entropy": 0.5,
              "trained_tokens": 10, "response_length": 7.0}  # fmt: skip
    return [
        filtering(0),
        evaluation(0, 0.1, tokens=50),
        train(1, tokens=150, trees=4, tree_expansions=4.0, tree_depth=3.0, **search),
        train(2, tokens=250, trees=2, tree_expansions=7.0, tree_depth=3.0, **search),
        filtering(1, success_rate=0.4),
        evaluation(2, 0.3, tokens=300),
        train(3, round=1, tokens=400, trees=0, tree_expansions=0.0, tree_depth=0.0,
              **{**search, "cached_share": 1.0}),
        train(4, round=1, tokens=500, trees=3, tree_expansions=5.0, tree_depth=2.0,
              **{**search, "cached_share": 0.25, "alarms": ["entropy_floor"], "skipped_updates": 1}),
        evaluation(4, 0.5, tokens=500),
    ]  # fmt: skip
