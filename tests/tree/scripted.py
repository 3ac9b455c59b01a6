"""A scripted engine for tests: random segments and verdicts, the same for the arrays and for the plain objects."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from deepsearch_jax.tree import SearchSettings, Tree, batched_search_step, init_tree
from deepsearch_jax.types import Outcome, Segments
from tests.tree.oracle import Child

SMALL = {"expansion_width": 3, "max_depth": 4, "segment_length": 3, "num_trajectories": 6, "capacity": 96}
VERDICTS = [Outcome.CORRECT, Outcome.INCORRECT, Outcome.INCOMPLETE]

# Compiled without optimisation, which for trees this small takes longer than it gains.
quick_jit = functools.partial(
    jax.jit, static_argnames="settings", compiler_options={"xla_backend_optimization_level": 0}
)
jitted_steps = quick_jit(batched_search_step)


class Draw:
    """The children that the cursors of one step sample: lengths, ends, log-probs (multiples of 1/256) and verdicts."""

    def __init__(self, settings: SearchSettings, *seed: int) -> None:
        self.shape = settings.picks_per_step, settings.children_per_expansion
        K, S = self.shape[0] * self.shape[1], settings.segment_length
        generator = np.random.default_rng(seed)
        self.is_eos = generator.random(K) < 0.3
        self.lengths = np.where(self.is_eos, generator.integers(1, S + 1, K), S).astype(np.int32)
        in_segment = np.arange(S) < self.lengths[:, None]
        self.log_probs = np.where(in_segment, -generator.integers(1, 1024, (K, S)) / 256, 0).astype(np.float32)
        self.tokens = np.where(in_segment, generator.integers(1, 100, (K, S)), 0).astype(np.int32)
        self.verdicts = [VERDICTS[i] for i in generator.choice(3, K, p=[0.25, 0.5, 0.25])]

    def arrays(self) -> tuple[Segments, np.ndarray]:
        """Segments [F, C, ...] and outcomes [F, C]."""
        segments = Segments(self.tokens, self.lengths, self.log_probs, self.log_probs - 1, self.is_eos)
        rows = segments, np.array(self.verdicts, np.int32)
        return jax.tree.map(lambda field: field.reshape(*self.shape, *field.shape[1:]), rows)

    def objects(self) -> list[list[Child]]:
        """The children by cursor."""
        children = [
            Child([float(x) for x in row[:length]], bool(is_eos), verdict.name.lower())
            for row, length, is_eos, verdict in zip(self.log_probs, self.lengths, self.is_eos, self.verdicts)
        ]
        C = self.shape[1]
        return [children[first : first + C] for first in range(0, len(children), C)]


def new_trees(settings: SearchSettings, batch: int) -> Tree:
    """A batch of trees that hold their root alone."""
    return jax.tree.map(lambda field: jnp.asarray(np.stack([field] * batch)), init_tree(settings))


def stacked_draws(settings: SearchSettings, seeds: range, step: int) -> tuple[Segments, np.ndarray]:
    """The draws of one step of every tree, stacked."""
    draws = [Draw(settings, seed, step).arrays() for seed in seeds]
    return jax.tree.map(lambda *rows: np.stack(rows), *draws)


@functools.cache
def grown_trees(settings: SearchSettings, num_trees: int = 4, num_steps: int = 12) -> list[Tree]:
    """The trees of random searches after each step, all of one batch: element i is the batch after i steps."""
    trees, keys = new_trees(settings, num_trees), jax.random.split(jax.random.key(0), num_trees)
    states = [trees]
    for step in range(num_steps):
        trees = jitted_steps(trees, *stacked_draws(settings, range(num_trees), step), keys, settings=settings)
        states.append(trees)
    return states


def pick(trees: Tree, number: int) -> Tree:
    """One tree of a batch."""
    return jax.tree.map(lambda field: field[number], trees)
