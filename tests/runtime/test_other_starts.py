"""What a run may go on with, and what it is refused for: settings, prompts, problems."""

import dataclasses

import pytest

from deepsearch_jax.cache import FilterSettings
from deepsearch_jax.objective import AdvantageSettings
from deepsearch_jax.policy import LoraSettings
from deepsearch_jax.runtime import RunSettings, load_saved
from deepsearch_jax.runtime.interrupt import Interrupted
from deepsearch_jax.runtime.run import run
from deepsearch_jax.runtime.settings import CacheSettings, RoundSettings
from deepsearch_jax.runtime.tasks import TaskSettings
from tests.runtime.parity import ParityTask
from tests.runtime.test_lora import lora_settings
from tests.runtime.test_trainer import SETTINGS, StopAt, WarmStarted, finish, make_trainer, rows


@pytest.mark.slow
def test_a_run_goes_on_with_other_slots_and_rows(tmp_path):
    """What has to divide by the devices may change with them; the samples stay, sums round otherwise."""
    other = dataclasses.replace(
        SETTINGS,
        rollout=dataclasses.replace(SETTINGS.rollout, num_slots=5, half_batches="no", page_pool_gib=0.001),
        pack=dataclasses.replace(SETTINGS.pack, min_rows=24),
        log_prob_chunk=7,
    )
    finish(make_trainer(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        finish(make_trainer(tmp_path / "run", stop=StopAt(16)))
    resumed = make_trainer(tmp_path / "run", other)
    assert 0 < resumed.position.step < 4
    finish(resumed)
    expected, found = rows(tmp_path / "whole"), rows(tmp_path / "run")
    train = [index for index, row in enumerate(expected) if row["kind"] == "train"]
    assert [row["kind"] for row in found] == [row["kind"] for row in expected]
    assert found[train[-1]]["generated_tokens"] == expected[train[-1]]["generated_tokens"]
    assert found[train[-1]]["grad_norm"] == pytest.approx(expected[train[-1]]["grad_norm"], rel=1e-4)
    assert found[-1]["num_correct"] == expected[-1]["num_correct"]


@pytest.mark.slow
def test_clipping_may_be_switched_off_in_between_and_from_the_start(tmp_path):
    """Also where a warm start clips and the rounds do not."""
    one_round = dataclasses.replace(SETTINGS.rounds, num_rounds=1)
    clipped = dataclasses.replace(SETTINGS, rounds=one_round)
    free = dataclasses.replace(clipped, optimizer=dataclasses.replace(SETTINGS.optimizer, max_grad_norm=0.0))
    with pytest.raises(Interrupted):
        finish(make_trainer(tmp_path / "run", clipped, stop=StopAt(9)))
    assert finish(make_trainer(tmp_path / "run", free)).position.step == 2
    assert finish(make_trainer(tmp_path / "free", free, WarmStarted())).position.step == 2


class Reversed(ParityTask):
    """The same problems through another tokenizer."""

    def prompt(self, problem):
        return super().prompt(problem)[::-1]


def test_other_prompts_than_at_the_start_are_refused(tmp_path):
    with pytest.raises(Interrupted):
        finish(make_trainer(tmp_path, stop=StopAt(9)))
    with pytest.raises(ValueError, match="their prompts are other tokens; restore the tokenizer"):
        make_trainer(tmp_path, task=Reversed())


def test_a_checkpoint_that_does_not_know_its_prompts_goes_on(tmp_path):
    first = make_trainer(tmp_path, stop=StopAt(9))
    first.position.prompts = ""
    with pytest.raises(Interrupted):
        finish(first)
    make_trainer(tmp_path, task=Reversed()).close()


def test_a_task_without_held_out_problems_is_refused_at_the_start(tmp_path):
    task = ParityTask()
    task.eval_problems = []
    with pytest.raises(ValueError, match="no held-out problems"):
        make_trainer(tmp_path, task=task)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
def test_seeds_that_keys_would_cut_off_are_refused(seed):
    with pytest.raises(ValueError, match=rf"seed={seed} must be at least 0 and below 2\*\*32"):
        RunSettings(seed=seed)
    assert RunSettings(seed=2**32 - 1).seed == 2**32 - 1


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "grpo", "advantage": AdvantageSettings(level="outcome", normalisation="row_mean_std")},
        {"advantage": AdvantageSettings(level="outcome", normalisation="row_mean_std")},
        {
            "advantage": AdvantageSettings(normalisation="row_mean_std"),
            "rounds": RoundSettings(search_when="no_signal"),
        },
    ],
)
def test_advantages_within_a_row_are_refused_where_a_row_has_one_score(changes):
    with pytest.raises(ValueError, match=r"row_mean_std.*would teach nothing"):
        RunSettings(**changes)
    RunSettings(advantage=AdvantageSettings(normalisation="row_mean_std"))


def test_a_group_has_room_for_what_is_cached():
    """Without it a cached problem would be searched again, whatever is known of it."""
    full = {"filter": FilterSettings(min_direct=8), "rounds": RoundSettings(group_size=8)}
    with pytest.raises(ValueError, match=r"min_direct=8 .*group_size=8 beside a cached path"):
        RunSettings(**full)
    RunSettings(**full, cache=CacheSettings(capacity=0))


def test_adapters_beside_the_warm_start_of_countdown_are_refused():
    with pytest.raises(ValueError, match=r"lora.rank=4 .*task.countdown.warm_start_steps=0"):
        RunSettings(task=TaskSettings(name="countdown"), lora=LoraSettings(rank=4))


@pytest.mark.slow
def test_adapters_of_a_model_from_nothing_can_be_read_back(tmp_path):
    one_step = dataclasses.replace(SETTINGS.rounds, num_rounds=1, steps_per_round=1)
    settings = lora_settings(rounds=one_step)
    assert run(settings, dataclasses.asdict(settings), tmp_path)
    saved = load_saved(tmp_path)
    assert saved.step == 1
    assert saved.params["layers"]["mlp"]["up"]["kernel"].shape[0] == settings.model.num_layers
