"""Makes the update of a kept batch again and says where in it numbers stop being finite."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from deepsearch_jax.policy import load_pretrained
from deepsearch_jax.runtime.guards import FAILED_BATCH
from deepsearch_jax.runtime.kept_batches import RECORD, KeptBatch, load, restore_state
from deepsearch_jax.runtime.learning import Learner
from deepsearch_jax.runtime.meshes import build_mesh
from deepsearch_jax.runtime.run import draw_params
from deepsearch_jax.training import Batch, RowReport, TrainState, by_layer
from deepsearch_jax.types import PackedBatch, TokenBatch

_CONTEXT = 8  # tokens shown before the one that is not finite


@dataclasses.dataclass
class Replay:
    """What was found.

    Attributes:
      recorded, replayed: metrics of the update, then and now.
      is_equal: whether loss and gradient norm are those of the record bit for bit.
      lines: what to tell, in order.
    """

    recorded: dict[str, float]
    replayed: dict[str, float]
    is_equal: bool
    lines: list[str]


class _Found(NamedTuple):
    """First parts of a batch that are not finite: (row, token, what); the row whose gradient is not."""

    tokens: list[tuple[int, int, str]]
    gradient_row: int | None
    gradients: dict[str, np.ndarray]
    largest: dict[str, np.ndarray]


def replay_batch(directory: pathlib.Path, *, num_devices: int = 0, debug_nans: bool = False) -> Replay:
    """Makes the update of a kept batch again.

    Args:
      directory: of the batch, or a workdir that holds one at which its run stopped.
      num_devices: instead of those that the batch was made on; other numbers change rounding.
      debug_nans: run the row that goes wrong under jax_debug_nans, which names the operation.
    Raises:
      ValueError: no batch there, one of another version or model, or too few devices.
    """
    if not (directory / RECORD).exists() and (directory / FAILED_BATCH / RECORD).exists():
        directory = directory / FAILED_BATCH
    kept = load(directory)
    learner, state = _learner_of(directory, kept, num_devices or kept.record["num_devices"])
    lines = [_headline(directory, kept), *_parameter_lines(state.params), *_extremes(kept.batch)]
    on_one = jax.device_get(state.params)
    replayed = _update_again(learner, state, kept)
    recorded = {name: float(value) for name, value in kept.record["metrics"].items()}
    is_equal = all(_is_same(recorded[name], replayed[name]) for name in ("loss", "grad_norm"))
    lines += [_comparison(name, recorded[name], replayed[name]) for name in ("loss", "grad_norm")]
    lines += [
        f"{name} {replayed[name]:.6g}"
        for name in ("max_abs_log_ratio", "mean_ratio", "importance_weight_max", "sampler_gap_max", "learning_rate")
    ]
    found, log_probs = _go_through_rows(learner, on_one, kept)
    lines += [*_log_prob_lines(kept, log_probs), *_found_lines(kept, found)]
    if debug_nans:
        lines += _debug_lines(learner, on_one, kept, found)
    return Replay(recorded, replayed, is_equal, lines)


def _learner_of(directory: pathlib.Path, kept: KeptBatch, num_devices: int) -> tuple[Learner, TrainState]:
    settings, model = kept.settings, kept.model
    mesh = build_mesh(num_devices)
    learner = Learner(settings, model, mesh, directory, rollout_mesh=mesh)
    # Those that are trained are of the right form only, what was kept takes their place; those under adapters stay.
    params = draw_params(model, settings.seed)
    if settings.lora.rank and settings.model.path:
        _, params = load_pretrained(
            settings.model.path, param_dtype=model.param_dtype, compute_dtype=model.compute_dtype, remat=model.remat
        )
    like = learner.init(params)
    if learner.base_fingerprint != kept.record["base"]:
        raise ValueError(
            f"the model at {settings.model.path!r} is not the one that the adapters in {directory} belong to; put the "
            "weights back that the run was started with"
        )
    return learner, restore_state(directory, like)


def _update_again(learner: Learner, state: TrainState, kept: KeptBatch) -> dict[str, float]:
    batch, origin = kept.batch, kept.origin
    if origin.is_supervised:
        assert isinstance(batch, TokenBatch)
        metrics = learner.supervised_with_metrics(state, batch, origin.warm_start_rate)[1]
    else:
        metrics = learner.update(state, batch, origin.micro_batch_rows)[1]
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


def _go_through_rows(learner: Learner, params: Any, kept: KeptBatch) -> tuple[_Found, np.ndarray]:
    """Each row on its own, one after the other; also the log-probs of all, [R, T]."""
    tokens: list[tuple[int, int, str]] = []
    bad: dict[str, np.ndarray] = {}
    largest: dict[str, np.ndarray] = {}
    gradient_row = None
    log_probs = np.zeros(kept.batch.tokens.shape, np.float32)
    is_trained = trained_tokens(kept.batch)
    for row, one in _rows(kept.batch):
        report: RowReport = jax.device_get(_inspect(learner, params, one, kept))
        log_probs[row] = report.log_probs
        named = {"log-prob": report.log_probs, "entropy": report.entropy} | _inputs_of(one)
        for name, values in named.items():
            places = np.flatnonzero(is_trained[row] & ~np.isfinite(values))
            tokens += [(row, int(place), name) for place in places[:1]]
        counts, sizes = _by_name(report.num_non_finite), _by_name(report.largest)
        if any(count.any() for count in counts.values()):
            gradient_row = row if gradient_row is None else gradient_row
            bad = {name: bad.get(name, 0) + count for name, count in counts.items()}
        largest = {name: np.maximum(largest.get(name, 0), size) for name, size in sizes.items()}
    return _Found(tokens, gradient_row, bad, largest), log_probs


def _inspect(learner: Learner, params: Any, row: Batch, kept: KeptBatch) -> RowReport:
    return learner.inspect(params, row, is_supervised=kept.origin.is_supervised)


def _rows(batch: Batch) -> Iterator[tuple[int, Batch]]:
    """Rows that train on something, each as a batch."""
    for row in np.flatnonzero(trained_tokens(batch).any(axis=1)):
        yield int(row), jax.tree.map(lambda leaf: leaf[row : row + 1], batch)  # noqa: B023 (used at once)


def trained_tokens(batch: Batch) -> np.ndarray:
    """[R, T] bool tokens that the loss sums over."""
    return np.asarray(batch.sums.num_paths if isinstance(batch, PackedBatch) else batch.loss_mask) > 0


def _inputs_of(one: Batch) -> dict[str, np.ndarray]:
    """What a row brings along by name, [T] each; the sampler's log-probs may be unknown (NaN)."""
    if isinstance(one, PackedBatch):
        sums = {f"sum of {f.name}": getattr(one.sums, f.name)[0] for f in dataclasses.fields(one.sums)}
    else:
        sums = {"advantage": one.advantages[0]}
    others = {"old log-prob": one.old_log_probs[0]}
    if one.reference_log_probs is not None:
        others["reference log-prob"] = one.reference_log_probs[0]
    return {name: np.asarray(value) for name, value in (sums | others).items()}


