"""Recorded trees: they are the trees of the run, the run does not notice, and the disk is kept within its limit."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from deepsearch_jax.data.degenerate import DegenerateSettings
from deepsearch_jax.data.problems import Problem
from deepsearch_jax.data.tokenizers import CharTokenizer
from deepsearch_jax.objective import AdvantageSettings
from deepsearch_jax.runtime import build_mesh, build_policy
from deepsearch_jax.runtime.debug import DebugSettings
from deepsearch_jax.runtime.interrupt import Interrupted, StopRequest
from deepsearch_jax.runtime.record import Recorder, RecordSettings
from deepsearch_jax.runtime.responses import Group, Response
from deepsearch_jax.runtime.rollouts import Sampler
from deepsearch_jax.runtime.tree_records import (
    FATES,
    Lesson,
    Words,
    path_of,
    path_to,
    read_trees,
    record_of,
    recorded_steps,
)
from deepsearch_jax.types import Outcome
from tests.runtime.conftest import tiny_settings
from tests.runtime.parity import ParityTask
from tests.runtime.test_trainer import assert_same_state, finish, make_trainer, rows

EVERY = RecordSettings(every_steps=1, problems=3)
# Watching holds to what JAX checks: no transfer that nobody asked for.
SETTINGS = tiny_settings(record=EVERY, debug=DebugSettings(transfer_guard=True))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The workdir and trainer of a run that records all of its steps, and the groups that its steps drew."""
    workdir, drawn = tmp_path_factory.mktemp("recorded"), []
    trainer = make_trainer(workdir, SETTINGS)
    write = trainer._recorder.write
    trainer._recorder.write = lambda groups, facts: (drawn.extend(groups), write(groups, facts))
    return workdir, finish(trainer), drawn


@pytest.fixture(scope="module")
def trees(recorded):
    steps = recorded_steps(recorded[0] / "trees")
    assert steps == [1, 2, 3, 4]
    return [tree for step in steps for tree in read_trees(path_of(recorded[0] / "trees", step))]


def test_recording_changes_nothing(recorded, tmp_path):
    off = dataclasses.replace(SETTINGS, record=RecordSettings(every_steps=0))
    other = finish(make_trainer(tmp_path, off))
    assert not (tmp_path / "trees").exists()
    assert rows(tmp_path) == rows(recorded[0])
    assert_same_state(recorded[1], other)


def test_a_run_that_is_stopped_and_goes_on_writes_the_same_files(recorded, tmp_path):
    folder = tmp_path / "trees"

    class AfterTwo(StopRequest):
        def check(self):
            if len(recorded_steps(folder)) == 2:
                raise Interrupted("test")

    with pytest.raises(Interrupted):
        finish(make_trainer(tmp_path, SETTINGS, stop=AfterTwo()))
    assert recorded_steps(folder) == [1, 2]
    # As if it had been killed between a record and the checkpoint behind it.
    path_of(folder, 3).write_bytes(b"of another life")
    finish(make_trainer(tmp_path, SETTINGS))
    assert recorded_steps(folder) == [1, 2, 3, 4]
    for path in sorted((recorded[0] / "trees").iterdir()):
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_a_recorded_tree_is_a_tree(trees):
    searched = [tree for tree in trees if tree.facts["kind"] == "search"]
    assert searched
    for tree in searched:
        count = len(tree.parent)
        assert 1 < count <= SETTINGS.search.capacity
        assert (tree.parent[1:] < np.arange(1, count)).all()
        np.testing.assert_array_equal(tree.depth[1:], tree.depth[tree.parent[1:]] + 1)
        assert tree.segment_lengths.sum() == len(tree.tokens) == len(tree.log_probs)
        assert tree.facts["status"] in ("finished", "exhausted", "out_of_nodes")
        credited = np.flatnonzero(tree.credit >= 0)
        np.testing.assert_array_equal(tree.leaves, credited[np.argsort(tree.credit[credited])])
        # What the policy said of a segment is what the node says of itself.
        parts = np.split(tree.log_probs, np.cumsum(tree.segment_lengths)[:-1])
        for node in range(1, count):
            assert tree.mean_nll[node] == pytest.approx(-parts[node].mean(), abs=1e-5)
        # Terminals have verdicts, others none.
        np.testing.assert_array_equal(tree.outcome != Outcome.NONE, tree.is_terminal)


