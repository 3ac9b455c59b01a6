"""What a report draws: which metrics over which axes. The page and the picture draw the same list."""

from typing import NamedTuple

# By name: label, and how a value is written (the page and the picture know these words).
AXES = {
    "generated_tokens": "generated tokens",
    "gradient_steps": "gradient steps",
    "seconds": "wall time",
    "step": "training steps",
}


class Line(NamedTuple):
    """One metric of a chart and the word for it in the legend."""

    metric: str
    label: str


class Chart(NamedTuple):
    """One chart.

    Attributes:
      group: heading it stands under.
      title: what is drawn, with the unit in brackets.
      kind: of the rows it is drawn from.
      lines: metrics; those that no run has are left out.
      band: metrics of the lower and upper end of an interval around the first line.
      format: "share" (0 to 1, shown as such), "number", "seconds" or "gib".
      note: one sentence for the reader.
    """

    group: str
    title: str
    kind: str
    lines: tuple[Line, ...]
    band: tuple[str, str] | None = None
    format: str = "number"
    note: str = ""


def _one(group: str, title: str, metric: str, *, format: str = "number", note: str = "") -> Chart:
    return Chart(group, title, "train", (Line(metric, ""),), format=format, note=note)


CHARTS = (
    Chart(
        "Accuracy", "Held-out pass@1", "eval", (Line("pass_at_1", ""),), ("pass_at_1_low", "pass_at_1_high"), "share",
        "Bands: 95 % bootstrap interval over problems.",
    ),
    Chart("Accuracy", "Held-out pass@k", "eval", (), format="share", note="Problems with a right one among k samples."),
    _one("Learning", "Reward", "reward", note="Mean of all responses; right is 1, wrong -1."),
    Chart(
        "Learning", "Solved problems", "train", (Line("solved_share", "groups"), Line("correct_share", "responses")),
        format="share", note="Groups with a right response, and right responses.",
    ),
    _one("Learning", "Entropy (nats/token)", "entropy", note="Exact, at the trained tokens."),
    _one("Learning", "Loss", "loss"),
    _one("Learning", "Gradient norm", "grad_norm", note="Before clipping."),
    _one("Learning", "Clipped tokens", "pg_clipfrac", format="share"),
    _one("Learning", "Decode-train gap (nats)", "max_decode_train_gap", note="Largest of the step."),
    _one("Search", "Expansions per tree", "tree_expansions", note="Iterations of the search."),
    Chart(
        "Search", "Depth (segments)", "train",
        (Line("tree_depth", "deepest node"), Line("terminal_depth", "credited terminals")),
        note="Means over trees, and over credited terminals.",
    ),
    _one("Search", "Nodes per tree", "tree_nodes"),
    _one("Search", "Trees with a right terminal", "tree_solved_share", format="share"),
    _one("Search", "Cached groups", "cached_share", format="share", note="Served by the solution cache, not searched."),
    _one("Search", "Encoded per generated token", "encoded_per_generated"),
    Chart(
        "Lengths", "Response length (tokens)", "train",
        (Line("response_length", "all"), Line("correct_length", "right"), Line("wrong_length", "wrong")),
    ),
    Chart(
        "Lengths", "Cut-off responses", "train",
        (Line("truncated_share", "at the limit"), Line("incomplete_share", "without an answer")), format="share",
    ),
    Chart("Lengths", "Held-out response length (tokens)", "eval", (Line("response_length", ""),)),
    _one("Machine", "Throughput (sampled tokens/s)", "tokens_per_second", note="Over the time of all phases."),
    _one("Machine", "Peak memory of the process", "peak_memory_gib", format="gib"),
    _one("Machine", "Busy slots", "busy_slot_share", format="share"),
)  # fmt: skip
