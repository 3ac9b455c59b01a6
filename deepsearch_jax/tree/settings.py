"""Settings of one tree search. Frozen and hashable: a static argument of every jitted function of the search."""

import dataclasses
import math

BACKTRACES = ("frontier", "uct")
EXPANSIONS = ("eager", "lazy")
FRONTIER_ENTROPIES = ("own", "path", "children", "excess")
SIBLINGS = ("independent", "distinct")
DEPTH_BONUSES = ("sqrt", "log", "constant")
NEGATIVE_CHOICES = ("most_confident", "random", "least_confident")
BACKUP_RULES = ("constrained", "vanilla")
CONFIDENCES = ("fixed", "adaptive")
VALUE_DTYPES = ("float32", "float64")


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """What one search does, with the paper's symbols (DeepSearch, arXiv 2509.25454, section 3)."""

    # Sizes. They fix array shapes, so a change compiles anew.
    expansion_width: int = 8  # most children of a node, the paper's n; W in shapes
    max_depth: int = 64  # segments per trajectory, d_T; a node at this depth is terminal; D in shapes
    segment_length: int = 256  # tokens per segment; S in shapes
    num_trajectories: int = 8  # credited terminals after which the search is finished; M in shapes
    trajectories_if_solved: int = 0  # after which it is finished if a correct one is among them; 0 = num_trajectories
    capacity: int = 1536  # node slots; N in shapes; memory is 12 * capacity * segment_length bytes per tree

    picks_per_step: int = 1  # nodes of one tree expanded together; F in shapes, and the compiled step grows with it

    # "eager": an expansion makes all children of its node (the paper). "lazy": it makes one child; a descent goes on
    # through it, a sibling is made only when the frontier picks that place (then negative_choice never has a choice).
    expansion: str = "eager"

    # "independent": children of a node are samples of the policy, equal ones among them (the paper). "distinct": a
    # child is a sample among all segments that its siblings are not; lazy expansion only.
    siblings: str = "independent"

    # Budgets: a cursor whose expansion does not fit waits; a tree in which none fits ends with what it has.
    node_budget: int = 0  # most nodes of a tree, root counted; 0 = capacity
    token_budget: int = 0  # no expansion starts once this many tokens were sampled for the tree; 0 = no limit

    # Rewards and backup.
    incomplete_score: float = -1.0  # reward of a terminal that was cut off without an answer (Eq. 4)
    min_depth_weight: float = 0.1  # least weight of a reward on its way to the root, the paper's gamma_min (Eq. 3)
    root_counts_in_depth_weight: bool = True  # weight (depth+1)/(leaf depth+1) as recorded; False: the paper's i/l
    backup_rule: str = "constrained"  # "constrained" (Eq. 5) | "vanilla" max(q + g r, 0), Table 4
    negative_choice: str = "most_confident"  # wrong terminal to credit: most_confident | random | least_confident

    # Selection.
    exploration: float = 2.0  # weight of the visit term of UCT, lambda, in units of q_value
    backtrace: str = "frontier"  # after a terminal: "frontier" (whole tree, Eq. 6) | "uct" (children of the root)
    force_to_frontier: bool = True  # False: the global choice may also land on expanded nodes, which are revisited
    frontier_value_weight: float = 0.4  # lambda1, of tanh(q_value of the parent)
    frontier_entropy_weight: float = 0.0  # lambda2, of H (nats; a mean over tokens, but for "excess")
    confidence: str = "fixed"  # lambda2 is "fixed", or "adaptive": each tree has its own, given when it starts
    # H over: "own" the node's segment (Eq. 7) | "path" its prefix | "children" theirs; "excess": see frontier_entropies
    frontier_entropy: str = "own"
    frontier_depth_weight: float = 0.01  # lambda3, of the depth bonus
    frontier_own_value_weight: float = 0.0  # lambda4, of tanh(q_value of the node itself); not in the paper
    depth_bonus: str = "sqrt"  # Eq. 7: "sqrt" sqrt(d/d_T) | "log" ln(d+1) | "constant" d

    # Trees that start from direct samples of their problem (`graft_samples`).
    num_grafts: int = 0  # room for so many, set by the run, which adds num_grafts * max_depth to the capacity
    sample_credits: int = 1  # samples credited at the start, those negative_choice names; part of num_trajectories

    # Dynamic width: max(min_width, expansion_width - width_decay * (depth div (max_depth div expansion_width))).
    min_width: int = 0  # 0 = every expansion has expansion_width children
    width_decay: int = 1  # children fewer per depth band; read only where min_width > 0

    value_dtype: str = "float32"  # of values and entropies; "float64" needs jax_enable_x64 (replay of recordings)

    # Quirks of the authors' code, for the replay alone.
    reference_quirks: bool = False  # an EOS in the last slot of a full segment does not end the trajectory
    reference_eos_is_pad: bool = False  # the EOS of a leaf does not count in the entropy of its trajectory

    def __post_init__(self) -> None:
        for name in ("expansion_width", "max_depth", "segment_length", "num_trajectories", "picks_per_step"):
            self._check(getattr(self, name) >= 1, name, "at least 1")
        for name in ("trajectories_if_solved", "node_budget", "token_budget", "min_width", "width_decay", "num_grafts",
                     "sample_credits"):  # fmt: skip
            self._check(getattr(self, name) >= 0, name, "0 (off) or more")
        for name, choices in (
            ("expansion", EXPANSIONS),
            ("backtrace", BACKTRACES),
            ("frontier_entropy", FRONTIER_ENTROPIES),
            ("siblings", SIBLINGS),
            ("depth_bonus", DEPTH_BONUSES),
            ("negative_choice", NEGATIVE_CHOICES),
            ("backup_rule", BACKUP_RULES),
            ("confidence", CONFIDENCES),
            ("value_dtype", VALUE_DTYPES),
        ):
            self._check(getattr(self, name) in choices, name, "one of " + ", ".join(choices))
        least = 1 + self.children_per_expansion
        if self.capacity - self.grafted_room < least:
            raise ValueError(
                f"capacity={self.capacity} has no room for the root and one expansion of expansion={self.expansion!r} "
                f"with expansion_width={self.expansion_width}; the least capacity is {least + self.grafted_room}"
            )
        if self.num_grafts and self.reference_quirks:
            raise ValueError(
                f"num_grafts={self.num_grafts} with reference_quirks=True: the recorded searches start from the prompt "
                "alone; set one of the two to its default"
            )
        if 0 < self.node_budget < least:
            raise ValueError(
                f"node_budget={self.node_budget} allows no expansion at all (the root and the children of one "
                f"expansion); raise it to {least} or set 0 for no budget"
            )
        if self.min_width > self.expansion_width:
            raise ValueError(
                f"min_width={self.min_width} is above expansion_width={self.expansion_width}; lower it, "
                "or set 0 for a fixed width"
            )
        if (self.is_lazy or self.picks_per_step > 1) and self.can_revisit:
            raise ValueError(
                f"expansion={self.expansion!r} with picks_per_step={self.picks_per_step} needs "
                f'backtrace="frontier" and force_to_frontier=True, not backtrace={self.backtrace!r} and '
                f'force_to_frontier={self.force_to_frontier}; only expansion="eager" with picks_per_step=1 revisits'
            )
        if self.are_distinct and not self.is_lazy:
            raise ValueError(
                f"siblings={self.siblings!r} with expansion={self.expansion!r}: children that are made together do not "
                'know each other; set expansion="lazy", or siblings="independent"'
            )
        if self.trajectories_if_solved > self.num_trajectories:
            raise ValueError(
                f"trajectories_if_solved={self.trajectories_if_solved} is above num_trajectories="
                f"{self.num_trajectories}, after which every search ends; lower it, or set 0"
            )
        if self.frontier_entropy == "excess" and not self.are_distinct:
            raise ValueError(
                f"frontier_entropy={self.frontier_entropy!r} with siblings={self.siblings!r} would ask for the "
                'likeliest child again and again; set siblings="distinct", or frontier_entropy="path"'
            )
        if self.confidence == "adaptive" and self.frontier_entropy == "excess":
            raise ValueError(
                f"confidence={self.confidence!r} is measured of means per token and frontier_entropy="
                f'{self.frontier_entropy!r} is no such mean; use confidence="fixed", or frontier_entropy="path"'
            )
        self._check(-1.0 <= self.incomplete_score < 1.0, "incomplete_score", "in [-1, 1)")
        self._check(0.0 <= self.min_depth_weight <= 1.0, "min_depth_weight", "in [0, 1]")
        self._check(self.exploration >= 0.0, "exploration", "0 or more")
        for name in ("value", "entropy", "depth", "own_value"):
            name = f"frontier_{name}_weight"
            self._check(math.isfinite(getattr(self, name)), name, "a finite number")

    def _check(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name}={getattr(self, name)!r} must be {expected}")

    @property
    def is_lazy(self) -> bool:
        """Whether an expansion makes one child only."""
        return self.expansion == "lazy"

    @property
    def are_distinct(self) -> bool:
        """Whether no child of a node equals another one."""
        return self.siblings == "distinct"

    @property
    def children_per_expansion(self) -> int:
        """Most children that one expansion makes; C in shapes."""
        return 1 if self.is_lazy else self.expansion_width

    @property
    def grafted_room(self) -> int:
        """Node slots kept free for direct samples; what the search itself makes must fit into the others."""
        return self.num_grafts * self.max_depth

    @property
    def max_children(self) -> int:
        """Most children that a node may have, those from direct samples counted."""
        return self.expansion_width + self.num_grafts

    @property
    def max_nodes(self) -> int:
        """Most nodes that a search may make, the root counted; those from direct samples are free."""
        own = self.capacity - self.grafted_room
        return min(own, self.node_budget) if self.node_budget else own

    @property
    def max_response_length(self) -> int:
        """Tokens of the longest trajectory."""
        return self.max_depth * self.segment_length

    @property
    def can_revisit(self) -> bool:
        """Whether selection can reach an expanded node; if not, the loop over revisits is left out of the program."""
        return self.backtrace == "uct" or not self.force_to_frontier
