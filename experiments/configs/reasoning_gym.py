"""Any dataset of reasoning-gym by name: `--config.task=reasoning_gym:countdown`; needs `pip install -e '.[eval]'`.

Without a model a small one that reads and writes characters is first shown answers of the dataset, then trained; with
--config.model.path=DIR a pretrained one thinks first and answers between <answer> and </answer>. Variants set a dataset
and options small enough for minutes on two cores: `chain_sum` (default), `countdown`; `model` has the sizes for a
pretrained model.
"""

from ml_collections import ConfigDict

from deepsearch_jax.config import to_config
from deepsearch_jax.runtime import RunSettings

VARIANTS = ("chain_sum", "countdown", "model")
_OPTIONS = {
    "chain_sum": "",  # of any dataset that is named on the command line
    "countdown": "min_numbers=3, max_numbers=3, max_value=30, min_target=10, max_target=99",
}


def get_config(variant: str = "chain_sum") -> ConfigDict:
    """Settings of the run. Raises: ValueError for a variant that does not exist."""
    if variant not in VARIANTS:
        raise ValueError(f"reasoning_gym has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    config = to_config(RunSettings())
    config.task.name = f"reasoning_gym:{'chain_sum' if variant == 'model' else variant}"
    config.task.options = _OPTIONS.get(variant, "")
    config.task.text.prompt.template = (
        "{question}\nThink step by step, briefly. Then give the final answer alone between <answer> and </answer>."
    )

    config.model.hidden_size = 48
    config.model.num_layers = 2
    config.model.intermediate_size = 128
    # Lazy: an answer of one segment leaves an eager tree nothing to expand after its first look.
    config.search.expansion = "lazy"
    config.search.expansion_width = 8
    config.search.picks_per_step = 2
    config.search.segment_length = 4  # characters
    config.search.max_depth = 8  # 32 characters an answer
    config.search.num_trajectories = 8
    config.search.capacity = 8 * 8 + 17
    config.rollout.num_slots = 16
    config.rollout.prompt_multiple = 64
    config.rollout.path_multiple = 8
    config.rounds.num_rounds = 1
    config.rounds.steps_per_round = 10
    config.rounds.problems_per_step = 16
    config.rounds.filter_problems = False
    config.cache.page_length = 32
    config.filter.min_direct = 4
    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.99
    config.pack.row_multiple = 64
    config.pack.min_rows = 32
    config.evaluation.every_steps = 5
    config.evaluation.num_problems = 64
    config.evaluation.num_samples = 4
    config.checkpoint.every_steps = 5

    if variant == "model":
        config.model.remat = "full"
        config.search.segment_length = 32
        config.search.max_depth = 16  # 512 tokens a response
        config.search.capacity = 8 * 16 + 17
        config.rollout.prompt_multiple = 128
        config.cache.page_length = 64
        config.optimizer.learning_rate = 1e-6
        config.optimizer.weight_decay = 0.1
        config.optimizer.b2 = 0.999
        config.optimizer.micro_batch_rows = 8
        config.pack.row_multiple = 128
    return config
