"""Direct samples of a problem as the first paths of its tree.

A tree need not start from the prompt alone: where a group of whole responses was sampled first, and none of them is
right, they are the first trajectories of the search. Own definition; the paper searches from the prompt.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from flax import struct

from deepsearch_jax.tree.backup import backup, choose_terminal
from deepsearch_jax.tree.search import place_cursors
from deepsearch_jax.tree.settings import SearchSettings
from deepsearch_jax.tree.state import NO_NODE, ROOT, Tree


@struct.dataclass
class Samples:
    """G whole responses to the problem of one tree; a batch of trees has a leading [B] axis on every field.

    Attributes:
      tokens: [G, T] int32, T = D * S tokens of room; 0 after the end.
      lengths: [G] int32 sampled tokens, the end of sequence counted; 0 where there is no sample.
      log_probs: [G, T] float32 under the raw policy.
      sampling_log_probs: [G, T] float32 under the distribution sampled from.
      outcomes: [G] int32 Outcome of each response.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probs: jax.Array
    sampling_log_probs: jax.Array
    outcomes: jax.Array


def graft_samples(tree: Tree, samples: Samples, key: jax.Array, settings: SearchSettings) -> Tree:
    """Puts whole responses into a tree that holds the root alone, and sends the cursors off.

    The responses are cut into segments, a node each; equal beginnings are one node, as a node is a prefix. Their ends
    are terminals with known outcomes, each other node has the one visit that it gets when a search makes it. Together
    they count as the candidates of one backup pass: of the terminals `sample_credits` are credited in the order of
    `choose_terminal` (1 is what one pass of the paper does: the most confident wrong one), the others stay as they are,
    as terminals that a search meets and does not choose. Then the cursors go to the best places of the whole tree,
    where nodes below the root may get as many children as without the samples (`most_children`).

    Tokens of samples do not count in num_tokens, nor their nodes in the budgets: whoever sampled them has paid.

    Args:
      tree: as `init_tree` gives it.
      samples: at most num_grafts; without any the tree comes back as it was.
      key: typed PRNG key, read only if negative_choice is "random".
    """
    G, D, S, N = settings.num_grafts, settings.max_depth, settings.segment_length, settings.capacity
    chex.assert_shape(samples.tokens, (G, D * S))
    tokens, log_probs, sampling_log_probs = (
        field.reshape(G, D, S) for field in (samples.tokens, samples.log_probs, samples.sampling_log_probs)
    )
    level = jnp.arange(D, dtype=jnp.int32)
    lengths = jnp.clip(samples.lengths[:, None] - level[None, :] * S, 0, S)  # [G, D]
    exists = lengths > 0

    # [G, G, D] whether samples g and h have the node at this depth in common.
    same = (tokens[:, None] == tokens[None]).all(axis=-1) & (lengths[:, None] == lengths[None])
    same = jnp.cumprod(same, axis=-1).astype(bool) & exists[:, None]
    first = jnp.argmax(same, axis=1)  # [G, D] the first sample with that node: the one that it is made of
    is_new = exists & (first == jnp.arange(G)[:, None])
    made = jnp.cumsum(is_new.reshape(-1), dtype=jnp.int32).reshape(G, D)  # nodes up to here, the root not counted
    slots = jnp.where(exists, jnp.take_along_axis(made, first, axis=0), NO_NODE)  # slot 0 is the root
    parents = jnp.concatenate([jnp.full((G, 1), ROOT, jnp.int32), slots[:, :-1]], axis=1)

    # Siblings before a node, and how many nodes they have below them and are.
    is_before = is_new[None] & (parents[:, None] == parents[None]) & jnp.tri(G, k=-1, dtype=bool)[:, :, None]
    ranks = is_before.sum(axis=1, dtype=jnp.int32)
    below = jnp.cumsum(is_new[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]  # [G, D] new nodes of h from a depth on
    sizes = jnp.where(same, below[None], 0).sum(axis=1)
    steps = 1 + jnp.where(is_before, sizes[None], 0).sum(axis=1)  # from the parent to the node in depth-first order
    preorder = jnp.cumsum(jnp.take_along_axis(steps, first, axis=0), axis=1, dtype=jnp.int32)

    in_segment = jnp.arange(S)[None, None, :] < lengths[..., None]
    sums = jnp.where(in_segment, log_probs, 0.0)
    path_length = jnp.cumsum(lengths, axis=1)
    path_log_prob = jnp.cumsum(sums.sum(axis=-1, dtype=settings.value_dtype), axis=1)
    is_terminal = exists & (path_length == samples.lengths[:, None])
    where = jnp.where(is_new, slots, N)

    def put(field: jax.Array, values: jax.Array) -> jax.Array:
        return field.at[where].set(jnp.broadcast_to(values, is_new.shape + field.shape[1:]), mode="drop")

    num_children = tree.num_children.at[jnp.where(is_new, parents, N)].add(1, mode="drop")
    tree = dataclasses.replace(
        tree,
        parent=put(tree.parent, parents),
        child_rank=put(tree.child_rank, ranks),
        children=tree.children.at[jnp.where(is_new, parents, N), ranks].set(slots, mode="drop"),
        num_children=num_children,
        num_grafted=num_children,
        depth=put(tree.depth, level + 1),
        preorder=put(tree.preorder, preorder),
        visit_count=put(tree.visit_count, (~is_terminal).astype(jnp.int32)),
        is_terminal=put(tree.is_terminal, is_terminal),
        outcome=put(tree.outcome, jnp.where(is_terminal, samples.outcomes[:, None], 0)),
        segment_lengths=put(tree.segment_lengths, lengths),
        mean_nll=put(tree.mean_nll, -sums.sum(axis=-1) / jnp.maximum(lengths, 1)),
        path_length=put(tree.path_length, path_length),
        path_log_prob=put(tree.path_log_prob, path_log_prob),
        path_entropy=put(tree.path_entropy, -path_log_prob / jnp.maximum(path_length, 1).astype(path_log_prob.dtype)),
        tokens=put(tree.tokens, tokens),
        log_probs=put(tree.log_probs, log_probs),
        sampling_log_probs=put(tree.sampling_log_probs, sampling_log_probs),
        num_nodes=tree.num_nodes + is_new.sum(dtype=jnp.int32),
    )
    ends = jnp.where(is_new & is_terminal, slots, NO_NODE).max(axis=1)  # of equal samples the first alone

    def credit(number: jax.Array, tree: Tree) -> Tree:
        candidates = jnp.where(tree.is_credited[ends], NO_NODE, ends)
        return backup(tree, choose_terminal(tree, candidates, jax.random.fold_in(key, number), settings), settings)

    tree = jax.lax.fori_loop(0, settings.sample_credits, credit, tree)
    return place_cursors(tree, settings)
