"""The same search with plain Python objects, written from the recorded rules without the array code.

It is the oracle of the tests and the peer of `benchmarks.tree_ops`. Node objects, lists and recursion; float64 numbers.
"""

import math
import struct
from dataclasses import dataclass, field


@dataclass(eq=False)
class Child:
    """What an engine and a verifier return for one sampled segment."""

    log_probs: list[float]
    is_eos: bool
    verdict: str = ""  # "correct", "incorrect", "incomplete"; read where the segment ends the trajectory


@dataclass(eq=False)
class Node:
    """A node of the search tree; `number` is its order of creation, 0 the root."""

    number: int
    parent: "Node | None"
    depth: int
    ends: bool = False
    reward: float = 0.0
    entropy: float = 0.0  # per token of the segment
    surprise: float = 0.0  # per token of the whole trajectory
    path_sum: float = 0.0
    path_tokens: int = 0
    children: list["Node"] = field(default_factory=list)
    visits: int = 0
    value: float = 0.0
    credited: bool = False

    @property
    def quality(self) -> float:
        return self.value / self.visits if self.visits else 0.0

    def ancestry(self) -> list["Node"]:
        """The node, its parent, ..., the root."""
        line, node = [], self
        while node is not None:
            line.append(node)
            node = node.parent
        return line


class Search:
    """One search. `settings` is read by attribute only (a SearchSettings fits)."""

    def __init__(self, settings) -> None:
        self.settings = settings
        self.nodes = [Node(0, None, 0)]
        self.current: Node | None = self.nodes[0]
        self.credited: list[Node] = []
        self.status = "RUNNING"
        self.sampled_tokens = 0
        self.backup_passes = 0

    def width(self, node: Node) -> int:
        s = self.settings
        if not s.min_width:
            return s.expansion_width
        band = max(1, s.max_depth // s.expansion_width)
        return max(s.min_width, s.expansion_width - s.width_decay * (node.depth // band))

    def step(self, sampled: list[Child]) -> None:
        """Expands the current node and searches on to the next node that needs an expansion, or to the end."""
        if self.status != "RUNNING":
            return
        self.expand(self.current, sampled)
        self.one_pass()
        while self.status == "RUNNING" and len(self.current.children) >= self.width(self.current):
            self.one_pass()

    def expand(self, node: Node, sampled: list[Child]) -> None:
        s = self.settings
        for child in sampled[: self.width(node) - len(node.children)]:
            total, length = sum(child.log_probs), len(child.log_probs)
            new = Node(len(self.nodes), node, node.depth + 1)
            new.entropy = -total / length if length else 0.0
            new.path_sum, new.path_tokens = node.path_sum + total, node.path_tokens + length
            closing = child.is_eos and not s.reference_quirks
            new.ends = closing or length < s.segment_length or new.depth == s.max_depth
            if new.ends:
                new.reward = {"correct": 1.0, "incorrect": -1.0, "incomplete": s.incomplete_score}[child.verdict]
            counted_sum, counted = new.path_sum, new.path_tokens
            if s.reference_eos_is_pad and new.ends and child.is_eos:
                counted_sum, counted = counted_sum - child.log_probs[-1], counted - 1
            new.surprise = -counted_sum / counted if counted else 0.0
            node.children.append(new)
            self.nodes.append(new)
            self.sampled_tokens += len(child.log_probs)

    def one_pass(self) -> None:
        node = self.current
        self.backup_passes += 1
        waiting = [child for child in node.children if not child.credited]
        for child in waiting:
            if not child.ends:
                child.visits += 1
        finished = [child for child in waiting if child.ends]
        if finished:
            self.credit(self.choose(finished))
        if len(self.credited) == self.settings.num_trajectories:
            self.status, self.current = "FINISHED", None
            return
        self.move_on(self.next_node(node, bool(finished)))

    def choose(self, finished: list[Node]) -> Node:
        for wanted in (lambda r: r == 1, lambda r: r == -1, lambda r: True):
            group = [node for node in finished if wanted(node.reward)]
            if group:
                break
        if group[0].reward < 1 and self.settings.negative_choice == "least_confident":
            return max(group, key=lambda node: node.surprise)
        return min(group, key=lambda node: node.surprise)

    def credit(self, leaf: Node) -> None:
        s, reward = self.settings, leaf.reward
        leaf.credited = True
        self.credited.append(leaf)
        shift = 1 if s.root_counts_in_depth_weight else 0
        for node in leaf.ancestry():
            node.visits += 1
            gain = max((node.depth + shift) / (leaf.depth + shift), s.min_depth_weight) * reward
            if node is leaf:
                node.value = reward
            elif s.backup_rule == "vanilla":
                node.value = max(node.value + gain, 0.0)
            elif node.value * reward >= 0:
                node.value += gain
            elif reward > 0:
                node.value = gain

    def next_node(self, node: Node, met_terminal: bool) -> Node | None:
        if met_terminal:
            if self.settings.backtrace == "uct":
                return self.best_child(self.nodes[0])
            return self.best_of_tree(self.settings.force_to_frontier)
        if all(child.ends for child in node.children):
            return self.best_of_tree(True)
        return self.best_child(node)

    def best_child(self, node: Node) -> Node | None:
        best, best_score = None, -math.inf
        for child in node.children:
            if child.ends:
                continue
            explore = math.sqrt(math.log(node.visits) / child.visits) if node.visits and child.visits else 0.0
            score = child.quality + self.settings.exploration * explore
            score = struct.unpack("f", struct.pack("f", score))[0]  # compared in float32, as recorded
            if score > best_score:
                best, best_score = child, score
        return best

    def best_of_tree(self, only_frontier: bool) -> Node | None:
        best, best_score = None, -math.inf
        stack = list(reversed(self.nodes[0].children))
        while stack:
            node = stack.pop()
            stack.extend(reversed(node.children))
            if node.ends or (only_frontier and len(node.children) >= self.width(node)):
                continue
            score = self.priority(node)
            if score > best_score + 1e-9:  # equal up to the rounding of the array code's tanh and log
                best, best_score = node, score
        return best

    def priority(self, node: Node) -> float:
        s = self.settings
        bonus = {
            "sqrt": math.sqrt(node.depth / s.max_depth),
            "log": math.log(node.depth + 1),
            "constant": node.depth,
        }[s.depth_bonus]
        return (
            s.frontier_value_weight * math.tanh(node.parent.quality)
            + s.frontier_own_value_weight * math.tanh(node.quality)
            + s.frontier_entropy_weight * node.entropy
            + s.frontier_depth_weight * bonus
        )

    def move_on(self, node: Node | None) -> None:
        s = self.settings
        if node is None:
            self.status, self.current = "EXHAUSTED", None
            return
        missing = self.width(node) - len(node.children)
        if missing > 0:
            full = len(self.nodes) + s.expansion_width > s.capacity
            over_budget = s.node_budget and len(self.nodes) + missing > s.node_budget
            if s.token_budget and self.sampled_tokens >= s.token_budget:
                self.status, self.current = "OUT_OF_TOKENS", None
                return
            if full or over_budget:
                self.status, self.current = "OUT_OF_NODES", None
                return
        self.current = node
