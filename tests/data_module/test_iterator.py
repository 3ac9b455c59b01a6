import json
import subprocess
import sys

import numpy as np
import pytest

from deepsearch_jax.data.iterator import ProblemIterator


def flat(batches):
    return [position for batch in batches for position in batch]


def take(iterator, n):
    return [next(iterator).tolist() for _ in range(n)]


def test_an_epoch_visits_distinct_problems_and_epochs_differ():
    iterator = ProblemIterator(np.arange(100, 112), batch_size=4, seed=0)
    epochs = [flat(take(iterator, iterator.batches_per_epoch)) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(100, 112))
    assert epochs[0] != epochs[1] != epochs[2]


def test_no_problem_twice_in_a_batch_and_none_left_out_for_good():
    iterator = ProblemIterator(range(10), batch_size=4, seed=1)
    batches = take(iterator, 40)
    assert all(len(set(batch)) == 4 for batch in batches)
    assert set(flat(batches)) == set(range(10))


def test_a_batch_larger_than_the_set_repeats_it():
    batches = take(ProblemIterator([5, 6, 7], batch_size=5, seed=0), 3)
    assert [len(batch) for batch in batches] == [5, 5, 5]
    counts = np.bincount(flat(batches), minlength=8)
    assert counts[5:].tolist() == [5, 5, 5]


def test_the_order_depends_on_seed_and_round_only():
    def order(seed, round_index):
        return take(ProblemIterator(range(50), batch_size=10, seed=seed, round_index=round_index), 5)

    assert order(0, 0) == order(0, 0)
    orders = [order(*pair) for pair in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@pytest.mark.parametrize("position", [0, 1, 2, 3, 7])
@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (3, 5)])
def test_a_restored_iterator_goes_on_where_the_other_stood(position, size, batch_size):
    def new():
        return ProblemIterator(range(size), batch_size=batch_size, seed=9, round_index=2, fingerprint="f")

    iterator = new()
    take(iterator, position)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 6)
    restored = new()
    take(restored, 2)  # whatever it did before is forgotten
    restored.set_state(state)
    assert take(restored, 6) == expected
    assert restored.get_state() == iterator.get_state()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "other"}, r"changed: problem_set \(saved 'f', now 'other'\)\."),
        ({"indices": [0, 1, 2, 4]}, r"changed: indices \(saved"),
        ({"indices": range(5)}, r"num_indices \(saved 4, now 5\)"),
        ({"batch_size": 3}, r"changed: batch_size \(saved 2, now 3\)\."),
        ({"seed": 1}, r"changed: seed \(saved 0, now 1\)\."),
        ({"round_index": 1}, r"changed: round_index \(saved 0, now 1\)\."),
    ],
)
def test_a_state_of_another_setting_is_refused_and_says_which(change, message):
    same = {"indices": range(4), "batch_size": 2, "seed": 0, "round_index": 0, "fingerprint": "f"}
    state = ProblemIterator(**same).get_state()
    other = ProblemIterator(**{**same, **change})
    with pytest.raises(ValueError, match=message):
        other.set_state(state)


def test_a_damaged_state_is_refused():
    iterator = ProblemIterator(range(4), batch_size=2, seed=0)
    with pytest.raises(ValueError, match="damaged: None"):
        iterator.set_state({**iterator.get_state(), "grain": None})
    with pytest.raises(ValueError, match="changed: version"):
        iterator.set_state({})


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="no problems"):
        ProblemIterator([], batch_size=1, seed=0)
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        ProblemIterator([1], batch_size=0, seed=0)
    with pytest.raises(ValueError, match="seed=-1 must be at least 0"):
        ProblemIterator([1], batch_size=1, seed=-1)


def test_it_works_under_absl_flags_without_threads_or_warnings():
    """grain defines flags of its own; they must not disturb ours, even when imported after parsing."""
    program = """
import sys, threading
from absl import app, flags
flags.DEFINE_integer("n", 0, "batches")
def main(argv):
    assert argv[1:] == ["rest"], argv
    from deepsearch_jax.data.iterator import ProblemIterator
    iterator = ProblemIterator(range(8), batch_size=2, seed=0)
    for _ in range(flags.FLAGS.n):
        print(next(iterator).tolist())
    assert threading.active_count() == 1, threading.enumerate()
app.run(main)
"""
    command = [sys.executable, "-W", "error", "-c", program, "--n=3", "rest"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 3


def mixture(components, weights, batch_size, **changes):
    components = np.array(components)
    return ProblemIterator(
        np.arange(len(components)), batch_size=batch_size, seed=1, components=components, weights=weights, **changes
    )


@pytest.mark.parametrize("batch_size", [4, 7])
def test_components_have_their_shares_of_every_stretch(batch_size):
    components = [0] * 50 + [1] * 400 + [2] * 90
    iterator = mixture(components, (3, 1, 4), batch_size)
    drawn = np.array(components)[np.concatenate([next(iterator) for _ in range(10)])]  # the first is not yet through
    for start in range(0, len(drawn) - 16, 16):
        counts = np.bincount(drawn[start : start + 16], minlength=3)
        np.testing.assert_allclose(counts, [6, 2, 8], atol=1)


def test_a_mixture_repeats_no_problem_in_a_batch_and_leaves_none_out():
    components = [0] * 5 + [1] * 20
    iterator = mixture(components, (1, 1), 8)
    batches = [next(iterator) for _ in range(20)]
    assert all(len(set(batch.tolist())) == 8 for batch in batches)
    assert set(np.concatenate(batches).tolist()) == set(range(25))


def test_absent_components_step_aside_and_small_ones_give_all():
    iterator = mixture([2] * 2 + [0] * 30, (1, 5, 9), 8)
    for _ in range(5):
        assert {0, 1} <= set(next(iterator).tolist())  # nine tenths would be seven of eight; there are two
    alone = mixture([1] * 3, (1, 5), 8)
    assert sorted(set(next(alone).tolist())) == [0, 1, 2]


@pytest.mark.parametrize("size", [1, 2, 7, 1500])
def test_a_component_is_shuffled_anew_when_it_is_through(size):
    iterator = mixture([0] * size + [1] * 2000, (1, 1), 2)
    drawn = [int(p) for _ in range(3 * size) for p in next(iterator) if p < size]
    epochs = [drawn[i * size : (i + 1) * size] for i in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert size < 3 or epochs[0] != epochs[1] != epochs[2]


def test_few_problems_of_great_weight_do_not_hold_the_others_up():
    """All four of the heavy component, and twelve that come once in a thousand draws."""
    batch = next(mixture([0] * 4 + [1] * 36, (1000, 1), 16))
    assert sorted(batch)[:4] == [0, 1, 2, 3]
    assert len(set(batch.tolist())) == 16


def test_a_restored_mixture_goes_on_where_the_other_stood():
    components = [0] * 7 + [1] * 11
    one, other = (mixture(components, (2, 1), 4) for _ in range(2))
    for _ in range(9):
        next(one)
    other.set_state(json.loads(json.dumps(one.get_state())))
    for _ in range(9):
        np.testing.assert_array_equal(next(one), next(other))
    with pytest.raises(ValueError, match="mixture"):
        mixture(components, (1, 2), 4).set_state(one.get_state())


def test_components_must_have_weights():
    with pytest.raises(ValueError, match="do not fit"):
        mixture([0, 1, 2], (1, 1), 2)
