"""Replay buffers of the authors' code in the solution cache of a run."""

import dataclasses
import json

import numpy as np
import pytest

from deepsearch_jax.cache import init_cache
from deepsearch_jax.runtime.imported import import_solutions, read_solutions
from deepsearch_jax.runtime.settings import CacheSettings
from tests.runtime.conftest import tiny_settings
from tests.runtime.parity import TOKENIZER, ParityTask
from tests.runtime.test_trainer import finish, make_trainer, rows

EOS = TOKENIZER.eos_ids[0]
# ParityTask: right are texts whose digits have an even sum.
BUFFER = {"p0": ["11", "2", "13", "2"], "p1": ["1"], "p2": ["1111111111"], "p3": ["44", "12"], "else-1": ["2"]}


@pytest.fixture
def buffer(tmp_path):
    path = tmp_path / "replay_buffer_0.25.json"
    path.write_text(json.dumps(BUFFER))
    return str(path)


def test_right_responses_are_encoded_with_their_end(buffer):
    task = ParityTask()
    found = read_solutions([buffer], task, task.train_problems, max_length=10, paths_per_problem=2)
    solutions = {problem.id: tokens for problem, tokens in found.solutions}
    assert solutions == {"p0": [[*TOKENIZER.encode("11"), EOS], [*TOKENIZER.encode("2"), EOS]],
                         "p3": [[*TOKENIZER.encode("44"), EOS]]}  # fmt: skip
    # Wrong: "1" and "12". Too long: ten digits leave no room for the end. Unknown: "else-1".
    assert (found.num_wrong, found.num_too_long, found.num_unknown) == (2, 1, 1)
    assert "imported 3 solutions of 2 problems" in found.line([buffer])


def test_the_cache_holds_what_was_read(buffer):
    task, told = ParityTask(), []
    cache = import_solutions(init_cache(8, 2, 2, 5), [buffer], task, task.train_problems, told.append)
    slots = {int(key): slot for slot, key in enumerate(np.asarray(cache.problem_ids)) if key >= 0}
    assert sorted(slots) == [0, 3]
    assert np.asarray(cache.counts)[slots[0]] == 2
    assert np.asarray(cache.lengths)[slots[3]].tolist() == [3, 0]
    tokens = np.asarray(cache.tokens)[slots[3], 0].reshape(-1)[:3].tolist()
    assert (TOKENIZER.decode(tokens), tokens[-1]) == ("44", EOS)
    assert len(told) == 1


def test_what_cannot_be_used_is_refused(buffer, tmp_path):
    task = ParityTask()
    with pytest.raises(
        ValueError, match=r"cache.capacity=1 has no room for the 2 problems .* cache.capacity=2 or more"
    ):
        import_solutions(init_cache(1, 2, 2, 5), [buffer], task, task.train_problems, lambda line: None)
    nobody = ParityTask(solvable=lambda problem: False)
    with pytest.raises(
        ValueError, match=r"nothing of .* can be used: of 5 problems 1 are not in this run, 7 responses"
    ):
        read_solutions([buffer], nobody, nobody.train_problems, max_length=10, paths_per_problem=2)
    with pytest.raises(ValueError, match="has no cache"):
        tiny_settings(cache=CacheSettings(capacity=0, import_paths=(buffer,)))


@pytest.mark.slow
def test_a_run_starts_with_imported_solutions_and_does_not_search_their_problems(buffer, tmp_path):
    base = tiny_settings()
    settings = dataclasses.replace(
        base,
        cache=dataclasses.replace(base.cache, import_paths=(buffer,)),
        rounds=dataclasses.replace(base.rounds, filter_problems=False, num_rounds=1, steps_per_round=1),
    )
    trainer = finish(make_trainer(tmp_path / "run", settings, ParityTask(num_problems=4)))
    (train,) = [row for row in rows(tmp_path / "run") if row["kind"] == "train"]
    # Three problems: ten digits and their end fit into a response of 15 tokens.
    assert (train["cached_share"], train["trees"]) == (0.75, 1)
    again = make_trainer(
        tmp_path / "run", settings, ParityTask(num_problems=4)
    )  # from the checkpoint, not imported anew
    again.close()
    np.testing.assert_array_equal(again.arrays.cache.tokens, trainer.arrays.cache.tokens)
