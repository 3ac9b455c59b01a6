"""What the decode engine is asked for: the nodes to expand and where their keys and values are."""

import chex
import jax
from flax import struct

from deepsearch_jax.decode.pages import KVPages
from deepsearch_jax.decode.settings import DecodeSettings
from deepsearch_jax.decode.siblings import Siblings
from deepsearch_jax.decode.stops import StopTable
from deepsearch_jax.policy import ModelConfig


@struct.dataclass
class DecodeRequest:
    """The nodes to expand, R rows; several of them may continue one of the B prompts.

    D is the static bucket of path lengths, chosen by the caller. All nodes of a path are full segments.

    Attributes:
      prompt_lengths: [B] int32 tokens of the prompts, >= 1 where a row continues them.
      path_pages: [R, D] int32 pages of the nodes from depth 1 to the node itself; -1 behind, and at a node that has no
        page with its keys and values in it.
      depth: [R] int32 depth of the node, 0 at the root; <= D.
      last_token: [R] int32 last token of the prefix; it is fed here, whether stored before or not.
      child_pages: [R, K] int32 pages to keep the children's keys and values in; -1 keeps nothing.
      row_keys: [R, K] typed PRNG keys; token t of a child is drawn with fold_in(its key, t).
      active: [R] bool; other rows yield segments of length 0 and write nothing.
      slots: [R] int32 the prompt that each row continues; None: row r continues prompt r (R = B), without a copy of
        the prompts where D is 0.
      path_tokens: [R, D * S] int32 tokens of the path, prompt excluded; what is behind the depth is not read. Only
        needed with `settings.recompute` or a stop table.
      keep_pages: [R, D] int32 page in which to keep a node that has no page in path_pages, -1 for nowhere. None keeps
        nothing.
      siblings: segments behind the same node that a row's children must not be; None: children are independent.
    """

    prompt_lengths: jax.Array
    path_pages: jax.Array
    depth: jax.Array
    last_token: jax.Array
    child_pages: jax.Array
    row_keys: jax.Array
    active: jax.Array
    slots: jax.Array | None = None
    path_tokens: jax.Array | None = None
    keep_pages: jax.Array | None = None
    siblings: Siblings | None = None


def per_row(values: jax.Array, request: DecodeRequest) -> jax.Array:
    """[B, ...] of the prompts -> [R, ...] of the rows."""
    return values if request.slots is None else values[request.slots]


def check_shapes(
    config: ModelConfig, pages: KVPages, request: DecodeRequest, settings: DecodeSettings, stop_table: StopTable | None
) -> None:
    """Raises: AssertionError or ValueError where the arguments of `decode_children` do not fit together."""
    num_slots, num_rows = pages.prompt_keys.shape[1], request.depth.shape[0]
    chex.assert_shape(request.prompt_lengths, (num_slots,))
    chex.assert_shape([request.last_token, request.active], (num_rows,))
    chex.assert_shape([request.child_pages, request.row_keys], (num_rows, settings.num_samples))
    chex.assert_shape(request.path_pages, (num_rows, None))
    bucket = request.path_pages.shape[1]
    if request.slots is None:
        chex.assert_equal(num_rows, num_slots)
    else:
        chex.assert_shape(request.slots, (num_rows,))
    if bucket and settings.recompute and request.path_tokens is None:
        raise ValueError("recompute=True needs the path_tokens of the request; give them, or keep all pages resident")
    if bucket and stop_table is not None and request.path_tokens is None:
        raise ValueError("a stop table needs the path_tokens of the request: stop strings may begin in the prefix")
    if stop_table is not None and stop_table.next_states.shape[1] != config.vocab_size:
        raise ValueError(
            f"the stop table is for {stop_table.next_states.shape[1]} ids, but the model has {config.vocab_size}; "
            f"build it with vocab_size={config.vocab_size}"
        )
    if bucket and not settings.recompute and not pages.num_pages:
        raise ValueError(f"paths of {bucket} nodes, but the pool has 0 pages; use a larger pool or recompute=True")
    if request.path_tokens is not None:
        chex.assert_shape(request.path_tokens, (num_rows, bucket * settings.segment_length))
    if request.keep_pages is not None:
        chex.assert_shape(request.keep_pages, (num_rows, bucket))
    if request.siblings is not None:
        chex.assert_shape(request.siblings.tokens, (num_rows, None, settings.segment_length))
        chex.assert_equal_shape([request.siblings.tokens, request.siblings.log_masses])
        if settings.temperature == 0:
            raise ValueError("temperature=0 has one continuation only, none beside its siblings; set it above 0")
    heads = (config.num_kv_heads, settings.segment_length, config.head_dim)
    chex.assert_shape(pages.keys, (config.num_layers, pages.num_pages, *heads))
