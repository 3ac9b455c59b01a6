"""A run small enough for a test: two rounds of two steps on short chains, a decoder of a few thousand parameters."""

import dataclasses

import pytest

from deepsearch_jax.cache import FilterSettings
from deepsearch_jax.data.arithmetic import ArithmeticSettings, WarmStartStage
from deepsearch_jax.runtime import CheckpointSettings, EvaluationSettings, RunSettings
from deepsearch_jax.runtime.groups import PackSettings
from deepsearch_jax.runtime.rollouts import RolloutSettings
from deepsearch_jax.runtime.settings import CacheSettings, ModelSettings, RoundSettings
from deepsearch_jax.runtime.tasks import TaskSettings
from deepsearch_jax.training import UpdateSettings
from deepsearch_jax.tree import SearchSettings

ARITHMETIC = ArithmeticSettings(
    problem_lengths=(1, 2),
    num_train_problems=24,
    num_heldout_problems=8,
    warm_start_batch_size=16,
    warm_start_stages=(WarmStartStage(num_steps=60, learning_rate=1e-2, lengths=(1, 2)),),
)


def tiny_settings(**changes) -> RunSettings:
    """Settings of a run that ends within seconds; keyword arguments replace whole groups."""
    settings = RunSettings(
        task=TaskSettings(arithmetic=ARITHMETIC),
        model=ModelSettings(hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=2, intermediate_size=32),
        search=SearchSettings(
            segment_length=5, max_depth=3, expansion_width=2, num_trajectories=4, capacity=13,
            frontier_entropy_weight=-3.0,
        ),
        rollout=RolloutSettings(num_slots=8, prompt_multiple=8, path_multiple=3),
        rounds=RoundSettings(
            num_rounds=2, steps_per_round=2, problems_per_step=4, group_size=4, max_candidates=16, refilter="all"
        ),
        filter=FilterSettings(num_samples=2, easy_share=0.5, min_direct=2),
        cache=CacheSettings(capacity=16, paths_per_problem=2, page_length=5),
        optimizer=UpdateSettings(learning_rate=1e-3, warmup_steps=0),
        pack=PackSettings(row_multiple=16, min_rows=16),
        evaluation=EvaluationSettings(num_problems=4, num_samples=2),
        checkpoint=CheckpointSettings(every_steps=1),
        num_devices=1,
        compile_cache="off",
    )  # fmt: skip
    return dataclasses.replace(settings, **changes)


@pytest.fixture
def settings() -> RunSettings:
    return tiny_settings()
