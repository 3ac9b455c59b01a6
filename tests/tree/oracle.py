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
    own_sum: float = 0.0
    own_tokens: int = 0
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
    """One search. `settings` is read by attribute only (a SearchSettings fits).

    `cursors` holds the nodes that wait for an expansion. Each takes a place: eagerly the whole node, whose missing
    children are made at once; lazily one of the children that the node may still get, so that a node with room for two
    can have two cursors.
    """

    def __init__(self, settings) -> None:
        self.settings = settings
        self.lazy = settings.expansion == "lazy"
        root = Node(0, None, 0)
        self.nodes = [root]
        self.cursors: list[Node | None] = [root]
        self.credited: list[Node] = []
        self.status = "RUNNING"
        self.sampled_tokens = 0
        self.backup_passes = 0
        while self.lazy and len(self.cursors) < settings.picks_per_step and self.room(root) > 0:
            if self.lacking(root):
                break
            self.cursors.append(root)
        self.cursors += [None] * (settings.picks_per_step - len(self.cursors))

    @property
    def current(self) -> Node | None:
        return self.cursors[0]

    def width(self, node: Node) -> int:
        s = self.settings
        if not s.min_width:
            return s.expansion_width
        band = max(1, s.max_depth // s.expansion_width)
        return max(s.min_width, s.expansion_width - s.width_decay * (node.depth // band))

    def room(self, node: Node) -> int:
        """Places at the node that no cursor has taken."""
        missing = self.width(node) - len(node.children)
        if node.ends or missing <= 0:
            return 0
        here = self.cursors.count(node)
        if self.lazy and self.settings.siblings == "distinct" and here:
            return 0
        if self.lazy:
            return missing - here
        return 0 if here or node.parent is None else 1

    def new_children(self, node: Node) -> int:
        """How many children the next expansion of the node makes."""
        return 1 if self.lazy else self.width(node) - len(node.children)

    def step(self, sampled: list[list[Child]]) -> None:
        """Expands the nodes of all cursors and searches on to the next nodes that need an expansion, or to the end."""
        if self.status != "RUNNING":
            return
        made = [self.expand(node, rows) if node else [] for node, rows in zip(self.cursors, sampled)]
        self.take_turns(made)
        while self.status == "RUNNING" and self.current and len(self.current.children) >= self.width(self.current):
            self.take_turns([self.current.children])  # a revisit

    def expand(self, node: Node, sampled: list[Child]) -> list[Node]:
        s, made = self.settings, []
        for child in sampled[: self.width(node) - len(node.children)]:
            total, length = sum(child.log_probs), len(child.log_probs)
            new = Node(len(self.nodes), node, node.depth + 1, own_sum=total, own_tokens=length)
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
            made.append(new)
            self.sampled_tokens += len(child.log_probs)
        return made

    def take_turns(self, made: list[list[Node]]) -> None:
        """One cursor after the other backs up what was made for it and moves on."""
        nodes, self.cursors, reasons = self.cursors, [], set()
        for node, fresh in zip(nodes, made):
            met_terminal = self.back_up(fresh) if node else False
            if self.has_enough():
                self.status, self.cursors = "FINISHED", [None] * len(nodes)
                return
            going_to = self.next_node(node, fresh, met_terminal)
            reason = "EXHAUSTED" if going_to is None else self.lacking(going_to)
            self.cursors.append(None if reason else going_to)
            reasons.add(reason)
        if not any(self.cursors):
            order = ["OUT_OF_TOKENS", "OUT_OF_NODES", "EXHAUSTED"]
            self.status = next(reason for reason in order if reason in reasons)

    def has_enough(self) -> bool:
        s, count = self.settings, len(self.credited)
        solved = any(leaf.reward == 1 for leaf in self.credited)
        return count == s.num_trajectories or bool(solved and 0 < s.trajectories_if_solved <= count)

    def back_up(self, fresh: list[Node]) -> bool:
        """One pass; tells whether a terminal was among the candidates."""
        self.backup_passes += 1
        waiting = [child for child in fresh if not child.credited]
        for child in waiting:
            if not child.ends:
                child.visits += 1
        finished = [child for child in waiting if child.ends]
        if finished:
            self.credit(self.choose(finished))
        return bool(finished)

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

    def next_node(self, node: Node | None, fresh: list[Node], met_terminal: bool) -> Node | None:
        if node is None:
            return self.best_of_tree(True)
        if met_terminal:
            if self.settings.backtrace == "uct":
                return self.best_child(self.nodes[0])
            return self.best_of_tree(self.settings.force_to_frontier)
        going_on = self.into(fresh[0]) if self.lazy else self.best_child(node)
        return self.best_of_tree(True) if going_on is None else going_on

    def into(self, child: Node) -> Node | None:
        return child if self.room(child) > 0 else None

    def best_child(self, node: Node) -> Node | None:
        best, best_score = None, -math.inf
        for child in node.children:
            if child.ends or child in self.cursors:
                continue
            explore = math.sqrt(math.log(node.visits) / child.visits) if node.visits and child.visits else 0.0
            score = child.quality + self.settings.exploration * explore
            score = struct.unpack("f", struct.pack("f", score))[0]  # compared in float32, as recorded
            if score > best_score:
                best, best_score = child, score
        return best

    def best_of_tree(self, only_frontier: bool) -> Node | None:
        best, best_score = None, -math.inf
        stack = [self.nodes[0]]
        while stack:
            node = stack.pop()
            stack.extend(reversed(node.children))
            if node.ends or not (self.room(node) > 0 if only_frontier else node.parent):
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
        above = node if self.lazy else node.parent  # the parent of what the place stands for
        return (
            s.frontier_value_weight * math.tanh(above.quality)
            + s.frontier_own_value_weight * math.tanh(node.quality)
            + s.frontier_entropy_weight * self.surprise_of(node)
            + s.frontier_depth_weight * bonus
        )

    def surprise_of(self, node: Node) -> float:
        """The term H."""
        if self.settings.frontier_entropy == "own":
            return node.entropy
        if self.settings.frontier_entropy == "excess":
            masses = [math.exp(child.own_sum) for child in node.children]
            mass = max(min([1 - sum(masses), *masses]), 1e-6)
            firsts = [other.children[0] for other in self.nodes if other.children]
            usual = -sum(n.own_sum for n in firsts) / max(sum(n.own_tokens for n in firsts), 1)
            return -node.path_sum - math.log(mass) - usual * node.path_tokens
        if self.settings.frontier_entropy == "path" or not node.children:
            return node.surprise
        total, count = sum(child.own_sum for child in node.children), sum(child.own_tokens for child in node.children)
        return -total / count if count else 0.0

    def lacking(self, node: Node) -> str:
        """The budget that keeps one more cursor from going to `node`, beside those that have gone before it; or ""."""
        s = self.settings
        if len(node.children) >= self.width(node):
            return ""
        count = len(self.nodes) + sum(self.new_children(other) for other in self.cursors if other)
        if s.token_budget and self.sampled_tokens >= s.token_budget:
            return "OUT_OF_TOKENS"
        rows = 1 if self.lazy else s.expansion_width
        over_budget = s.node_budget and count + self.new_children(node) > s.node_budget
        return "OUT_OF_NODES" if count + rows > s.capacity or over_budget else ""

    def page_worth(self, node: Node) -> float:
        """The best score of a place at or below the node; infinite where a cursor waits there."""
        if self.status != "RUNNING":
            return -math.inf
        worth = math.inf if node in self.cursors else self.priority(node) if self.room(node) > 0 else -math.inf
        return max([worth, *(self.page_worth(child) for child in node.children)])
