"""Replays one recorded search through the project's own search functions, event by event and as whole steps.

The engine is scripted: the children of a node are the recorded ones, so all that is left to agree on is the search.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepsearch_jax import tree as search
from deepsearch_jax.objective import advantages
from deepsearch_jax.objective.settings import AdvantageSettings
from deepsearch_jax.tree import SearchSettings, SearchStatus, Selection, Tree
from deepsearch_jax.types import Outcome, Segments

TOLERANCE = 1e-6
HOW = {
    Selection.STOP: "stop",
    Selection.LOCAL: "local",
    Selection.GLOBAL: "global",
    Selection.UCT_ROOT: "uct_root",
    Selection.FALLBACK_FRONTIER: "fallback_frontier",
}


class Mismatch(Exception):
    """The first quantity in which a replay differs from its recording."""


def expect(what: str, got: Any, wanted: Any, tolerance: float | None = None) -> None:
    """Raises Mismatch naming `what`, unless got equals wanted, exactly or to an absolute tolerance."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    if got.shape != wanted.shape:
        raise Mismatch(f"{what}: got shape {got.shape}, recorded {wanted.shape}")
    if tolerance is None:
        wrong = got != wanted
    else:  # the negated form also catches NaN
        wrong = ~(np.abs(got.astype(np.float64) - wanted.astype(np.float64)) <= tolerance)
    if np.any(wrong):
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise Mismatch(f"{what}{list(at) if at else ''}: got {got[at]}, recorded {wanted[at]}")


def settings_of(trace: dict) -> SearchSettings:
    """The settings that a recorded configuration stands for; capacity is a power of two, so that few shapes compile."""
    config = trace["config"]
    dynamic = config["dynamic_width_config"] or {"min_width": 0, "decay_factor": 1}
    slots = max(trace["n_nodes"] + config["expansion_width"], 256)
    return SearchSettings(
        expansion_width=config["expansion_width"],
        max_depth=config["max_depth"],
        segment_length=config["step_len"],
        num_trajectories=config["terminate_num"],
        capacity=1 << (slots - 1).bit_length(),
        incomplete_score=config["incomplete_score"],
        min_depth_weight=config["backup_threshold"],
        exploration=config["lambda_puct"],
        backtrace={"global": "frontier", "uct": "uct"}[config["backtrace_method"]],
        force_to_frontier=config["force_to_frontier"],
        frontier_value_weight=config["lambda1"],
        frontier_entropy_weight=config["lambda2"] if config["involve_uncertainty_bonus"] else 0.0,
        frontier_depth_weight=config["lambda3"],
        frontier_own_value_weight=config["lambda4"],
        depth_bonus=config["depth_bonus_type"],
        min_width=dynamic["min_width"],
        width_decay=dynamic["decay_factor"],
        value_dtype="float64",
        reference_quirks=True,
        reference_eos_is_pad=config["eos_is_pad"],
    )


class Script:
    """The recorded children of every node, as the engine would sample and the verifier would judge them."""

    def __init__(self, trace: dict, settings: SearchSettings) -> None:
        nodes, S = trace["nodes"], settings.segment_length
        self.width = settings.children_per_expansion
        count = trace["n_nodes"]
        self.lengths = np.asarray(nodes["valid_len"], np.int32)
        early, last_slot = np.asarray(nodes["is_eos"]), np.asarray(nodes["eos_in_last_slot"])
        self.is_eos = early | last_slot
        in_segment = np.arange(S) < self.lengths[:, None]
        # One number per token of the recording, so that a trajectory made of other tokens is noticed.
        self.tokens = np.where(in_segment, np.arange(1, count + 1)[:, None] * S + np.arange(S), 0).astype(np.int32)
        self.log_probs = np.zeros((count, S), np.float32)
        if "logprobs" in nodes:
            for slot, row in enumerate(nodes["logprobs"]):
                self.log_probs[slot, : len(row)] = row
        else:  # large traces record the sum alone: any split over the tokens has the same sum and mean
            self.log_probs[:, 0] = nodes["sum_logprob"]
        self.outcomes = np.array([_outcome(answer, bool(eos)) for answer, eos in zip(nodes["answer"], early)], np.int32)
        parents, ranks = np.asarray(nodes["parent"]), np.asarray(nodes["child_rank"])
        self.children: list[list[int]] = [[] for _ in range(count)]
        for slot in sorted(range(1, count), key=lambda slot: ranks[slot]):
            self.children[parents[slot]].append(slot)

    def sample(self, node: int) -> tuple[Segments, np.ndarray]:
        """The recorded segments and outcomes of the children of `node`, [1, C, ...]: one cursor.

        Rows past them are those of the root; at NO_NODE all are.
        """
        rows = self.children[node] if node >= 0 else []
        padded = np.array(rows + [0] * (self.width - len(rows)), np.int32)[None]
        log_probs = self.log_probs[padded]
        segments = Segments(self.tokens[padded], self.lengths[padded], log_probs, log_probs, self.is_eos[padded])
        return segments, self.outcomes[padded]


