"""Which problems a round takes, against hand-made cases."""

import dataclasses

import jax
import numpy as np

from deepsearch_jax.cache import FilterSettings
from deepsearch_jax.runtime.filtering import candidate_pool, choose_problems, draw_candidates
from deepsearch_jax.runtime.settings import RoundSettings

FILTER = FilterSettings(num_samples=4, threshold=0.25, easy_share=0.0)
KEYS = np.array([11, 12, 13, 14], np.int32)
KNOWN = np.array([-1, -1, -1, 3], np.int32), np.array([0, 0, 0, 4], np.int32)
POOL, CANDIDATES = np.array([True, True, True, False]), np.array([0, 1, 2])


def test_hard_candidates_stay_and_the_others_leave():
    chosen = choose_problems(jax.random.key(0), KEYS, POOL, CANDIDATES, [0, 4, 0], KNOWN, FILTER)
    assert chosen.subset.tolist() == [True, False, True, False]
    assert chosen.passed.tolist() == [12]
    assert (chosen.num_hard, chosen.is_all) == (2, False)
    assert chosen.num_correct.tolist() == [0, 4, 0, 3]  # the fourth was not sampled: what was known of it stays
    assert chosen.num_samples.tolist() == [4, 4, 4, 4]


def test_where_none_is_hard_the_round_takes_all_candidates():
    chosen = choose_problems(jax.random.key(0), KEYS, POOL, CANDIDATES, [4, 4, 4], KNOWN, FILTER)
    assert chosen.subset.tolist() == [True, True, True, False]
    assert (chosen.num_hard, chosen.is_all, chosen.passed.tolist()) == (0, True, [11, 12, 13])


def test_no_more_candidates_than_may_be_looked_at():
    rounds = dataclasses.replace(RoundSettings(), max_candidates=5, refilter="all")
    pool = candidate_pool(np.zeros(50, bool), rounds)
    assert pool.all()
    first, second = (draw_candidates(pool, rounds, 0, index) for index in (0, 1))
    assert len(set(first.tolist())) == 5
    assert first.tolist() == sorted(first.tolist())
    assert first.tolist() != second.tolist()  # every round looks at others
    assert not candidate_pool(np.zeros(3, bool), dataclasses.replace(rounds, refilter="previous")).any()
