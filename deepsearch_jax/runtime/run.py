"""One call from settings to a trained policy in a workdir."""

import os
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from deepsearch_jax.policy import ModelConfig, init_params, load_pretrained, save_adapter, save_pretrained
from deepsearch_jax.runtime.compile_cache import enable_compile_cache
from deepsearch_jax.runtime.debug import watch_nans
from deepsearch_jax.runtime.export import copy_tokenizer
from deepsearch_jax.runtime.interrupt import Interrupted, StopRequest
from deepsearch_jax.runtime.meshes import build_mesh
from deepsearch_jax.runtime.metrics import read_rows
from deepsearch_jax.runtime.processes import SharedStop, is_first
from deepsearch_jax.runtime.progress import Reporter
from deepsearch_jax.runtime.report import draw_curves, print_table
from deepsearch_jax.runtime.settings import ModelSettings, RunSettings
from deepsearch_jax.runtime.tasks import Task, build_task
from deepsearch_jax.runtime.trainer import Trainer
from deepsearch_jax.runtime.watchdog import Watchdog
from deepsearch_jax.runtime.workdir import Workdir, explain_unwritable
from deepsearch_jax.training import gather
from deepsearch_jax.tree import SearchSettings

_PARAMS_STREAM = 2**31 - 1  # counter of the key that fresh parameters are drawn with; no purpose of a sampler


def run(
    settings: RunSettings, config: dict[str, Any], workdir: str | os.PathLike[str], *, reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> bool:  # fmt: skip
    """Trains, or goes on training, in `workdir`.

    Args:
      settings: of the run.
      config: the same as nested plain values, kept in the workdir and compared when the run is resumed.
      workdir: created if needed.
      reporter: tells how far the run is; by default on the terminal.
      stop: takes the signals while the run is at work. A caller that gives its own can ask it afterwards for a stop
        that came too late for the run: between its last step and its end.

    Returns:
      True at the end of the run, False if a stop was asked for and everything is saved.

    Raises:
      ValueError: a setting, file or workdir that cannot be used.
      CheckpointError: the state could not be saved, or none of the checkpoints can be read.
      WorkdirError: the workdir cannot be written any more.
      TooManySkipped: updates were not finite too many times in a row.
      AlarmStop: an alarm was raised and alarms.stop is set.
    """
    reporter = (reporter or Reporter()) if is_first() else Reporter(Console(quiet=True))
    stop = stop or (StopRequest() if jax.process_count() == 1 else SharedStop())
    place = Workdir(workdir, is_owner=is_first())
    task: Task | None = None
    trainer: Trainer | None = None
    stalls = "stall.txt" if is_first() else f"stall_{jax.process_index()}.txt"
    watchdog = Watchdog(settings.watchdog, reporter.pulse, place.path / stalls, reporter.line)
    stop.install()
    watchdog.start()
    try:
        place.check_config(config)
        enable_compile_cache(settings.compile_cache)
        task = build_task(settings.task, settings.model.path, settings.seed)
        model, params = build_policy(settings.model, task, settings.search, settings.seed)
        mesh, rollout_mesh = build_mesh(settings.num_devices), build_mesh(settings.num_devices, local=True)
        reporter.line(_headline(settings, task, params, mesh))
        if skipped := task.statistics().get("skipped_prompts"):
            reporter.line(f"{skipped} problems are left out: their prompts are longer than the limit")
        with explain_unwritable(place.path):
            trainer = Trainer(
                settings, task, model, params, place.path, mesh=mesh, rollout_mesh=rollout_mesh, reporter=reporter,
                stop=stop,
            )  # fmt: skip
        del params  # the trainer owns them now
        with explain_unwritable(place.path):
            place.record_config(config)
            if is_first():
                reporter.recall(read_rows(place.path / "metrics.jsonl"))
            try:
                with watch_nans(settings.debug):
                    trainer.run()
            except Interrupted:
                reporter.line("stopped; the same command goes on from here")
                return False
            _finish(trainer, settings, model, place.path, reporter)
        return True
    finally:
        reporter.close()
        if trainer is not None:
            trainer.close()
        if task is not None:
            task.close()
        watchdog.stop()
        stop.restore()
        place.close()


def compute_dtype_of(settings: ModelSettings) -> str:
    """Dtype of the matrix products on this machine."""
    if settings.compute_dtype != "auto":
        return settings.compute_dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def build_policy(settings: ModelSettings, task: Task, search: SearchSettings, seed: int) -> tuple[ModelConfig, Any]:
    """Architecture and parameters: read from a Hugging Face directory, or drawn anew for the task's alphabet."""
    if settings.path:
        return load_pretrained(
            settings.path, param_dtype=settings.param_dtype, compute_dtype=compute_dtype_of(settings),
            remat=settings.remat,
        )  # fmt: skip
    model = build_model(settings, task, search)
    return model, draw_params(model, seed)


def build_model(settings: ModelSettings, task: Task, search: SearchSettings) -> ModelConfig:
    """Architecture of a small decoder for the task's alphabet."""
    longest_prompt = max(len(task.prompt(p)) for p in (*task.train_problems, *task.eval_problems))
    return ModelConfig.tiny(
        task.tokenizer.vocab_size, hidden_size=settings.hidden_size, num_layers=settings.num_layers,
        num_heads=settings.num_heads, num_kv_heads=settings.num_kv_heads,
        intermediate_size=settings.intermediate_size, max_position_embeddings=2 * (longest_prompt
        + search.max_response_length), eos_ids=tuple(task.tokenizer.eos_ids), pad_id=task.tokenizer.pad_id,
        param_dtype=settings.param_dtype, compute_dtype=compute_dtype_of(settings), remat=settings.remat,
    )  # fmt: skip


def draw_params(model: ModelConfig, seed: int) -> Any:
    """The parameters that a policy from nothing starts with."""
    return init_params(model, jax.random.fold_in(jax.random.key(seed), _PARAMS_STREAM))


def _headline(settings: RunSettings, task: Task, params: Any, mesh: Mesh | None) -> str:
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    devices = "1 device" if mesh is None else f"{mesh.size} devices"
    return (
        f"{settings.method} on {settings.task.name}: {len(task.train_problems)} problems, "
        f"{len(task.eval_problems)} held out, {size / 1e6:.2f} M parameters, {devices} ({jax.devices()[0].device_kind})"
    )


def _finish(
    trainer: Trainer, settings: RunSettings, model: ModelConfig, workdir: pathlib.Path, reporter: Reporter
) -> None:
    params = gather(trainer.policy_params(settings.model.param_dtype))
    adapters = gather(trainer.arrays.train.params) if settings.lora.rank else None
    if not is_first():
        return
    rows = read_rows(workdir / "metrics.jsonl")
    reporter.close()
    print_table(reporter.console, rows)
    draw_curves(workdir / "curves.png", rows)
    reporter.line(f"curves: {workdir / 'curves.png'}")
    if settings.model.path:
        save_pretrained(workdir / "policy", model, params)
        copy_tokenizer(pathlib.Path(settings.model.path), workdir / "policy")
        reporter.line(f"policy: {workdir / 'policy'} (Hugging Face layout)")
        if adapters is not None:
            save_adapter(workdir / "adapter", model, adapters, settings.lora, base_model=settings.model.path)
            reporter.line(f"adapter: {workdir / 'adapter'} (PEFT layout)")
