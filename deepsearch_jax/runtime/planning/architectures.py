"""The decoder that a plan is made for: of a model directory's config.json, by a known name, or the one from nothing."""

import dataclasses

from deepsearch_jax.policy import ModelConfig, load_config
from deepsearch_jax.runtime.planning.chips import Chip
from deepsearch_jax.runtime.settings import RunSettings
from deepsearch_jax.runtime.tasks import build_task

_QWEN_1_5B = ModelConfig(hidden_size=1536, intermediate_size=8960, num_layers=28, num_heads=12, head_dim=128)
# Sizes as in the published config.json of each.
ARCHITECTURES = {
    "qwen2.5-0.5b": ModelConfig(),
    "qwen2.5-1.5b": _QWEN_1_5B,
    # The paper's: Nemotron-Research-Reasoning-Qwen-1.5B, from DeepSeek-R1-Distill-Qwen-1.5B; the head stands apart.
    "r1-distill-1.5b": dataclasses.replace(
        _QWEN_1_5B, tie_word_embeddings=False, max_position_embeddings=131072, rope_theta=10000.0
    ),
    "qwen2.5-7b": ModelConfig(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_layers=28, num_heads=28, num_kv_heads=4,
        head_dim=128, tie_word_embeddings=False,
    ),
}  # fmt: skip


def planned_model(settings: RunSettings, architecture: str, chip: Chip) -> tuple[ModelConfig, int]:
    """The decoder as a run on that chip builds it, and the tokens of its longest prompt.

    Args:
      architecture: a name of `ARCHITECTURES`; "" reads config.json below `settings.model.path`.
    Raises:
      ValueError: an unknown name.
      OSError: no such file.
    """
    compute = settings.model.compute_dtype
    if compute == "auto":
        compute = "float32" if chip.is_cpu else "bfloat16"
    dtypes = {"param_dtype": settings.model.param_dtype, "compute_dtype": compute, "remat": settings.model.remat}
    if settings.task.name == "arithmetic":
        task, own, search = build_task(settings.task, "", settings.seed), settings.model, settings.search
        prompt = max(len(task.prompt(problem)) for problem in (*task.train_problems, *task.eval_problems))
        model = ModelConfig.tiny(
            task.tokenizer.vocab_size, hidden_size=own.hidden_size, num_layers=own.num_layers,
            num_heads=own.num_heads, num_kv_heads=own.num_kv_heads, intermediate_size=own.intermediate_size,
            max_position_embeddings=2 * (prompt + search.max_response_length),
            eos_ids=tuple(task.tokenizer.eos_ids), pad_id=task.tokenizer.pad_id, **dtypes,
        )  # fmt: skip
        task.close()
        return model, prompt
    if architecture:
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture={architecture!r} is not known; choose one of {', '.join(ARCHITECTURES)}")
        model = dataclasses.replace(ARCHITECTURES[architecture], **dtypes)  # type: ignore[arg-type]
    else:
        model = load_config(settings.model.path, **dtypes)  # type: ignore[arg-type]
    return model, settings.task.math.prompt.max_prompt_length
