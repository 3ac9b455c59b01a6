"""What is drawn and tabled, against numbers worked out by hand."""

import pytest

from deepsearch_jax.runtime.metrics import MACHINE_KEY, read_rows
from experiments.reporting import tables
from experiments.reporting.charts import CHARTS
from experiments.reporting.runs import load_runs
from experiments.reporting.series import alarms, costs, curves, drawn_charts, mean, rounds, thinned, time_split
from tests.reporting.rows import evaluation, train, two_rounds, write_run
from tests.runtime.documented import documented_names


@pytest.fixture
def run(tmp_path):
    return load_runs([write_run(tmp_path / "run", two_rounds())])[0]


def test_costs_add_up(run):
    spent = costs(run.rows)
    # filter 2 s, evaluation 0.5 s, two steps of 4 s, filter 2 s, evaluation 0.5 s, two steps of 4 s, evaluation 0.5 s
    assert [cost["seconds"] for cost in spent] == [2, 2.5, 6.5, 10.5, 12.5, 13, 17, 21, 21.5]
    assert [cost["generated_tokens"] for cost in spent] == [50, 50, 150, 250, 50, 300, 400, 500, 500]
    # two updates a step, of which the last step says that one was skipped
    assert [cost["gradient_steps"] for cost in spent] == [0, 0, 2, 4, 4, 4, 6, 7, 7]
    assert [cost["step"] for cost in spent] == [0, 0, 1, 2, 0, 2, 3, 4, 4]


def test_curves_stand_over_every_axis(run):
    found = curves(run, "eval", ["pass_at_1", "pass_at_4", "nothing"])
    assert found["x"] == {
        "generated_tokens": [50, 300, 500], "gradient_steps": [0, 4, 7], "seconds": [2.5, 13, 21.5], "step": [0, 2, 4],
    }  # fmt: skip
    assert found["y"] == {"pass_at_1": [0.1, 0.3, 0.5], "pass_at_4": [pytest.approx(v) for v in (0.3, 0.5, 0.7)]}


def test_a_step_without_trees_has_no_tree_of_size_zero(run):
    assert curves(run, "train", ["tree_expansions"])["y"] == {"tree_expansions": [4.0, 7.0, None, 5.0]}


def test_long_curves_are_means_of_neighbours():
    assert thinned([1.0, 3.0, None, 5.0, 7.0], 2) == [2.0, 5.0, 7.0]
    assert thinned([None, None], 2) == [None]
    assert mean([1.0, None, 4.0], [1.0, 5.0, 3.0]) == 3.25
    assert mean([1.0], [0.0]) is None


def test_rounds_are_weighted_by_trees(run):
    first, second = rounds(run)
    assert (first["trees"], first["steps"], first["hard"], first["success_rate"]) == (6, 2, 7, 0.2)
    assert first["tree_expansions"] == pytest.approx((4 * 4 + 2 * 7) / 6)
    assert first["seconds_per_tree"] == 1.0  # 6 s of rollouts, 6 trees
    assert first["pass_at_1"] == 0.3  # measured after the filter of the next round, of the policy this one left
    assert second["tree_expansions"] == 5.0  # the step without trees weighs nothing
    assert (second["cached_share"], second["pass_at_1"], second["success_rate"]) == (0.625, 0.5, 0.4)


def test_time_and_alarms(run):
    assert time_split(run) == {"filter": 4.0, "evaluate": 1.5, "rollout": 12.0, "update": 4.0}
    assert tables.time_table([run]).rows == [
        ["run", "12.0 s (56%)", "4.0 s (19%)", "4.0 s (19%)", "1.5 s (7%)", "21.5 s"]
    ]
    assert alarms(run) == {"entropy_floor": [4]}
    assert tables.alarm_table([run]).rows == [["run", "entropy_floor", "1", "4", "4"]]


def test_the_overview_says_what_a_run_is_worth(tmp_path):
    same = {"seed": 0, "task": {"name": "t"}, "evaluation": {"num_samples": 4, "num_problems": 2}, "method": "grpo"}
    first = [evaluation(0, 0.25, num_correct=[1, 1]), train(1), evaluation(1, 0.5, num_correct=[4, 0])]
    second = [evaluation(0, 0.25, num_correct=[1, 1]), train(1), evaluation(1, 0.75, num_correct=[4, 2])]
    runs = load_runs([
        write_run(tmp_path / "a", first, config=same),
        write_run(tmp_path / "b", second, config={**same, "rounds": {"num_rounds": 2, "steps_per_round": 3}}),
        write_run(tmp_path / "c", second, config={**same, "seed": 1}),
    ])  # fmt: skip
    table = tables.overview(runs)
    columns = dict(zip(table.head, zip(*table.rows)))
    assert columns["steps"] == ("1", "1 of 6", "1")
    assert columns["pass@1 before"][0] == "0.250 [0.200, 0.300]"
    assert columns["best"] == ("0.500", "0.750", "0.750")
    assert columns["tokens/s"] == ("25", "25", "25")  # 100 tokens in a step of 4 s
    assert columns["peak memory"][0] == "1.50 GiB"
    # 4/4 and 2/4 against 4/4 and 0/4, in pairs; resampled pairs give 0, 1/4 or 1/2
    assert columns["last, minus a"] == ("", "+0.250 [+0.000, +0.500]", "other problems")


def test_every_metric_that_is_drawn_is_documented():
    import re

    names = documented_names()
    for chart in CHARTS:
        known = [*names[chart.kind], *names["machine"]]
        for metric in [*(line.metric for line in chart.lines), *(chart.band or ())]:
            assert any(re.fullmatch(name, metric) for name in known), metric


def test_every_chart_is_drawn_from_a_real_run(recorded):
    (run, baseline) = load_runs(recorded)
    drawn = {chart.title for chart in drawn_charts([run, baseline])}
    assert drawn == {chart.title for chart in CHARTS}
    assert len(drawn_charts([baseline])) < len(CHARTS)  # a run that searches nothing has no trees
    rows = read_rows(run.path / "metrics.jsonl")
    total = sum(v for row in rows for name, v in row[MACHINE_KEY].items() if name.startswith("seconds_"))
    assert costs(run.rows)[-1]["seconds"] == pytest.approx(total)
    assert [row["round"] for row in rounds(run)] == [0, 1, 2]
    assert costs(run.rows)[-1]["generated_tokens"] == rows[-1]["generated_tokens"]
