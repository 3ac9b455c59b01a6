"""The decoder: a Flax NNX definition with stacked layers, used through pure functions of plain parameters.

The graph definition is split off once per config; parameters are a nested dict of arrays:
  embed/embedding [V, E];  final_norm/scale [E];  head/kernel [E, V] (absent when tied);
  layers/{attention_norm, mlp_norm}/scale [L, E];
  layers/attention/{query, key, value}/{kernel [L, E, heads * Dh], bias},  layers/attention/output/kernel;
  layers/mlp/{gate, up}/kernel [L, E, F], layers/mlp/down/kernel [L, F, E];
where the family has them: layers/attention/{query_norm, key_norm}/scale [L, Dh] and
  layers/{attention_post_norm, mlp_post_norm}/scale [L, E].
Weights are [in, out]. `unstack_layers` gives the second form, `layers` = {0: {...}, 1: {...}}, for unrolled decoding;
every function here takes either, and matrices as arrays or as `Int8`.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from deepsearch_jax.policy.attention import Blocks, blocks_for, row_attention, segment_ends
from deepsearch_jax.policy.config import ModelConfig
from deepsearch_jax.policy.int8 import Int8, matmul
from deepsearch_jax.policy.layout import Transposed
from deepsearch_jax.policy.rope import apply_rope
from deepsearch_jax.policy.sharding import by_rows, gathered, looked_up, over_rows

Params = dict[str, Any]
# query [..., Hq, Dh], key and value [..., Hkv, Dh] of the new tokens -> attended [..., Hq, Dh] and anything to keep.
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * (offset + scale) over the last axis, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, config: ModelConfig, size: int) -> None:
        self.eps, self.offset = config.rms_norm_eps, config.norm_offset
        self.scale = nnx.Param(jnp.full((size,), 1 - self.offset, config.dtypes[0]))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
        if self.offset:  # Gemma rounds to the compute dtype behind the product, the others before it
            return (wide * (self.offset + scale.astype(wide.dtype))).astype(x.dtype)
        return wide.astype(x.dtype) * scale.astype(x.dtype)


class Linear(nnx.Module):
    """x @ kernel [in, out] (+ bias), in the compute dtype."""

    def __init__(self, config: ModelConfig, size_in: int, size_out: int, *, bias: bool, rngs: nnx.Rngs) -> None:
        dtype = config.dtypes[0]
        noise = jax.random.normal(rngs.params(), (size_in, size_out), dtype)
        self.kernel = nnx.Param(noise * jnp.asarray(config.initializer_range, dtype))
        self.bias = nnx.Param(jnp.zeros((size_out,), dtype)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = matmul(x, self.kernel[...])
        if self.bias is None:
            return y
        return y + self.bias[...].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class Frequencies(nnx.Variable):
    """[Dh / 2] rotary frequencies of a layer: follow from the config, so `bind` adds them and no one stores them."""


class Attention(nnx.Module):
    """Grouped-query attention; what is attended to is the caller's business (training, prefill and tree decoding)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        size, heads = config.hidden_size, config.num_heads * config.head_dim
        kv_heads, bias = config.num_kv_heads * config.head_dim, config.qkv_bias
        self.query = Linear(config, size, heads, bias=bias, rngs=rngs)
        self.key = Linear(config, size, kv_heads, bias=bias, rngs=rngs)
        self.value = Linear(config, size, kv_heads, bias=bias, rngs=rngs)
        self.output = Linear(config, heads, size, bias=False, rngs=rngs)
        self.query_norm = RMSNorm(config, config.head_dim) if config.qk_norm else None
        self.key_norm = RMSNorm(config, config.head_dim) if config.qk_norm else None
        self.frequencies = Frequencies(jnp.zeros((config.head_dim // 2,)))

    def __call__(self, x: jax.Array, positions: jax.Array, attend: Attend) -> tuple[jax.Array, Any]:
        def split_heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], -1, self.config.head_dim)

        query, key, value = (split_heads(project(x)) for project in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        frequencies = self.frequencies[...]
        query, key = apply_rope(query, positions, frequencies), apply_rope(key, positions, frequencies)
        if self.config.query_scalar not in (0, self.config.head_dim):  # `attend` divides by sqrt(Dh)
            query = query * jnp.asarray((self.config.head_dim / self.config.query_scalar) ** 0.5, query.dtype)
        attended, kept = attend(query, key, value)
        return self.output(attended.reshape(*x.shape[:-1], -1)), kept


class MLP(nnx.Module):
    """Gated MLP: down(activation(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        size, inner = config.hidden_size, config.intermediate_size
        self.gate = Linear(config, size, inner, bias=False, rngs=rngs)
        self.up = Linear(config, size, inner, bias=False, rngs=rngs)
        self.down = Linear(config, inner, size, bias=False, rngs=rngs)
        self.activation = {"silu": jax.nn.silu, "gelu_tanh": jax.nn.gelu}[config.activation]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class DecoderLayer(nnx.Module):
    """Pre-norm attention and MLP with residuals; in some families each has a norm behind it too."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        norm = functools.partial(RMSNorm, config, config.hidden_size)
        self.attention_norm = norm()
        self.attention = Attention(config, rngs=rngs)
        self.attention_post_norm = norm() if config.post_norms else None
        self.mlp_norm = norm()
        self.mlp = MLP(config, rngs=rngs)
        self.mlp_post_norm = norm() if config.post_norms else None

    def __call__(self, x: jax.Array, positions: jax.Array, attend: Attend) -> tuple[jax.Array, Any]:
        attended, kept = self.attention(self.attention_norm(x), positions, attend)
        x = x + (attended if self.attention_post_norm is None else self.attention_post_norm(attended))
        added = self.mlp(self.mlp_norm(x))
        return x + (added if self.mlp_post_norm is None else self.mlp_post_norm(added)), kept


class Embedding(nnx.Module):
    """Token embedding, [V, E]."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        dtype = config.dtypes[0]
        noise = jax.random.normal(rngs.params(), (config.vocab_size, config.hidden_size), dtype)
        self.embedding = nnx.Param(noise * jnp.asarray(config.initializer_range, dtype))


class Decoder(nnx.Module):
    """Embedding, stacked (or listed) layers, final norm and head."""

    def __init__(self, config: ModelConfig, *, stacked: bool = True, has_head: bool | None = None, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embedding(config, rngs=rngs)
        make_layer = functools.partial(DecoderLayer, config)
        self.layers: Any
        if stacked:
            self.layers = nnx.vmap(lambda keys: make_layer(rngs=keys))(rngs.split(config.num_layers))
        else:
            self.layers = nnx.List([make_layer(rngs=rngs) for _ in range(config.num_layers)])
        self.final_norm = RMSNorm(config, config.hidden_size)
        has_head = not config.tie_word_embeddings if has_head is None else has_head
        self.head = Linear(config, config.hidden_size, config.vocab_size, bias=False, rngs=rngs) if has_head else None

    def embed_tokens(self, tokens: jax.Array, mesh: Mesh | None = None) -> jax.Array:
        """[...] int32 -> [..., E] in the compute dtype; with a mesh see `hidden_states`."""
        embedded = looked_up(self.config, self.embed.embedding[...], tokens, mesh)
        if not self.config.scale_embedding:
            return embedded
        return embedded * jnp.asarray(self.config.hidden_size**0.5, embedded.dtype)  # rounded, as in published weights


@functools.cache
def _graph(config: ModelConfig, stacked: bool, has_head: bool) -> nnx.GraphDef[Decoder]:
    make = functools.partial(Decoder, config, stacked=stacked, has_head=has_head)
    return nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))[0]


def bind(config: ModelConfig, params: Params) -> Decoder:
    """The NNX decoder with `params` in it; no copy. Takes stacked or unstacked layers, tied or untied head."""
    layers, stacked = params["layers"], "attention" in params["layers"]
    frequencies = jnp.asarray(config.layer_frequencies(), jnp.promote_types(config.dtypes[1], jnp.float32))

    def complete(layer: Params, frequencies: jax.Array) -> Params:
        return layer | {"attention": layer["attention"] | {"frequencies": frequencies}}

    if stacked:
        layers = complete(layers, frequencies)
    else:
        layers = {index: complete(layer, frequencies[index]) for index, layer in layers.items()}
    # What the head keeps beside the embedding is for `logits` alone.
    state = {name: value for name, value in params.items() if name != "head_copy"} | {"layers": layers}
    return nnx.merge(_graph(config, stacked, "head" in params), nnx.State(state))


def scan_layers(
    decoder: Decoder,
    x: jax.Array,
    carry: Any,
    step: Callable[[DecoderLayer, jax.Array, Any, Any], tuple[jax.Array, Any]],
    *,
    remat: str = "none",
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Any]:
    """Runs x through all layers: x, carry = step(layer, x, carry, layer_index) for each.

    Stacked layers are scanned (layer_index is traced); unstacked ones are unrolled (layer_index is an int).
    Args:
      remat: what the backward pass recomputes of a layer; see `ModelConfig`.
      mesh: see `hidden_states`; each layer's weights are gathered when it is their turn.
    """

    def again(run_layer: Callable[..., Any], *, prevent_cse: bool) -> Callable[..., Any]:
        if remat == "none":
            return run_layer
        # Tokens are one list, so the products with weights are those without a batch axis.
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
        return jax.checkpoint(run_layer, prevent_cse=prevent_cse, policy=policy)

    def run(graph: nnx.GraphDef[Any], index: Any, x: jax.Array, carry: Any, state: nnx.State) -> Any:
        if mesh is not None:
            state = nnx.State(gathered(decoder.config, nnx.to_pure_dict(state), mesh))
        x, carry = step(nnx.merge(graph, state), by_rows(x, mesh), carry, index)
        return by_rows(x, mesh), carry

    if isinstance(decoder.layers, nnx.List):
        for index, layer in enumerate(decoder.layers):
            graph, state = nnx.split(layer)
            run_layer = functools.partial(run, graph, index)
            x, carry = again(run_layer, prevent_cse=True)(x, carry, state)
        return x, carry
    graph, stacked = nnx.split(decoder.layers)

    def body(state: tuple[jax.Array, Any], layer: tuple[jax.Array, nnx.State]) -> Any:
        # Inside lax.scan nothing can be shared between forward and recomputation, so CSE needs no barrier there.
        run_layer = again(functools.partial(run, graph), prevent_cse=False)
        return run_layer(layer[0], *state, layer[1]), None

    indices = jnp.arange(decoder.config.num_layers)
    return jax.lax.scan(body, (x, carry), (indices, stacked))[0]


@functools.partial(jax.jit, static_argnames="config")
def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh parameters: normal with standard deviation `initializer_range`, norms multiply by 1, biases 0; stacked."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, rngs=nnx.Rngs(key)), nnx.Param))


def unstack_layers(config: ModelConfig, params: Params, *, copy_head: bool = False) -> Params:
    """The form for unrolled decoding: one dict of weights per layer, as the CPU backend likes it.

    Args:
      copy_head: also store the transposed embedding as an [E, V] head, which multiplies 1.5x faster on CPU at small
        batch than [V, E]; costs V * E numbers of memory.
    """
    if "attention" not in params["layers"]:
        return params
    layers = {i: jax.tree.map(lambda w, i=i: w[i], params["layers"]) for i in range(config.num_layers)}
    head = {"head": {"kernel": params["embed"]["embedding"].T}} if copy_head and "head" not in params else {}
    return params | {"layers": layers} | head


def segment_positions(segment_ids: jax.Array) -> jax.Array:
    """[R, T] int32 position of each token within its run of equal segment ids, from 0."""
    index = jnp.broadcast_to(jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None], segment_ids.shape)
    starts = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def layer_window(config: ModelConfig, index: Any) -> jax.Array | None:
    """[] int32 tokens that the layer attends back to, the token's own included; None where no layer has a window."""
    if not config.layer_windows:
        return None
    return jnp.array([window or jnp.iinfo(jnp.int32).max for window in config.layer_windows], jnp.int32)[index]


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array | None = None,
    ends: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> jax.Array:
    """The decoder's output after the final norm, one causal pass over whole rows.

    A token attends to the tokens before it (and itself) in its segment; in a layer with a window, to those of them
    whose position is less than the window behind its own. With `ends` the rows hold trees, and a token attends to its
    ancestors (see `attention`). `config.remat` says what the backward pass recomputes.
    Args:
      tokens: [R, T] int32.
      segment_ids: [R, T] int32, runs of equal ids; 0 is padding.
      positions: [R, T] int32; by default counted from 0 within each segment.
      ends: [R, T] int32 first index behind the subtree of each token, 0 in padding; by default the segment's end.
      mesh: where the rows are shared along its axes data and fsdp and the compiler partitions; None on one device and
        where the caller maps over devices by hand.
    Returns: [R, T, E] in the compute dtype; rows of padding hold finite values without meaning.
    """
    chex.assert_equal_shape([tokens, segment_ids])
    decoder = bind(config, params)
    places = segment_positions(segment_ids) if positions is None else positions
    reach, blocks = segment_ends(segment_ids) if ends is None else ends, blocks_for(tokens.shape[1])

    def step(layer: DecoderLayer, x: jax.Array, carry: None, index: Any) -> tuple[jax.Array, None]:
        def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, None]:
            query, key, value = (x.reshape(*tokens.shape, *x.shape[1:]) for x in (query, key, value))
            window = layer_window(config, index)
            windows = () if window is None else (window,)
            attended = over_rows(functools.partial(_row_attention, blocks), config, mesh, 3)(
                query, key, value, reach, places, *windows
            )
            return attended.reshape(-1, *attended.shape[2:]), None

        return layer(x, places.reshape(-1), attend)[0], carry

    # All but attention takes the tokens of all rows as one list: gradients of the products are a quarter faster on CPU.
    x = decoder.embed_tokens(tokens.reshape(-1), mesh)
    x, _ = scan_layers(decoder, x, None, step, remat=config.remat, mesh=mesh)
    return decoder.final_norm(x).reshape(*tokens.shape, -1)


def _row_attention(blocks: Blocks | None, *arguments: jax.Array) -> jax.Array:
    """`row_attention` of query, key, value, ends, positions and perhaps a window."""
    query, key, value, ends, positions = arguments[:5]
    return row_attention(query, key, value, ends, positions, arguments[5] if len(arguments) > 5 else None, blocks)


def logits(params: Params, hidden: jax.Array) -> jax.Array:
    """[..., E] hidden states after the final norm -> [..., V] next-token logits, accumulated in float32 at least."""
    if "head" in params:
        kernel = params["head"]["kernel"]
    else:
        embedding = params["embed"]["embedding"]
        kernel = embedding.T if isinstance(embedding, Int8) else Transposed(embedding, **params.get("head_copy", {}))
    return matmul(hidden, kernel, jnp.promote_types(hidden.dtype, jnp.float32))
