"""What a run spent, from rows and a config written by hand."""

import json

import numpy as np
import pytest

from experiments.compare.cells import FINISHED
from experiments.compare.measure import architecture, read_run, step_flops, update_passes

MODEL = {"hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
         "intermediate_size": 8, "vocab_size": 10}  # fmt: skip
# A layer: queries and output 2 * 4 * 4, keys and values 2 * 4 * 2, three matrices of 4 * 8.
LAYER = 32 + 16 + 96


def train_row(step, tokens, *, cpu=2.0, wall=1.0, compilations=0, step_tokens=100):
    return {
        "kind": "train", "step": step, "round": 0, "generated_tokens": tokens, "step_tokens": step_tokens,
        "processed_tokens": 50, "response_length": 8.0, "drawn_groups": 3, "recomputed_tokens": 0,
        "cached_share": 0.25,
        "machine": {"cpu_seconds": 77.0, "cpu_seconds_rollout": cpu, "cpu_seconds_update": 1.0, "seconds_rollout": wall,
                    "seconds_update": 0.5, "compilations": compilations, "tokens_per_second": 1e6},
    }  # fmt: skip


def eval_row(step, correct):
    return {"kind": "eval", "step": step, "num_correct": correct,
            "machine": {"cpu_seconds_evaluate": 1e6, "seconds_evaluate": 1e6, "compilations": 9}}  # fmt: skip


def updates(problems_per_update, old_log_probs="recompute", *, on_policy=False):
    rounds = {"problems_per_step": 16, "problems_per_update": problems_per_update}
    return {"rounds": rounds, "old_log_probs": old_log_probs, "optimizer": {"on_policy": on_policy}}


def write_run(place, rows):
    (place / "policy").mkdir(parents=True)
    (place / "policy/config.json").write_text(json.dumps(MODEL))
    config = {"evaluation": {"num_samples": 4}, "filter": {"num_samples": 2}, **updates(0)}
    (place / FINISHED).write_text(json.dumps({"config": config, "prompt_length": 6.0}))
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_costs_add_up_and_evaluations_are_free(tmp_path):
    write_run(tmp_path, [
        eval_row(0, [0, 1]), train_row(1, 120), train_row(2, 230, cpu=4.0, wall=2.0), eval_row(2, [2, 4]),
        train_row(3, 400), eval_row(3, [4, 4]),
    ])  # fmt: skip
    run = read_run(tmp_path)
    np.testing.assert_array_equal(run.rates, [[0, 0.25], [0.5, 1], [1, 1]])
    np.testing.assert_array_equal(run.accuracy, [0.125, 0.75, 1])
    np.testing.assert_array_equal(run.costs["steps"], [0, 2, 3])
    np.testing.assert_array_equal(run.costs["generated_tokens"], [0, 230, 400])
    np.testing.assert_array_equal(run.costs["processed_tokens"], [0, 100, 150])
    np.testing.assert_array_equal(run.costs["cpu_seconds"], [0, 3 + 5, 11])
    np.testing.assert_array_equal(run.costs["wall_seconds"], [0, 1.5 + 2.5, 5.5])


def test_a_step_that_waited_for_the_compiler_counts_like_the_others(tmp_path):
    write_run(tmp_path, [
        eval_row(0, [0, 0]), train_row(1, 100, cpu=50.0, wall=30.0, compilations=3), train_row(2, 200),
        train_row(3, 300, cpu=3.0), train_row(4, 400, cpu=0.5, compilations=1), eval_row(4, [0, 0]),
    ])  # fmt: skip
    run = read_run(tmp_path)
    # Steps 2 and 3 compiled nothing: 3 and 4 seconds, median 3.5. Step 4 was quick all the same.
    np.testing.assert_allclose(run.costs["cpu_seconds"], [0, 3.5 + 3 + 4 + 1.5])
    np.testing.assert_allclose(run.costs["wall_seconds"], [0, 1.5 * 4])


def test_a_filter_is_paid_for(tmp_path):
    row = {"kind": "filter", "step": 0, "generated_tokens": 500, "candidates": 10,
           "machine": {"cpu_seconds_filter": 7.0, "seconds_filter": 5.0, "compilations": 0}}  # fmt: skip
    write_run(tmp_path, [row, eval_row(0, [0, 0]), train_row(1, 700), eval_row(1, [0, 0])])
    run = read_run(tmp_path)
    np.testing.assert_array_equal(run.costs["generated_tokens"], [500, 700])
    np.testing.assert_array_equal(run.costs["cpu_seconds"], [7, 10])
    # 500 tokens after prompts of 6 and on average half of 25: 2 operations a weight and 4 * 8 a token attended to.
    sampling = 500 * (2 * (2 * LAYER + 40) + 4 * 8 * (6 + 12.5))
    prompts = 10 * 6 * (2 * 2 * LAYER + 4 * 8 * 3)
    assert run.costs["flops"][0] == sampling + prompts


def test_operations_of_a_step_by_hand(tmp_path):
    write_run(tmp_path, [eval_row(0, [0])])
    model = architecture(tmp_path / "policy")
    assert model == (2 * LAYER, 40, 2 * 2 * 2)
    sampling = 100 * (2 * (2 * LAYER + 40) + 4 * 8 * (6 + 4))
    prompts = 3 * 6 * (2 * 2 * LAYER + 4 * 8 * 3)
    update = 50 * (2 * (2 * LAYER + 40) + 4 * 8 * 5)
    for passes in (3, 4):
        assert step_flops(train_row(1, 100), model, 6.0, passes) == pytest.approx(sampling + prompts + passes * update)


def test_old_log_probs_are_a_pass_of_their_own_where_a_step_has_several_updates():
    assert [update_passes(updates(problems)) for problems in (0, 16, 8)] == [3, 3, 4]
    assert update_passes(updates(8, "sampler")) == update_passes(updates(8, on_policy=True)) == 3