def test_the_frames_lead_from_the_root_to_the_tree(trees):
    for tree in trees:
        if tree.facts["kind"] != "search":
            continue
        value, visits = np.zeros(len(tree.parent), np.float32), np.zeros(len(tree.parent), np.int32)
        begin, known = 0, 0
        assert (tree.frame_nodes[0], tree.frame_credits[0]) == (1, 0)
        assert (np.diff(tree.frame_nodes) >= 0).all()
        assert (np.diff(tree.frame_credits) <= 1).all()  # one cursor, one pass an iteration
        for frame, end in enumerate(tree.change_ends):
            changed = tree.change_nodes[begin:end]
            assert (changed < tree.frame_nodes[frame]).all()
            value[changed], visits[changed] = tree.change_values[begin:end], tree.change_visits[begin:end]
            if frame:
                # The children made in a frame are those of the cursor that was set in the frame before.
                (cursor,) = tree.frame_cursors[frame - 1]
                assert (tree.parent[known : tree.frame_nodes[frame]] == cursor).all()
            begin, known = end, int(tree.frame_nodes[frame])
        assert known == len(tree.parent)
        assert tree.frame_credits[-1] == len(tree.leaves)
        np.testing.assert_array_equal(value, tree.value)
        np.testing.assert_array_equal(visits, tree.visit_count)


def test_the_frontier_holds_what_can_still_be_expanded(trees):
    """Eager, eq. 6: no children, no terminal, above the depth limit."""
    for tree in trees:
        if tree.facts["kind"] != "search":
            continue
        scores = np.full(len(tree.parent), np.nan, np.float32)
        scores[tree.change_nodes] = tree.change_scores  # of several changes of a node the last one stays
        has_children = np.isin(np.arange(len(tree.parent)), tree.parent)
        np.testing.assert_array_equal(~np.isnan(scores), ~has_children & ~tree.is_terminal)


def test_paths_are_the_responses_and_carry_their_advantages(recorded):
    """Against the trajectories that the search itself handed to learning, and the advantages as given."""
    groups = [group for group in recorded[2] if group.tree is not None]
    assert groups
    words = Words(ParityTask().tokenizer)
    for group in groups:
        told = [np.arange(len(r.segment_lengths), dtype=np.float32) + i for i, r in enumerate(group.responses)]
        told[0] = told[0][:0]
        lesson = Lesson([1] + [0] * (len(told) - 1), told)
        tree = record_of(group, lesson, {"step": 1}, words)
        parts = np.split(tree.tokens, np.cumsum(tree.segment_lengths)[:-1])
        sums = {}
        for leaf, response, advantages in zip(tree.leaves, group.responses, told, strict=True):
            path = path_to(tree.parent, int(leaf))
            np.testing.assert_array_equal(np.concatenate([parts[node] for node in path]), response.tokens)
            np.testing.assert_array_equal(tree.value[path], response.node_values)
            assert tree.outcome[leaf] == response.outcome
            for node, advantage in zip(path, advantages, strict=False):
                sums.setdefault(node, []).append(advantage)
        for node in range(len(tree.parent)):
            assert tree.num_trained[node] == len(sums.get(node, ()))
            expected = np.mean(sums[node]) if node in sums else np.nan
            np.testing.assert_allclose(tree.advantages[node], expected, rtol=1e-6)


def searched(*, num_devices=1, num_watched=3, **rollout):
    """Groups of one search, the first ones with their trees."""
    task = ParityTask()
    policy = build_policy(SETTINGS.model, task, SETTINGS.search, seed=3)
    sampler = Sampler(
        task, policy[0], SETTINGS.search, dataclasses.replace(SETTINGS.rollout, **rollout), run_key=jax.random.key(5),
        mesh=build_mesh(num_devices), check_stop=lambda: None, advance=lambda done, detail: None,
    )  # fmt: skip
    sampler.num_watched = num_watched
    groups, _ = sampler.search(policy[1], list(task.train_problems)[:7], (0, 1))
    assert [group.tree is not None for group in groups] == [i < num_watched for i in range(7)]
    return groups[:num_watched]


@pytest.mark.slow
def test_trees_over_several_devices_are_the_same():
    """Fewer slots than problems in half batches: the trees wander."""
    several = searched(num_devices=2, num_slots=4, half_batches="yes")
    for one, other in zip(searched(), several, strict=True):
        count = int(one.tree.tree.num_nodes)
        for name in ("parent", "outcome", "visit_count"):
            np.testing.assert_array_equal(getattr(one.tree.tree, name)[:count], getattr(other.tree.tree, name)[:count])
        assert [c.num_nodes for c in one.tree.changes] == [c.num_nodes for c in other.tree.changes]