def _outcome(answer: str | None, ended_early: bool) -> Outcome:
    """Rule 6 of the recordings: without a box a response is wrong if it ended, incomplete if it was cut off."""
    if answer is None:
        return Outcome.NONE
    if answer == "no_box":
        return Outcome.INCORRECT if ended_early else Outcome.INCOMPLETE
    return {"boxed_correct": Outcome.CORRECT, "boxed_wrong": Outcome.INCORRECT}[answer]


class _Seen(NamedTuple):
    """What the replay looks at after a pass, fetched from the device at once."""

    info: search.PassInfo
    current: jax.Array
    num_wanted: jax.Array
    visit_count: jax.Array
    value: jax.Array
    status: jax.Array


def _look_after_pass(tree: Tree, key: jax.Array, settings: SearchSettings) -> tuple[Tree, _Seen]:
    tree, infos = search.backup_passes(tree, key, settings)
    info = jax.tree.map(lambda field: field[0], infos)
    wanted = search.num_children_wanted(tree, settings)[0]
    return tree, _Seen(info, tree.current, wanted, tree.visit_count, tree.value, tree.status)


# The searches are small and of many configurations, each of which compiles once: nearly all of the time is compilation.
QUICK_COMPILE: dict[str, bool | int] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # the option is gone in later versions
    QUICK_COMPILE["xla_cpu_use_fusion_emitters"] = False
_jit = functools.partial(jax.jit, static_argnames="settings", compiler_options=QUICK_COMPILE)
_init = _jit(lambda settings: search.init_tree(settings))
_add_children = _jit(search.add_children, donate_argnames="tree")
_backup_pass = _jit(_look_after_pass, donate_argnames="tree")
_extract = _jit(search.extract_trajectories)
_search_steps = _jit(search.batched_search_step, donate_argnames="trees")


def replay_events(trace: dict, settings: SearchSettings, script: Script) -> Tree:
    """Replays one search event by event, compares the state after each, and returns the final tree."""
    count, key = trace["n_nodes"], jax.random.key(0)
    tree = _init(settings=settings)
    visits, values = np.zeros(count, np.int32), np.zeros(count)
    current, wanted, num_nodes, status = search.ROOT, settings.expansion_width, 1, SearchStatus.RUNNING
    for number, event in enumerate(trace["events"]):
        label = f"event {number} {event['t']}"
        if event["t"] == "expand":
            expect(f"{label}: node", current, event["node"])
            expect(f"{label}: children", np.arange(num_nodes, num_nodes + wanted), event["children"])
            tree = _add_children(tree, *script.sample(current), settings=settings)
            num_nodes += wanted
            wanted = 0
            continue
        expect(f"{label}: cur", current, event["cur"])
        expect(f"{label}: children still to be made", wanted, 0)
        tree, seen = _backup_pass(tree, key, settings=settings)
        seen = jax.device_get(seen)
        expect(f"{label}: cands", seen.info.candidates[seen.info.candidates >= 0], np.array(event["cands"], np.int32))
        expect(f"{label}: chosen", seen.info.chosen, event["chosen"])
        for slot, visit_count, value in event["changed"]:
            visits[slot], values[slot] = visit_count, value
        expect(f"{label}: visit_count", seen.visit_count[:count], visits)
        expect(f"{label}: value", seen.value[:count], values, TOLERANCE)
        expect(f"{label}: how", HOW[Selection(int(seen.info.how))], event["how"])
        expect(f"{label}: next", seen.info.next_node, event["next"])
        current, wanted, status = int(seen.current), int(seen.num_wanted), SearchStatus(int(seen.status))
    expect("status at the end", status.name, SearchStatus.FINISHED.name)
    return tree


def compare_final(trace: dict, tree: Tree, script: Script) -> None:
    """Compares the finished tree: structure, verdicts, visits and values of every node."""
    count, nodes, final = trace["n_nodes"], trace["nodes"], trace["final"]
    got = tree
    expect("number of nodes", got.num_nodes, count)
    expect("parent", got.parent[:count], nodes["parent"])
    expect("child_rank", got.child_rank[:count], nodes["child_rank"])
    expect("depth", got.depth[:count], nodes["depth"])
    expect("valid_len", got.segment_lengths[:count], nodes["valid_len"])
    expect("is_terminal", got.is_terminal[:count], [outcome is not None for outcome in nodes["outcome"]])
    expect("outcome", got.outcome[:count], [Outcome[(name or "none").upper()] for name in nodes["outcome"]])
    expect("mean_logprob", -got.mean_nll[1:count], nodes["mean_logprob"][1:], TOLERANCE)
    expect("tokens", got.tokens[:count], script.tokens)
    expect("final visit_count", got.visit_count[:count], final["visit_count"])
    expect("final value", got.value[:count], final["value"], TOLERANCE)
    expect("final q_value", got.q_value[:count], final["q_value"], TOLERANCE)