def _by_name(tree: Any) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.atleast_1d(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


# What is told.


def _headline(directory: pathlib.Path, kept: KeptBatch) -> str:
    origin, batch = kept.origin, kept.batch
    what = "a supervised step" if origin.is_supervised else "an update"
    form = "rows of packed trees" if isinstance(batch, PackedBatch) else "rows of one response"
    rows, width = batch.tokens.shape
    return (
        f"{directory}: {what} of step {origin.step + 1} (update {origin.update}), {rows} {form} of {width} tokens, "
        f"{int(trained_tokens(batch).sum())} of them trained on; {len(origin.problems)} problems, "
        f"{kept.record['num_devices']} device(s)"
    )


def _comparison(name: str, then: float, now: float) -> str:
    same = "the same bit for bit" if _is_same(then, now) else f"DIFFERENT from the recorded {then!r}"
    return f"{name} {now!r}: {same}"


def _is_same(then: float, now: float) -> bool:
    return then == now or (np.isnan(then) and np.isnan(now))


def _parameter_lines(params: Any) -> list[str]:
    """Parameters that are not finite before the update: then nothing else needs an explanation."""
    lines = []
    for path, leaf in jax.tree.leaves_with_path(params):
        count = (~np.isfinite(np.asarray(by_layer(path, jax.device_get(leaf)), np.float32))).sum(axis=-1)
        if count.any():
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            lines.append(f"the parameter {name} is itself not finite: {_entries(name, np.atleast_1d(count))}")
    return lines or ["all parameters are finite before the update"]


def _entries(name: str, count: np.ndarray) -> str:
    where = f" in layers {', '.join(map(str, np.flatnonzero(count)))}" if "layers" in name.split(".") else ""
    return f"{int(count.sum())} entries{where}"


def _extremes(batch: Batch) -> list[str]:
    is_trained = trained_tokens(batch)
    values = batch.sums.advantages if isinstance(batch, PackedBatch) else batch.advantages
    return [_range("advantages", np.asarray(values)[is_trained])]


def _range(name: str, values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    text = f"{name} from {finite.min():.6g} to {finite.max():.6g}" if finite.size else f"no finite {name}"
    return text + (f", {values.size - finite.size} of {values.size} not finite" if finite.size < values.size else "")


def _log_prob_lines(kept: KeptBatch, log_probs: np.ndarray) -> list[str]:
    is_trained = trained_tokens(kept.batch)
    lines = [_range("log-probs", log_probs[is_trained])]
    if kept.origin.is_supervised:
        return lines
    old = np.asarray(kept.batch.old_log_probs)[is_trained]
    if old.any():
        with np.errstate(invalid="ignore", over="ignore"):
            lines += [_range("old log-probs", old), _range("log-ratios (new - old)", log_probs[is_trained] - old)]
    return lines


def _found_lines(kept: KeptBatch, found: _Found) -> list[str]:
    lines = []
    for row, place, name in found.tokens[:3]:
        before = np.asarray(kept.batch.tokens)[row, max(place - _CONTEXT, 0) : place].tolist()
        token = int(np.asarray(kept.batch.tokens)[row, place])
        lines.append(f"row {row}, token {place} (id {token}, after {before}): its {name} is not finite")
    if found.gradient_row is None:
        if not found.tokens:
            lines.append("every row on its own has a finite loss and gradient")
        name, size = max(((n, float(s.max())) for n, s in found.largest.items()), key=lambda item: item[1])
        return [*lines, f"the largest entry of a row's gradient is {size:.6g}, of {name}"]
    lines.append(f"the gradient of row {found.gradient_row} is the first that is not finite")
    ordered = sorted(found.gradients.items(), key=lambda item: _backward_place(*item))
    is_bad = [(name, count) for name, count in ordered if count.any()]
    lines.append(f"going backwards from the loss, {is_bad[0][0]} is the first parameter whose gradient is not finite:")
    return lines + [f"  {name}: {_entries(name, count)}" for name, count in is_bad]


_FORWARD = ("embed", "attention_norm", "attention", "mlp_norm", "mlp", "final_norm", "head")


def _backward_place(name: str, count: np.ndarray) -> tuple[int, int]:
    """When the backward pass comes by: the head first, the layers from the last to the first, the embedding."""
    parts = name.split(".")
    rank = max((place for place, part in enumerate(_FORWARD) if part in parts), default=0)
    if "layers" in parts:
        return 1, -100 * int(np.flatnonzero(count).max(initial=0)) - rank
    return (2, 0) if "embed" in parts else (0, -rank)


def _debug_lines(learner: Learner, params: Any, kept: KeptBatch, found: _Found) -> list[str]:
    """What jax_debug_nans says of the first row that goes wrong."""
    row = min([row for row, *_ in found.tokens] + [r for r in (found.gradient_row,) if r is not None], default=None)
    if row is None:
        return ["jax_debug_nans: no row on its own goes wrong"]
    one = jax.tree.map(lambda leaf: leaf[row : row + 1], kept.batch)
    if one.sampler_log_probs is not None:  # NaN stands for what is not known; here it would be taken for a fault
        one = one.replace(sampler_log_probs=np.nan_to_num(one.sampler_log_probs, posinf=None, neginf=None))
    try:
        with jax.debug_nans(True):
            _inspect(learner, params, one, kept)
    except FloatingPointError as error:
        frame = _own_frame(error)
        return [f"jax_debug_nans in row {row}: {str(error).splitlines()[0]}{frame}"]
    return [f"jax_debug_nans: row {row} gives no NaN (an infinity is none)"]


def _own_frame(error: BaseException) -> str:
    """The innermost line of this package that an error passed through."""
    frame, where = error.__traceback__, ""
    while frame is not None:
        path = frame.tb_frame.f_code.co_filename
        if "deepsearch_jax" in path and not path.endswith(("replay.py", "inspection.py")):
            where = f", at deepsearch_jax{path.rsplit('deepsearch_jax', 1)[1]}:{frame.tb_lineno}"
        frame = frame.tb_next
    return where