def response(text, reward, *, log_probs=True, origin="direct", tokenizer=None):
    tokens = np.array([*(tokenizer or TOKENIZER).encode(text), 1], np.int32)
    return Response(
        tokens=tokens, segment_lengths=np.array([len(tokens)], np.int32), node_values=np.array([reward], np.float32),
        log_probs=np.full(len(tokens), -0.5, np.float32) if log_probs else None, reward=reward,
        outcome=Outcome.CORRECT if reward > 0 else Outcome.INCORRECT, text=text, origin=origin,
    )  # fmt: skip


TOKENIZER = CharTokenizer("0123456789+=<>/!é")
PROBLEM = Problem(1, "one", "1+1", "2")


def make_recorder(path, lines=None, **settings):
    settings = RecordSettings(**({"every_steps": 1} | settings))
    say = (lines if lines is not None else []).append
    return Recorder(settings, DegenerateSettings(), TOKENIZER, path, say)


def test_direct_groups_are_trees_of_depth_one(tmp_path):
    good, bad, cached = response("2", 1.0), response("3é", -1.0), response("2", 1.0, log_probs=False, origin="cache")
    group = Group(PROBLEM, TOKENIZER.encode("1+1="), [cached, good, bad])
    recorder = make_recorder(tmp_path)
    recorder.begin(1)
    recorder.learnt([group], [[np.array([0.5], np.float32), np.array([0.25], np.float32), np.array([-1], np.float32)]])
    recorder.write([group], {"round": 0})
    (tree,) = read_trees(path_of(tmp_path / "trees", 1))
    assert tree.parent.tolist() == [-1, 0, 0, 0]
    assert tree.origin.tolist() == [0, 2, 1, 1]
    assert tree.value.tolist() == [1, 1, 1, -1]
    assert tree.outcome.tolist() == [0, 1, 1, 2]
    assert tree.fates.tolist() == [0, 0, 0]
    assert tree.advantages[1:].tolist() == [0.5, 0.25, -1]
    np.testing.assert_array_equal(np.isnan(tree.mean_nll), [False, True, False, False])
    assert tree.mean_nll[2] == 0.5
    split = np.split(tree.vocabulary_bytes, tree.vocabulary_ends[:-1])
    pieces = dict(zip(tree.vocabulary.tolist(), split, strict=True))
    assert b"".join(pieces[t].tobytes() for t in tree.tokens.tolist()).decode() == "2$2$3é$"
    assert tree.vocabulary[tree.vocabulary_special].tolist() == [1]
    assert tree.facts == {
        "step": 1, "round": 0, "problem": "one", "question": "1+1", "answer": "2", "kind": "direct", "status": "",
    }  # fmt: skip


def test_trees_that_grew_elsewhere_are_left_to_the_others(tmp_path):
    """Where several processes search, each has the trees of its own problems, and the trajectories of all."""
    path = response("23", 1.0, origin="search")
    path.segment_lengths, path.node_values = np.array([2, 1], np.int32), np.ones(2, np.float32)
    elsewhere = Group(PROBLEM, [2], [path, path])
    flat = Group(Problem(3, "three", "3", "3"), [2], [response("3", 1.0, origin="search")])  # of one segment
    here = Group(Problem(2, "two", "2", "2"), [2], [response("2", 1.0), response("3", -1.0)])
    recorder = make_recorder(tmp_path)
    recorder.begin(1)
    recorder.learnt([elsewhere], [[np.zeros(2, np.float32)] * 2])
    recorder.write([elsewhere, flat, here], {})
    assert [tree.facts["problem"] for tree in read_trees(path_of(tmp_path / "trees", 1))] == ["two"]


@pytest.mark.parametrize(
    ("texts", "rewards", "kept", "fates"),
    [
        (("1", "2"), (-1.0, -1.0), (), ("no signal", "no signal")),
        (("1" * 400, "2"), (-1.0, 1.0), (), ("degenerate", "no signal")),
        (("1" * 400, "2", "3"), (-1.0, 1.0, -1.0), (1, 2), ("degenerate", "trained", "trained")),
        (("3", "2"), (-1.0, 1.0), (), ("not needed", "not needed")),  # DAPO has enough groups
    ],
)
def test_what_became_of_a_response(tmp_path, texts, rewards, kept, fates):
    group = Group(PROBLEM, [2], [response(t, r) for t, r in zip(texts, rewards, strict=True)])
    recorder = make_recorder(tmp_path)
    recorder.begin(1)
    if kept:
        taught = dataclasses.replace(group, responses=[group.responses[i] for i in kept])
        recorder.learnt([taught], [[np.zeros(1, np.float32)] * len(kept)])
    recorder.write([group], {})
    (tree,) = read_trees(path_of(tmp_path / "trees", 1))
    assert [FATES[fate] for fate in tree.fates] == list(fates)
    assert (tree.num_trained[1:] > 0).tolist() == [i in kept for i in range(len(texts))]


