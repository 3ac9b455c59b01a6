"""Advantages of one tree's trajectories (DeepSearch, arXiv 2509.25454, Eq. 13 and 15) and their baselines.

Functions take one tree (or one group of direct rollouts) of M trajectories; vmap over problems. D is the depth of the
longest path, T the width of a token row. Sums are at least float32, or float64 where the inputs are.
"""

import jax
import jax.numpy as jnp
import numpy as np

from deepsearch_jax.objective.settings import AdvantageSettings


def at_least_float32(x: jax.Array) -> jax.Array:
    """x in float32, or in float64 if that is what it is."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def soft_clip_values(values: jax.Array, is_leaf: jax.Array, q_max: float, temperature: float) -> jax.Array:
    """Bounds the values of intermediate nodes: q~ = q_max tanh(q / temperature); a leaf keeps its reward (Eq. 13).

    Args:
      values: [...] float node values.
      is_leaf: [...] bool, True at the last node of a path.
      q_max: the bound.
      temperature: eps_q, in units of value; 0 or less leaves all values as they are (as recorded).
    Returns: [...] float.
    """
    values = at_least_float32(values)
    if temperature <= 0:
        return values
    return jnp.where(is_leaf, values, q_max * jnp.tanh(values / temperature))


def overlong_penalty(length: jax.Array, max_length: int, buffer: int, factor: float) -> jax.Array:
    """min(-(length - (max_length - buffer)) / buffer * factor, 0): 0 before the buffer, -factor at max_length.

    Args:
      length: [...] int32 response tokens.
      max_length, buffer: tokens; buffer <= 0 switches the penalty off.
      factor: units of reward.
    Returns: [...] float32, never positive.
    """
    length = jnp.asarray(length).astype(jnp.float32)
    if buffer <= 0:
        return jnp.zeros_like(length)
    return jnp.minimum(-(length - (max_length - buffer)) / buffer * factor, 0.0)


def masked_mean(values: jax.Array, mask: jax.Array, axis: int | None = None, keepdims: bool = False) -> jax.Array:
    """Mean of the values under the mask; 0 where the mask is empty."""
    total = jnp.sum(jnp.where(mask, values, 0), axis=axis, keepdims=keepdims)
    count = jnp.sum(mask, axis=axis, keepdims=keepdims)
    return total / jnp.maximum(count, 1).astype(total.dtype)


def masked_std(values: jax.Array, mask: jax.Array, axis: int | None = None, ddof: int = 0) -> jax.Array:
    """Standard deviation under the mask (axes kept); 0 where fewer than ddof + 1 values are left."""
    centred = jnp.where(mask, values - masked_mean(values, mask, axis, keepdims=True), 0)
    count = jnp.sum(mask, axis=axis, keepdims=True) - ddof
    return jnp.sqrt(jnp.sum(centred**2, axis=axis, keepdims=True) / jnp.maximum(count, 1).astype(centred.dtype))


def has_signal(scores: jax.Array, valid: jax.Array) -> jax.Array:
    """Whether the trajectories disagree: a tree (or group) of equal rewards has nothing to teach.

    Args:
      scores: [M] float rewards.
      valid: [M] bool.
    Returns: [] bool; False also for one trajectory or none.
    """
    highest = jnp.max(jnp.where(valid, scores, -jnp.inf))
    lowest = jnp.min(jnp.where(valid, scores, jnp.inf))
    return highest > lowest


def tree_baseline(
    final_values: jax.Array,
    scores: jax.Array,
    valid: jax.Array,
    settings: AdvantageSettings,
    terminal_rewards: jax.Array | None = None,
    is_terminal: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """mu and the std of what a node's value is compared with (population std, as recorded).

    `settings.baseline` says over what: "final_values" of the credited trajectories, overlong penalty included (the
    authors' code); "credited_rewards", the same without the penalty; "terminal_rewards" of all verified terminals of
    the tree (the paper's text). A group of one gets mu = 0 and std = 1 with "final_values", as recorded.

    Args:
      final_values: [M] float value of each trajectory's last node, penalty included.
      scores: [M] float rewards.
      valid: [M] bool.
      terminal_rewards, is_terminal: [N] float and bool, the whole tree's; needed for "terminal_rewards" alone.
    Returns: [] float mu, [] float std.
    Raises:
      ValueError: "terminal_rewards" without the two arrays of the tree.
    """
    if settings.baseline == "terminal_rewards":
        if terminal_rewards is None or is_terminal is None:
            raise ValueError(
                'baseline="terminal_rewards" needs the terminal_rewards and is_terminal of the whole tree; '
                'direct rollouts have none: use "final_values" or "credited_rewards" there'
            )
        population, mask = at_least_float32(terminal_rewards), is_terminal
    else:
        population, mask = (final_values if settings.baseline == "final_values" else at_least_float32(scores)), valid
    mean, std = masked_mean(population, mask), masked_std(population, mask).squeeze()
    if settings.baseline == "final_values":
        is_group = jnp.sum(mask) > 1
        mean, std = jnp.where(is_group, mean, 0.0), jnp.where(is_group, std, 1.0)
    return mean, std


def normalise_paths(
    values: jax.Array,
    mask: jax.Array,
    token_counts: jax.Array,
    baseline: tuple[jax.Array, jax.Array],
    settings: AdvantageSettings,
) -> jax.Array:
    """Node values to advantages by `settings.normalisation`.

    "mean": A = q~ - mu (Eq. 15); "mean_std": (q~ - mu) / (std + epsilon); "alpha_scale": alpha q~; "none": q~;
    "row_mean_std": each trajectory by the mean and sample std of its own tokens (a segment counts once per token).

    Args:
      values: [M, D] float; mask: [M, D] bool; token_counts: [M, D] tokens of each segment, read by "row_mean_std".
      baseline: mu and std of `tree_baseline`.
    Returns: [M, D] float, 0 outside the mask.
    """
    mean, std = baseline
    match settings.normalisation:
        case "mean":
            advantages = values - mean
        case "mean_std":
            advantages = (values - mean) / (std + settings.std_epsilon)
        case "alpha_scale":
            advantages = settings.alpha * values
        case "none":
            advantages = values
        case "row_mean_std":
            weights = jnp.where(mask, token_counts, 0).astype(values.dtype)
            count = jnp.sum(weights, axis=1, keepdims=True)
            centred = values - jnp.sum(jnp.where(mask, values, 0) * weights, 1, keepdims=True) / jnp.maximum(count, 1)
            variance = jnp.sum(jnp.where(mask, centred, 0) ** 2 * weights, 1, keepdims=True) / jnp.maximum(count - 1, 1)
            advantages = centred / (jnp.sqrt(variance) + settings.std_epsilon)
    return jnp.where(mask, advantages, 0)


def tree_advantages(
    node_values: jax.Array,
    path_mask: jax.Array,
    scores: jax.Array,
    lengths: jax.Array,
    valid: jax.Array,
    settings: AdvantageSettings,
    *,
    segment_lengths: jax.Array | None = None,
    terminal_rewards: jax.Array | None = None,
    is_terminal: jax.Array | None = None,
) -> jax.Array:
    """Advantages of the nodes on M credited paths (Eq. 13 and 15).

    Intermediate values are soft-clipped, the leaf keeps its reward, the overlong penalty of a trajectory is added to
    all its nodes, and the tree's baseline is subtracted. With `level="outcome"` every node of a path has its final
    score in place of its own value (Table 4).

    Args:
      node_values: [M, D] float final tree values along each path, root excluded, depth 1 first.
      path_mask: [M, D] bool, True at nodes of the path (a prefix of the row).
      scores: [M] float final rewards.
      lengths: [M] int32 response tokens.
      valid: [M] bool, False in rows that hold no trajectory.
      segment_lengths: [M, D] int32 tokens of each node, needed for "row_mean_std" alone.
      terminal_rewards, is_terminal: [N] see `tree_baseline`.
    Returns: [M, D] float, 0 outside the mask and in rows that are not valid.
    Raises:
      ValueError: an array that the settings need is missing.
    """
    if settings.normalisation == "row_mean_std" and segment_lengths is None:
        raise ValueError('normalisation="row_mean_std" weights nodes by their tokens; pass segment_lengths')
    mask = path_mask & valid[:, None]
    is_leaf = jnp.arange(mask.shape[1])[None, :] == jnp.sum(mask, axis=1, keepdims=True) - 1
    scores = at_least_float32(scores)
    if settings.level != "node":
        values = jnp.broadcast_to(scores[:, None], mask.shape)
    else:
        values = soft_clip_values(node_values, is_leaf, settings.soft_clip_max, settings.soft_clip_temperature)
    penalty = overlong_penalty(
        lengths, settings.overlong_max_length, settings.overlong_buffer, settings.overlong_factor
    ).astype(values.dtype)
    values = jnp.where(mask, values + penalty[:, None], 0)
    final_values = jnp.sum(jnp.where(is_leaf, values, 0), axis=1)
    baseline = tree_baseline(final_values, scores, valid, settings, terminal_rewards, is_terminal)
    token_counts = mask if segment_lengths is None else segment_lengths
    return normalise_paths(values, mask, token_counts, baseline, settings)


def outcome_advantages(
    scores: jax.Array, valid: jax.Array, settings: AdvantageSettings, lengths: jax.Array | None = None
) -> jax.Array:
    """Advantages of direct rollouts, one number per response (GRPO with "mean_std", Dr. GRPO with "mean").

    Args:
      scores: [M] float rewards of one group.
      valid: [M] bool.
      lengths: [M] int32 response tokens, for the overlong penalty (DAPO); None = no penalty.
    Returns: [M] float, 0 where not valid; a group of one keeps its score, as recorded for trees.
    Raises:
      ValueError: an overlong penalty is set and no lengths are given, or the normalisation is one over tokens.
    """
    if settings.normalisation == "row_mean_std":
        raise ValueError('normalisation="row_mean_std" is 0 for direct rollouts: all tokens of a row share one score')
    if lengths is None:
        if settings.overlong_buffer:
            raise ValueError(f"overlong_buffer={settings.overlong_buffer} needs the lengths of the responses")
        lengths = jnp.zeros(scores.shape, jnp.int32)
    one_node = jnp.ones((scores.shape[0], 1), bool)
    return tree_advantages(at_least_float32(scores)[:, None], one_node, scores, lengths, valid, settings)[:, 0]


def spread_over_tokens(
    advantages: jax.Array, segment_lengths: jax.Array, num_tokens: int, start: jax.Array | int = 0
) -> jax.Array:
    """Gives every token the advantage of its node.

    Args:
      advantages: [M, D] float.
      segment_lengths: [M, D] int32 tokens of each node, 0 past the end of the path.
      num_tokens: T, width of the rows.
      start: [M] int32 (or one int) column of the first response token, the prompt's length.
    Returns: [M, T] float, 0 before `start` and after the last segment.
    """
    starts = jnp.broadcast_to(jnp.asarray(start, jnp.int32), advantages.shape[:1])

    def one_row(row: jax.Array, lengths: jax.Array, first: jax.Array) -> jax.Array:
        columns = jnp.arange(num_tokens) - first
        node = jnp.searchsorted(jnp.cumsum(lengths), columns, side="right")
        inside = (columns >= 0) & (node < row.shape[0])
        return jnp.where(inside, row[jnp.minimum(node, row.shape[0] - 1)], 0)

    return jax.vmap(one_row)(advantages, segment_lengths, starts)


def group_ids(labels: object) -> np.ndarray:
    """Numbers the groups of rows from 0: labels [R] of any kind (host values) to [R] int32."""
    return np.unique(np.asarray(labels), return_inverse=True)[1].astype(np.int32)


def token_advantages(
    token_level_rewards: jax.Array,
    mask: jax.Array,
    index: object,
    method: str,
    norm_by_std: bool | None = True,
    epsilon: float = 1e-6,
    alpha: float = 1.0,
) -> jax.Array:
    """Advantages from rewards that are already spread over tokens, rows of several groups together, as recorded.

    `tree_advantages` gives the same numbers before the spreading. Methods: "sibling_mean_std" subtracts the mean of
    the final rewards (reward at the last valid token; 0 in an empty row) of a row's group and divides by their
    population std + epsilon if `norm_by_std`, a group of one keeps its rewards; "mean_std" per row, sample std;
    "alpha_scale"; "none". Where the authors' code gives NaN (one valid token under "mean_std") the result is 0.

    Args:
      token_level_rewards: [R, T] float.
      mask: [R, T] bool or 0/1, True at valid tokens (a prefix of the row).
      index: [R] group of each row: a jax array of int32 in 0..R-1, or labels of any kind on the host.
    Returns: [R, T] float, 0 outside the mask.
    Raises:
      ValueError: unknown method.
    """
    rewards, mask = at_least_float32(token_level_rewards), jnp.asarray(mask).astype(bool)
    num_rows, num_tokens = rewards.shape
    if method == "none":
        advantages = rewards
    elif method == "alpha_scale":
        advantages = alpha * rewards
    elif method == "mean_std":
        std = masked_std(rewards, mask, axis=1, ddof=1)
        advantages = (rewards - masked_mean(rewards, mask, axis=1, keepdims=True)) / (std + epsilon)
    elif method == "sibling_mean_std":
        groups = index if isinstance(index, jax.Array) else jnp.asarray(group_ids(index))
        is_last = jnp.arange(num_tokens)[None, :] == jnp.sum(mask, axis=1, keepdims=True) - 1
        finals = jnp.sum(jnp.where(is_last, rewards, 0), axis=1)
        same_group = groups[:, None] == jnp.arange(num_rows)[None, :]
        counts = jnp.maximum(jnp.sum(same_group, axis=0), 1).astype(rewards.dtype)
        means = jnp.sum(jnp.where(same_group, finals[:, None], 0), axis=0) / counts
        deviations = jnp.where(same_group, finals[:, None] - means[None, :], 0)
        stds = jnp.sqrt(jnp.sum(deviations**2, axis=0) / counts)
        means, stds = jnp.where(counts > 1, means, 0.0), jnp.where(counts > 1, stds, 1.0)
        advantages = rewards - means[groups][:, None]
        if norm_by_std:
            advantages = advantages / (stds[groups][:, None] + epsilon)
    else:
        raise ValueError(f"method={method!r} is not known; choose one of sibling_mean_std, mean_std, alpha_scale, none")
    return jnp.where(mask, advantages, 0)
