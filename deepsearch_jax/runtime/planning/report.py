"""A plan as text and as JSON, and what to change where it does not fit."""

import dataclasses
from typing import Any

from deepsearch_jax.runtime.memory import page_bytes
from deepsearch_jax.runtime.planning.plan import Phase, Plan, Rows
from deepsearch_jax.runtime.planning.work import DECODE_SHARE, MFU
from deepsearch_jax.training import num_rows_that_fit

GIB = 2**30


def render(plan: Plan) -> str:
    """The plan for people: memory of a device by phase and kind, operations, collectives, times."""
    chip, axes = plan.chip, " ".join(f"{axis}:{size}" for axis, size in plan.mesh.items())
    lines = [
        f"{plan.num_devices} x {chip.name} ({axes}), {plan.model.num_parameters / 1e9:.2f} B parameters, "
        f"{plan.model.param_dtype} weights, {plan.model.compute_dtype} products, prompts up to {plan.prompt_length} "
        "tokens",
        "",
        f"memory of a device, GiB ({plan.available / GIB:.2f} of {chip.memory / GIB:.2f} can be used)",
    ]
    kinds = list(dict.fromkeys(kind for phase in plan.phases for kind in phase.shares))
    width = max(map(len, kinds))

    def line(name: str, cells: list[str]) -> str:
        widths = [max(len(phase.name), 7) + 2 for phase in plan.phases]
        return f"{name:<{width}}" + "".join(f"{cell:>{size}}" for cell, size in zip(cells, widths, strict=True))

    lines.append(line("", [phase.name for phase in plan.phases]))
    for kind in kinds:
        cells = [f"{phase.shares[kind] / GIB:.2f}" if kind in phase.shares else "-" for phase in plan.phases]
        lines.append(line(kind, cells))
    lines.append(line("total", [f"{phase.total / GIB:.2f}" for phase in plan.phases]))
    free = plan.available - plan.peak.total
    lines.append(line("left", [f"{(plan.available - phase.total) / GIB:.2f}" for phase in plan.phases]))
    lines.append(f"peak: {plan.peak.name}, {plan.peak.total / GIB:.2f} GiB, {free / GIB:.2f} GiB left")
    if plan.num_pages < plan.wanted_pages:
        lines.append(
            f"page pool: {plan.num_pages} of the {plan.wanted_pages} pages that full trees would have; nodes without "
            "one are encoded again"
        )
    lines += [
        f"{call.name}: {call.decode.num_samples} of the {call.num_samples} samples of a problem are drawn together, in "
        f"{call.num_calls} calls one after the other"
        for call in plan.direct
        if call.num_calls > 1
    ]
    if plan.stand_in:
        lines.append(
            f"programs compiled by XLA for CPU, scanned and cut up as on the accelerator, with {plan.stand_in} in "
            f"place of {plan.model.compute_dtype} (CPU programs turn that into float32); weights, optimizer and pages "
            "are exact, the rest is that compiler's"
        )
    work = plan.work
    lines.append("")
    for rows, compiled in plan.forms:
        lines.append(
            f"update on {_describe(rows)}: compiled in {compiled.seconds:.0f} s; XLA counts "
            f"{compiled.counted_flops / 1e12:.3g} TFLOP (the body of each loop once)"
        )
    update, step = work["update"], work["decode_step"]
    half = "paths of half the depth" if plan.search else "responses of half the length"
    lines += [
        f"operations of a step's {work['updates']} update(s) on responses of full length, by sizes: "
        f"{work['update_flops'] / 1e15:.3g} PFLOP a device",
        *_collectives(plan),
        "",
        f"expected times on {chip.name}",
        f"  update: {update.expected:.3g} s, bound by {update.bound} (products at {MFU:.0%} of "
        f"{chip.flops / 1e12:.0f} TFLOP/s {update.compute:.3g} s, memory {update.memory:.3g} s, links at "
        f"{work['link'] / 1e9:.0f} GB/s{' between machines' if work['is_far'] else ''} {update.links:.3g} s); "
        f"{work['updates']} a step",
        f"  decode step: {step.expected * 1e3:.3g} ms, bound by {step.bound} ({work['decode_bytes'] / 1e9:.3g} GB at "
        f"{DECODE_SHARE:.0%} of {chip.bandwidth / 1e12:.3g} TB/s, {half}); {work['tokens_per_second']:.0f} tokens/s on "
        "all devices",
        _rollouts(plan),
        f"  moving the weights to the rollouts: {work['moving_seconds']:.3g} s a step",
    ]
    return "\n".join(lines)