def write_steps(path, steps, **settings):
    lines = []
    recorder = make_recorder(path, lines, **settings)
    draw = np.random.default_rng(0)
    for step in steps:
        text = "".join(draw.choice(list("0123456789"), 4000))
        recorder.begin(step)
        recorder.write([Group(PROBLEM, [2], [response(text, 1.0), response("3", -1.0)])], {})
    return lines


def test_beyond_the_limit_steps_are_thinned_out_evenly(tmp_path):
    assert write_steps(tmp_path / "one", [1]) == []
    size = path_of(tmp_path / "one" / "trees", 1).stat().st_size
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    assert write_steps(tmp_path / "a", range(1, 10), max_mib=5.5 * size / 2**20) == []
    kept = recorded_steps(tmp_path / "a" / "trees")
    assert kept[0] == 1
    assert kept[-1] == 9
    assert len(kept) == 5
    assert max(np.diff(kept)) <= 3
    (line,) = write_steps(tmp_path / "b", [1], max_mib=0.5 * size / 2**20)
    assert "the trees of step 1 take" in line
    assert "record.max_mib" in line
    assert recorded_steps(tmp_path / "b" / "trees") == []


def test_a_full_disk_costs_the_record_and_not_the_run(tmp_path):
    (tmp_path / "trees").write_text("a file where the folder should be")
    (line,) = write_steps(tmp_path, [1])
    assert "the trees of step 1 are not recorded" in line


def test_only_every_nth_step_is_recorded(tmp_path):
    write_steps(tmp_path, range(1, 8), every_steps=3)
    assert recorded_steps(tmp_path / "trees") == [1, 4, 7]
    assert make_recorder(tmp_path, every_steps=3, problems=5).begin(4) == 5
    assert make_recorder(tmp_path, every_steps=3, problems=5).begin(5) == 0
    assert make_recorder(tmp_path, every_steps=0).begin(1) == 0


def test_damaged_and_foreign_files_are_named(tmp_path):
    write_steps(tmp_path, [1])
    path = path_of(tmp_path / "trees", 1)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"step_000001.npz cannot be read as recorded trees"):
        read_trees(path)
    header = json.dumps({"format": 99, "trees": []}).encode()
    np.savez(path, facts=np.frombuffer(header, np.uint8))
    with pytest.raises(ValueError, match="trees of format 99, this version reads 1"):
        read_trees(path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"every_steps": -1}, "record.every_steps=-1 must be at least 0"),
        ({"problems": 0}, "record.problems=0 must be at least 1"),
        ({"max_mib": 0.0}, "record.max_mib=0.0 must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        RecordSettings(**values)


@pytest.mark.slow
def test_baselines_and_grafted_samples_are_recorded(tmp_path):
    rounds = dataclasses.replace(SETTINGS.rounds, filter_problems=False, num_rounds=1)
    grpo = dataclasses.replace(
        SETTINGS, method="grpo", rounds=rounds, advantage=AdvantageSettings(level="outcome")
    )  # fmt: skip
    finish(make_trainer(tmp_path / "grpo", grpo))
    records = read_trees(path_of(tmp_path / "grpo" / "trees", 1))
    assert [tree.facts["kind"] for tree in records] == ["direct"] * 3
    adaptive = dataclasses.replace(SETTINGS, rounds=dataclasses.replace(rounds, search_when="no_signal"))
    finish(make_trainer(tmp_path / "adaptive", adaptive, ParityTask(solvable=lambda problem: False)))
    steps = recorded_steps(tmp_path / "adaptive" / "trees")
    records = [tree for s in steps for tree in read_trees(path_of(tmp_path / "adaptive" / "trees", s))]
    grafted = [tree for tree in records if tree.facts["kind"] == "search"]
    assert grafted
    for tree in grafted:
        count = int((tree.origin == 1).sum())
        assert count > 0
        assert tree.frame_nodes[0] == 1 + count  # the samples are there before the first iteration
        assert (tree.origin[1 : 1 + count] == 1).all()
