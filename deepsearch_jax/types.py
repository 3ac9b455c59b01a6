"""Records that cross a module border. Frozen pytrees of arrays and plain enums; nothing here imports our own code.

Axes: B problems (tree slots), N node slots, K children, D depth, S segment tokens, M trajectories, R training rows,
T row tokens, P prompt tokens, V vocabulary.
"""

import enum

import jax
from flax import struct


class Outcome(enum.IntEnum):
    """What the verifier said of a terminal node; int32 in arrays."""

    NONE = 0  # not a terminal, or not verified
    CORRECT = 1
    INCORRECT = 2
    INCOMPLETE = 3  # cut off at the depth or length limit without an answer


@struct.dataclass
class Segments:
    """K sampled continuations of one node; a batch of B nodes has a leading [B] axis on every field.

    Attributes:
      tokens: [K, S] int32 token ids; 0 after the end.
      lengths: [K] int32 sampled tokens, the end-of-sequence token counted; 1..S.
      log_probs: [K, S] float32 log-prob of each token under the raw policy (temperature 1, no truncation); 0 after
        the end.
      sampling_log_probs: [K, S] float32 log-prob under the distribution that was sampled from; 0 after the end.
      is_eos: [K] bool the last sampled token ends the sequence (also in the last slot).
      entropies: [K, S] float32 exact entropy in nats of the raw policy at each token, 0 after the end; None if it was
        not asked for.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probs: jax.Array
    sampling_log_probs: jax.Array
    is_eos: jax.Array
    entropies: jax.Array | None = None


@struct.dataclass
class TokenBatch:
    """Rows for one update: prompt and response concatenated, padded on the right.

    Attributes:
      tokens: [R, T] int32 token ids; 0 in padding.
      segment_ids: [R, T] int32 1 at real tokens (tokens attend only within one id), 0 in padding.
      loss_mask: [R, T] bool True at response tokens that are trained on; False in the prompt and in padding.
      advantages: [R, T] float32 advantage of each token; 0 outside the loss mask.
      old_log_probs: [R, T] float32 log-prob of tokens[:, t] given what precedes it, under the behaviour policy.
      sampler_log_probs: [R, T] float32 the same as the decode engine computed it when it sampled (of the raw policy, as
        `Segments.log_probs`), NaN where that is not known; None = nowhere.
      reference_log_probs: [R, T] float32 the same under the reference policy; None = there is none.
    """

    tokens: jax.Array
    segment_ids: jax.Array
    loss_mask: jax.Array
    advantages: jax.Array
    old_log_probs: jax.Array
    sampler_log_probs: jax.Array | None = None
    reference_log_probs: jax.Array | None = None


@struct.dataclass
class TokenSums:
    """What the trajectories through each token add up to, all [R, T] float32; 0 at tokens that are not trained on.

    w is the weight of a trajectory's tokens in the loss (see `objective.path_weights`), A its advantage.

    Attributes:
      positive, negative: sums of w max(A, 0) and of w min(A, 0).
      weights: sum of w.
      num_positive, num_negative, num_paths: trajectories with A > 0, with A < 0, and all that are trained on the token.
      advantages: sum of A, not weighted.
    """

    positive: jax.Array
    negative: jax.Array
    weights: jax.Array
    num_positive: jax.Array
    num_negative: jax.Array
    num_paths: jax.Array
    advantages: jax.Array


@struct.dataclass
class PackedBatch:
    """Rows of trees for one update: each token of a problem's responses once, however many share it.

    The prompt is the root; a tree lies in a row in depth-first preorder, several trees may share a row, padding is on
    the right. A token's loss is linear in its sums, so that it equals that of all its trajectories in a TokenBatch.

    Attributes:
      tokens: [R, T] int32 token ids; 0 in padding.
      tree_ids: [R, T] int32 1, 2, ... for the trees of a row, 0 in padding.
      positions: [R, T] int32 depth of the token on its path, prompt included, from 0.
      parents: [R, T] int32 index in the row of the token before it on its path, -1 at a first token and in padding.
      ends: [R, T] int32 first index behind the subtree of the token: tokens up to there, and only they, attend to it;
        0 in padding.
      sums: what the trajectories through each token add up to.
      old_log_probs: [R, T] float32 log-prob of the token given its path, under the behaviour policy.
      divisors: [R] float32 what the row adds to the divisor of the loss.
      sampler_log_probs, reference_log_probs: [R, T] float32 or None, as in TokenBatch.
    """

    tokens: jax.Array
    tree_ids: jax.Array
    positions: jax.Array
    parents: jax.Array
    ends: jax.Array
    sums: TokenSums
    old_log_probs: jax.Array
    divisors: jax.Array
    sampler_log_probs: jax.Array | None = None
    reference_log_probs: jax.Array | None = None