def _rollouts(plan: Plan) -> str:
    call, step = plan.work["call_seconds"], plan.work["rollout_seconds"] / 3600
    if plan.search:
        return (
            f"  one expansion of every slot: {call:.3g} s; a step whose trees all grow to their limit: {step:.3g} h "
            "(pages all resident; trees usually end far earlier)"
        )
    return f"  one response of every row: {call:.3g} s; a batch of problems with responses of full length: {step:.3g} h"


def _describe(rows: Rows) -> str:
    what = "packed trees" if rows.is_trees else "responses"
    return f"{rows.num_rows} rows of {rows.length} tokens, {what}, {rows.micro_batch_rows or 'all'} a device at a time"


def _collectives(plan: Plan) -> list[str]:
    found = plan.forms[0][1].collectives
    if not found.by_kind:
        return ["collectives of an update: none"]
    parts = [
        f"{traffic.count} {kind} of {traffic.bytes / GIB:.3g} GiB" for kind, traffic in sorted(found.by_kind.items())
    ]
    more = f"; {found.open_loops} loops of unknown length counted once" if found.open_loops else ""
    return [
        f"collectives of an update on responses, a device: {', '.join(parts)}: {found.sent / GIB:.3g} GiB sent{more} "
        "(accelerators turn an all-reduce of which a device keeps a piece into a reduce-scatter: half of it)"
    ]


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan for programs; bytes, seconds and operations of one device."""
    rows, compiled = plan.forms[0]
    return {
        "name": "plan", "chip": plan.chip.name, "mesh": plan.mesh, "parameters": plan.model.num_parameters,
        "fits": plan.fits, "peak_bytes": round(plan.peak.total), "peak_phase": plan.peak.name,
        "available_bytes": round(plan.available), "left_bytes": round(plan.available - plan.peak.total),
        "phases": {phase.name: {kind: round(n) for kind, n in phase.shares.items()} for phase in plan.phases},
        "pages": plan.num_pages, "pages_wanted": plan.wanted_pages,
        "samples": {call.name: {"together": call.decode.num_samples, "all": call.num_samples} for call in plan.direct},
        "row_length": rows.length, "stand_in_dtype": plan.stand_in,
        "update_flops": plan.work["update_flops"], "xla_flops_loops_once": compiled.counted_flops,
        "collectives": {
            kind: {"count": t.count, "bytes": round(t.bytes), "sent_bytes": round(t.sent)}
            for kind, t in compiled.collectives.by_kind.items()
        },
        "update_seconds": plan.work["update"].expected, "update_bound": plan.work["update"].bound,
        "updates_per_step": plan.work["updates"],
        "decode_step_seconds": plan.work["decode_step"].expected,
        "decode_tokens_per_second": plan.work["tokens_per_second"],
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting that would make room.

    Attributes:
      saved: bytes of a device, about.
    """

    setting: str
    saved: float


def explain(plan: Plan) -> str:
    """Why the run does not fit: the phase, its biggest share, and what changes would give."""
    phase = plan.peak
    biggest = max(phase.shares, key=lambda kind: phase.shares[kind])
    missing = phase.total - plan.available
    held = phase.shares[biggest] / GIB
    lines = [
        f"the run does not fit on {plan.num_devices} x {plan.chip.name}: {phase.name} takes "
        f"{phase.total / GIB:.2f} GiB of a device's {plan.available / GIB:.2f}, {missing / GIB:.2f} too many; the "
        f"biggest share is {biggest} with {held:.2f} GiB. Change (about what it gives a device):"
    ]
    found = sorted(changes(plan, phase), key=lambda change: -change.saved)
    lines += [f"  {change.setting}: {change.saved / GIB:.2f} GiB" for change in found if change.saved > 0]
    if len(lines) == 1:
        lines.append("  nothing that this plan knows of helps; take a chip with more memory or a smaller model")
    return "\n".join(lines)


def changes(plan: Plan, phase: Phase) -> list[Change]:
    """Settings that make one phase smaller."""
    settings, model, shares = plan.settings, plan.model, phase.shares
    spread = ("parameters", "optimizer", "gradients")
    found = []
    in_pieces = sum(shares.get(kind, 0) for kind in spread)
    devices, parts = plan.num_devices, plan.mesh["fsdp"] * plan.mesh["tensor"]
    if plan.mesh["data"] > 1:
        found.append(Change(f"mesh.fsdp={devices // plan.mesh['tensor']}", in_pieces * (1 - parts / devices)))
    else:
        more = plan.mesh["fsdp"] * 2
        found.append(Change(f"twice the devices with mesh.fsdp={more}", in_pieces / 2))
    copy = shares.get("rollout weights", 0)
    if not settings.rollout.int8 and phase.name != "moving weights":
        found.append(Change("rollout.int8=True", copy - model.num_parameters))
    if phase.name == "search":
        return found + _search_changes(plan, phase)
    if any(call.name == phase.name for call in plan.direct):
        return found + _direct_changes(plan, phase)
    if phase.name.startswith("update"):
        found += _update_changes(plan, phase)
    return found


