"""The search tree: arrays in, arrays out. Functions take one tree; the caller maps them over a batch."""

from deepsearch_jax.tree.backup import backup, candidates_at, choose_terminal, rewards_of, visit_open
from deepsearch_jax.tree.expand import (
    add_children,
    child_is_terminal,
    child_slots,
    most_children,
    num_children_wanted,
    width_at_depth,
)
from deepsearch_jax.tree.frontier import (
    can_be_selected,
    depth_bonus,
    frontier_entropies,
    frontier_scores,
    next_child_mass,
    select_frontier,
)
from deepsearch_jax.tree.graft import Samples, graft_samples
from deepsearch_jax.tree.priority import page_priority
from deepsearch_jax.tree.search import (
    PassInfo,
    Selection,
    backup_passes,
    batched_search_step,
    search_step,
)
from deepsearch_jax.tree.select import select_child, uct_scores
from deepsearch_jax.tree.settings import SearchSettings
from deepsearch_jax.tree.state import NO_NODE, ROOT, SearchStatus, Tree, init_tree, path_nodes, path_tokens
from deepsearch_jax.tree.trajectories import Trajectories, extract_trajectories

__all__ = [
    "NO_NODE",
    "ROOT",
    "PassInfo",
    "Samples",
    "SearchSettings",
    "SearchStatus",
    "Selection",
    "Trajectories",
    "Tree",
    "add_children",
    "backup",
    "backup_passes",
    "batched_search_step",
    "can_be_selected",
    "candidates_at",
    "child_is_terminal",
    "child_slots",
    "choose_terminal",
    "depth_bonus",
    "extract_trajectories",
    "frontier_entropies",
    "frontier_scores",
    "graft_samples",
    "init_tree",
    "most_children",
    "next_child_mass",
    "num_children_wanted",
    "page_priority",
    "path_nodes",
    "path_tokens",
    "rewards_of",
    "search_step",
    "select_child",
    "select_frontier",
    "uct_scores",
    "visit_open",
    "width_at_depth",
]