def compare_trajectories(trace: dict, tree: Tree, settings: SearchSettings, script: Script) -> None:
    """Compares the credited trajectories in credit order, and their values after every recorded post-processing."""
    host = jax.device_get(_extract(tree, settings=settings))
    ranks = np.asarray(tree.child_rank)
    expect("number of trajectories", host.valid.sum(), len(trace["trajectories"]))
    lengths = (host.path >= 0).sum(axis=1)
    for number, wanted in enumerate(trace["trajectories"]):
        label, depth = f"trajectory {number}", lengths[number]
        path = host.path[number, :depth]
        expect(f"{label}: node", host.leaf[number], wanted["node"])
        expect(f"{label}: backup_idx", number, wanted["backup_idx"])
        expect(f"{label}: path_nodes", path, wanted["path_nodes"])
        expect(f"{label}: child_path", ranks[path], wanted["child_path"])
        expect(f"{label}: final_score", host.score[number], wanted["final_score"])
        expect(f"{label}: entropy", host.entropy[number], wanted["entropy"], TOLERANCE)
        expect(f"{label}: response_len", host.lengths[number], wanted["response_len"])
        expect(f"{label}: values_raw", host.node_values[number, :depth], wanted["values_raw"], TOLERANCE)
        tokens = np.concatenate([script.tokens[slot, : script.lengths[slot]] for slot in wanted["path_nodes"]])
        expect(f"{label}: tokens", host.tokens[number, : host.lengths[number]], tokens)
    for post in trace["post"]:  # float64 like the values
        for number, (values, wanted) in enumerate(zip(post_process(host, post["params"], settings), post["values"])):
            expect(f"trajectory {number} after {post['params']}", values[: lengths[number]], wanted, TOLERANCE)


def post_process(trajectories: search.Trajectories, params: dict, settings: SearchSettings) -> np.ndarray:
    """Node values [M, D] after the soft clip and the overlong penalty of one recorded parameter set."""
    processed = advantages.tree_advantages(
        trajectories.node_values,
        trajectories.path >= 0,
        trajectories.score,
        trajectories.lengths,
        trajectories.valid,
        AdvantageSettings(
            normalisation="none",
            soft_clip_max=params["q_value_max"],
            soft_clip_temperature=max(params["adv_temperature"], 0.0),
            overlong_max_length=settings.max_response_length,
            overlong_buffer=params["overlong_len"] if params["overlong"] else 0,
            overlong_factor=params["overlong_factor"],
        ),
    )
    return np.asarray(processed)


def run_steps(settings: SearchSettings, scripts: Sequence[Script]) -> Tree:
    """Runs the searches as one batch through the composed, jitted step until the last has ended."""
    trees = jax.tree.map(lambda field: jnp.asarray(np.stack([field] * len(scripts))), _init(settings=settings))
    keys = jax.random.split(jax.random.key(0), len(scripts))
    while True:
        current = np.asarray(trees.current)
        if (current < 0).all():
            return trees
        sampled = [script.sample(int(node)) for script, node in zip(scripts, current)]
        segments, outcomes = jax.tree.map(lambda *rows: np.stack(rows), *sampled)
        trees = _search_steps(trees, segments, outcomes, keys, settings=settings)


def replay_group(settings: SearchSettings, traces: Sequence[dict]) -> list[str | None]:
    """Replays searches of one configuration; per trace None or the first quantity that differs."""
    scripts = [Script(trace, settings) for trace in traces]
    stepped = jax.device_get(run_steps(settings, scripts))
    verdicts: list[str | None] = []
    for number, (trace, script) in enumerate(zip(traces, scripts)):
        try:
            tree = jax.device_get(replay_events(trace, settings, script))
            compare_final(trace, tree, script)
            compare_trajectories(trace, tree, settings, script)
            for field in dataclasses.fields(Tree):
                ours, wanted = getattr(stepped, field.name)[number], getattr(tree, field.name)
                expect(f"{field.name} of the batched search step", ours, wanted)
            verdicts.append(None)
        except Mismatch as mismatch:
            verdicts.append(str(mismatch))
    return verdicts
