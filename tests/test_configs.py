"""Every shipped config: it builds, it has the numbers it promises, and no setting is there for nothing."""

import ast
import importlib
import pathlib

import pytest

from deepsearch_jax.config import from_config, setting_names
from deepsearch_jax.runtime import BenchmarkSettings, RunSettings

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
NO_RUNS = ("__init__", "evaluate")
CONFIGS = sorted(p.stem for p in (REPOSITORY / "experiments/configs").glob("*.py") if p.stem not in NO_RUNS)


def variants():
    for name in CONFIGS:
        module = importlib.import_module(f"experiments.configs.{name}")
        for variant in getattr(module, "VARIANTS", (None,)):
            yield pytest.param(module, variant, id=f"{name}:{variant}")


@pytest.mark.parametrize(("module", "variant"), list(variants()))
def test_every_variant_builds_settings(module, variant):
    config = module.get_config() if variant is None else module.get_config(variant)
    if config.task.name == "math":
        config.model.path = "a directory"
    settings = from_config(RunSettings, config.lock())
    assert settings.search.capacity > settings.search.expansion_width
    if settings.method == "deepsearch":
        # A cached group and a searched one have the same size, so that neither weighs more in the update.
        # A search that may end early has no size of its own.
        assert settings.search.trajectories_if_solved or (
            settings.rounds.group_size == settings.search.num_trajectories
        )
    assert settings.cache.page_length * -(-settings.search.max_response_length // settings.cache.page_length) >= (
        settings.search.max_response_length
    )
    shards = max(settings.num_devices, 1) * max(settings.optimizer.micro_batch_rows, 1)
    assert settings.pack.min_rows % shards == 0


@pytest.mark.parametrize("variant", ["paper", "cpu", "search"])
def test_every_variant_of_the_evaluation_builds_settings(variant):
    config = importlib.import_module("experiments.configs.evaluate").get_config(variant)
    settings = from_config(BenchmarkSettings, config.lock())
    assert (settings.rollout.temperature, settings.rollout.top_p) == (0.6, 0.95)
    assert settings.num_samples == (4 if variant == "cpu" else 32)


@pytest.mark.parametrize("name", ["quickstart", "qwen05b_gsm8k", "qwen05b_deepmath", "evaluate"])
def test_an_unknown_variant_is_refused_by_name(name):
    module = importlib.import_module(f"experiments.configs.{name}")
    with pytest.raises(ValueError, match="no variant 'quick'"):
        module.get_config("quick")


def test_the_paper_preset_has_the_papers_numbers():
    """The authors' published round scripts (arXiv 2509.25454, public repository), value by value."""
    config = importlib.import_module("experiments.configs.deepsearch_1_5b").get_config()
    config.model.path = "a directory"
    settings = from_config(RunSettings, config)
    assert settings.search.max_depth == 64
    assert settings.search.expansion_width == 8
    assert settings.search.max_response_length == 16384
    assert settings.search.num_trajectories == settings.rounds.group_size == 8
    assert settings.search.exploration == 2
    assert (settings.search.frontier_value_weight, settings.search.frontier_depth_weight) == (0.4, 0.01)
    assert settings.search.frontier_entropy_weight == 0
    assert settings.task.math.prompt.max_prompt_length == 2048
    assert settings.rounds.problems_per_step == 256
    assert settings.rounds.problems_per_update == 32
    assert (settings.loss.clip_low, settings.loss.clip_high, settings.loss.dual_clip) == (0.2, 0.28, 10)
    assert settings.loss.aggregation == "token_mean"
    assert settings.loss.entropy_coefficient == 0
    assert (settings.loss.importance_cap, settings.loss.kl_coefficient) == (0, 0)
    assert (settings.optimizer.learning_rate, settings.optimizer.warmup_steps) == (1e-6, 10)
    assert (settings.optimizer.weight_decay, settings.optimizer.max_grad_norm) == (0.1, 1.0)
    assert (settings.advantage.overlong_max_length, settings.advantage.overlong_buffer) == (16384, 4096)
    assert settings.advantage.normalisation == "mean"
    assert (settings.rollout.temperature, settings.rollout.top_p, settings.rollout.top_k) == (1, 1, 0)
    assert (settings.filter.num_samples, settings.filter.threshold) == (4, 0.25)
    assert settings.rounds.steps_per_round == 100
    assert not settings.advantage.drop_uniform


def test_every_setting_is_read_somewhere():
    """A key that nothing reads would be accepted and do nothing."""
    read = set()
    for path in (REPOSITORY / "deepsearch_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    unread = [name for name in setting_names(RunSettings) if name.split(".")[-1] not in read]
    assert unread == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": {"problems_per_update": -4}}, "problems_per_update=-4 must be at least 0"),
        ({"rounds": {"steps_per_round": -1}}, "steps_per_round=-1 must be at least 0"),
        ({"rounds": {"group_size": 1}}, "group_size=1 must be at least 2"),
        ({"rounds": {"problems_per_step": 6, "problems_per_update": 4}}, "problems_per_update=4 must divide"),
        ({"num_devices": -1}, "num_devices=-1 must be at least 0"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"log_prob_chunk": 0}, "log_prob_chunk=0 must be at least 1"),
        ({"guards": {"max_skipped_updates": 0}}, "max_skipped_updates=0 must be at least 1"),
        ({"loss": {"importance_cap": 0.5}}, "importance_cap=0.5 must be at least 1"),
        ({"alarms": {"stop": True}}, "stop=True, but no limit is set"),
        ({"cache": {"capacity": -3}}, "capacity=-3 must be at least 0"),
        ({"evaluation": {"max_length": -5}}, "max_length=-5 must be at least 0"),
        ({"model": {"param_dtype": "fp32"}}, "param_dtype='fp32' is not known"),
        ({"model": {"path": "qwen"}}, "model.path='qwen' is given, but task.name='arithmetic'"),
        ({"task": {"name": "math"}}, "model.path is empty"),
        (
            {"search": {"expansion": "lazy", "siblings": "distinct"}, "rollout": {"temperature": 0.0}},
            "rollout.temperature=0.0: the likeliest child has no sibling",
        ),
        (
            {"search": {"expansion": "lazy", "siblings": "distinct"}, "rollout": {"top_p": 0.9}},
            "a cut may leave no token but those of the siblings",
        ),
        (
            {"advantage": {"level": "siblings", "overlong_max_length": 8, "overlong_buffer": 4}},
            "overlong_buffer=4 with",
        ),
        ({"filter": {"min_direct": 9}}, "filter.min_direct=9 direct rollouts do not fit"),
        ({"method": "dapo"}, "dynamic_sampling_batches=1"),
        ({"method": "grpo"}, "set advantage.level='outcome'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_runs(changes, words):
    with pytest.raises(ValueError, match="config") as error:
        from_config(RunSettings, changes)
    assert words in str(error.value)
