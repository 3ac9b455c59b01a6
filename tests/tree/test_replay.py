"""The recorded searches replay exactly, and the replay notices what does not."""

import copy
import json
import pathlib

import jax
import pytest

from tests import golden_replay
from tests.tree.replay import replay_group, settings_of

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
TRACES = {trace["id"]: trace for trace in json.loads((DATA / "tree_traces.json").read_text())["traces"]}


@pytest.mark.parametrize("name", TRACES)
def test_recorded_search_replays(name):
    with jax.enable_x64(True):
        assert replay_group(settings_of(TRACES[name]), [TRACES[name]]) == [None]


def test_the_sample_holds_every_way_of_going_on():
    events = [event for trace in TRACES.values() for event in trace["events"] if event["t"] == "backup"]
    assert {event["how"] for event in events} == {"stop", "local", "global", "uct_root", "fallback_frontier"}
    assert any(event["revisit"] for event in events)


CHANGES = {
    "next": lambda trace: trace["events"][1].update(next=0),
    "how": lambda trace: trace["events"][1].update(how="uct_root"),
    "cands": lambda trace: trace["events"][1].update(cands=[1]),
    "chosen": lambda trace: trace["events"][1].update(chosen=0),
    "value": lambda trace: trace["events"][1]["changed"][0].__setitem__(2, 2e-6),
    "visit_count": lambda trace: trace["events"][1]["changed"].pop(),
    "final q_value": lambda trace: trace["final"]["q_value"].__setitem__(3, 9.0),
    "outcome": lambda trace: trace["nodes"]["outcome"].__setitem__(-1, "incomplete"),
    "path_nodes": lambda trace: trace["trajectories"][1]["path_nodes"].__setitem__(0, 0),
    "entropy": lambda trace: trace["trajectories"][0].update(entropy=0.1),
    "after": lambda trace: trace["post"][0]["values"][0].__setitem__(0, 0.5),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_recording_is_noticed_and_named(what):
    trace = copy.deepcopy(TRACES["global_D_w2_d8_t4_s13002"])
    CHANGES[what](trace)
    with jax.enable_x64(True):
        (difference,) = replay_group(settings_of(trace), [trace])
    assert difference is not None
    assert what in difference


def test_a_folder_is_counted_case_by_case(tmp_path, capsys):
    good = {"id": "a", "solution_str": "\\boxed{2}", "ground_truth": "2", "score": 1.0, "acc": True, "pred": "2"}
    good["parsed_gt"] = "2"
    answers = [good, {**good, "id": "b", "score": -1.0}, {"id": "c", "inputs": {}}]
    (tmp_path / "any_name.json").write_text(json.dumps({"cases": answers}))
    for name in ("advantages.json", "policy_loss.json"):
        cases = json.loads((DATA / name).read_text())["cases"]
        (tmp_path / f"renamed_{name}").write_text(json.dumps({"cases": cases[:1]}))
    assert golden_replay.main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "passed 3, failed 2"
    assert "FAILED any_name.json b: score: got 1.0, recorded -1.0" in printed
    assert "c: a case of unknown kind" in printed
    (tmp_path / "any_name.json").write_text(json.dumps({"cases": answers[:1]}))
    assert golden_replay.main([str(tmp_path)]) == 0


def test_a_folder_without_files_is_a_mistake(tmp_path):
    with pytest.raises(SystemExit):
        golden_replay.main([str(tmp_path)])


@pytest.mark.slow
def test_all_recorded_data_replays(shared_dir, capsys):
    assert golden_replay.main([str(shared_dir / "golden")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "passed 384, failed 0"
