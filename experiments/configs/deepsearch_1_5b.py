"""The paper's run: a 1.5B Qwen2 model on DeepMath with the authors' settings, every number of their scripts.

Start it from any Hugging Face directory of a 1.5B Qwen2 model (the paper: Nemotron-Research-Reasoning-Qwen-1.5B v2)
with --config.model.path=DIR. Meant for eight accelerators with 80 GB, one tree a device: all KV pages of a full tree
are 28 GiB (28,672 bytes a token); what rollout.page_pool_gib does not hold is encoded again where it is needed. Where a
setting of the project has its own default, this file sets the authors'.

Variants say where it runs and change nothing of the method: `paper` (default, eight devices without fsdp), `h200`
(one), `h100x8`, `h100x16`, `v5e16` (sixteen TPU chips of 16 GiB). `python -m experiments.plan` shows what each holds.
"""

import os

from ml_collections import ConfigDict

from deepsearch_jax.config import to_config
from deepsearch_jax.runtime import RunSettings
from experiments.presets import set_paper

VARIANTS = ("paper", "h200", "h100x8", "h100x16", "v5e16")


def get_config(variant: str = "paper") -> ConfigDict:
    """The settings of the authors' round scripts, as two rounds of 100 steps each.

    Raises: ValueError for a variant that does not exist.
    """
    if variant not in VARIANTS:
        raise ValueError(f"deepsearch_1_5b has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    data = os.environ.get("DEEPSEARCH_DATA", "../shared/data")
    config = to_config(RunSettings())
    config.model.path = os.environ.get("DEEPSEARCH_MODEL_DIR", "")
    config.model.remat = "full"  # gradient checkpointing
    config.task.name = "math"
    config.task.math.train.paths = (
        f"{data}/train/deepmath_round0_pass00.jsonl.gz",
        f"{data}/train/deepmath_round0_pass25.jsonl.gz",
    )
    config.task.math.train.exclude_file = f"{data}/exclude_ids.json"
    config.task.math.evaluation.paths = (f"{data}/eval/aime25.jsonl.gz",)
    config.task.math.prompt.max_prompt_length = 2048
    config.task.math.verify.mode = "boxed"  # the authors' string comparison

    # 64 segments of 256 tokens are 16384 tokens a response; width, trajectories and the rest: the preset.
    config.search.max_depth = 64
    config.search.segment_length = 256
    config.rollout.num_slots = 8
    set_paper(config)

    # Overlong buffer of 4096 tokens.
    config.advantage.overlong_max_length = 16384
    config.advantage.overlong_buffer = 4096
    config.advantage.overlong_factor = 1.0

    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_steps = 10
    config.optimizer.weight_decay = 0.1
    config.optimizer.max_grad_norm = 1.0
    config.optimizer.micro_batch_rows = 1

    # Rounds: 256 problems a step, 32 an update; the files of the first round are filtered already.
    config.rounds.num_rounds = 2
    config.rounds.steps_per_round = 100
    config.rounds.problems_per_step = 256
    config.rounds.problems_per_update = 32
    config.rounds.filter_first_round = False
    config.cache.capacity = 2048
    config.cache.paths_per_problem = 8
    config.cache.page_length = 256
    config.pack.min_rows = 8
    config.pack.row_multiple = 1024

    if variant != "paper":
        _place(config, variant)

    config.evaluation.num_samples = 32
    config.evaluation.temperature = 0.6
    config.checkpoint.every_steps = 5
    return config


def _place(config: ConfigDict, variant: str) -> None:
    """Sizes of the machine. Rows are padded to quarters of the longest, 18,432 tokens with the prompt."""
    config.pack.row_multiple = 4608
    config.pack.max_tree_tokens = 4 * 18432  # longer trees go in rows of one response; bounds a pass's memory
    config.pack.min_rows = 32
    if variant == "h100x8":
        config.mesh.fsdp = 8
    if variant == "h100x16":
        config.rollout.num_slots = 16
        config.mesh.fsdp = 8  # within a machine
    if variant == "v5e16":
        config.rollout.num_slots = 16
        config.rollout.page_pool_gib = 2.0
        config.mesh.fsdp = 16
        config.pack.trees = "never"  # a tree is longer than a response
        config.log_prob_chunk = 256