def _direct_changes(plan: Plan, phase: Phase) -> list[Change]:
    """Fewer samples together, fewer problems at a time."""
    call, rollout, found = next(call for call in plan.direct if call.name == phase.name), plan.settings.rollout, []
    num_slots, together = rollout.num_slots // plan.num_devices, call.decode.num_samples
    of_one = num_slots * page_bytes(plan.model, call.decode.segment_length)
    if together > 1:
        less = together // 2
        found.append(
            Change(f"rollout.page_pool_gib={1.01 * less * of_one / GIB:.2g} (more calls)", (together - less) * of_one)
        )
    if num_slots > 1:
        less = num_slots // 2
        found.append(Change(f"rollout.num_slots={less * plan.num_devices}", (1 - less / num_slots) * together * of_one))
    return found


def _search_changes(plan: Plan, phase: Phase) -> list[Change]:
    settings, shares, found = plan.settings, phase.shares, []
    missing = max(phase.total - plan.available, 0)
    pool = shares["page pool"]
    if pool:
        kept = max(pool - missing * 1.1, 0)
        found.append(Change(f"rollout.page_pool_gib={kept / GIB:.1f} (nodes are encoded again)", pool - kept))
    if settings.rollout.num_slots > plan.num_devices:
        less = num_rows_that_fit(settings.rollout.num_slots // 2, plan.num_devices, 1)
        share = 1 - less / settings.rollout.num_slots
        found.append(Change(f"rollout.num_slots={less}", share * (shares["decoding"] + shares["trees and prompts"])))
    search = settings.search
    depth = max(search.max_depth // 2, 1)
    gathered = page_bytes(plan.model, search.segment_length) * (search.max_depth - depth)
    num_cursors = max(settings.rollout.num_slots // plan.num_devices, 1) * search.picks_per_step
    rows = settings.rollout.lot_size(plan.chip.backend, search, num_cursors)
    found.append(Change(f"search.max_depth={depth} (shorter responses)", min(gathered * rows, shares["decoding"])))
    return found


def _update_changes(plan: Plan, phase: Phase) -> list[Change]:
    """What is kept of a token between forward and backward pass, and what a chunk of the head takes."""
    settings, model, found = plan.settings, plan.model, []
    shards = plan.mesh["data"] * plan.mesh["fsdp"]
    is_trees = phase.name.endswith("trees")
    rows = next(rows for rows, _ in plan.forms if rows.is_trees == is_trees)
    tokens, item = rows.micro_batch_tokens(shards), model.dtypes[1].itemsize
    activations = phase.shares["activations and temporary"]
    chunk = min(settings.log_prob_chunk, tokens)
    head = 3.0 * chunk * model.vocab_size * 4  # logits, their log-probs and their gradient
    fixed = head + 10.0 * model.vocab_size * model.hidden_size
    by_token = max(activations - fixed, 0)
    at_once = tokens // rows.length
    if at_once > 1:
        found.append(Change("optimizer.micro_batch_rows=1", by_token * (1 - 1 / at_once)))
    if model.remat == "none":
        # Per token and layer: inputs of two norms, queries, keys, values, what attention gives, and three of the MLP.
        heads, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        kept = (
            model.num_layers
            * tokens
            * item
            * (3 * model.hidden_size + 2 * heads + 2 * kv + 3 * model.intermediate_size)
        )
        found.append(Change("model.remat=full", min(kept * (1 - 1 / model.num_layers), by_token)))
    if chunk > 64:
        found.append(Change(f"log_prob_chunk={chunk // 4}", head * 0.75))
    if is_trees:
        path = plan.forms[0][0]
        limit = max(rows.length // 2, path.length)
        found.append(Change(f"pack.max_tree_tokens={limit}", by_token * (1 - limit / rows.length)))
        least = max(path.micro_batch_tokens(shards), 1)
        found.append(Change("pack.trees=never", by_token * (1 - least / tokens)))
    else:
        depth = max(settings.search.max_depth // 2, 1)
        found.append(Change(f"search.max_depth={depth} (shorter responses)", by_token / 2))
    return found
