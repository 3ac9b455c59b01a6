"""The decoder: a Flax NNX definition with stacked layers, used through pure functions of plain parameters.

The graph definition is split off once per config; parameters are a nested dict of arrays:
  embed/embedding [V, E];  final_norm/scale [E];  head/kernel [E, V] (absent when tied);
  layers/{attention_norm, mlp_norm}/scale [L, E];
  layers/attention/{query, key, value}/{kernel [L, E, heads * Dh], bias},  layers/attention/output/kernel;
  layers/mlp/{gate, up}/kernel [L, E, F], layers/mlp/down/kernel [L, F, E].
Weights are [in, out]. `unstack_layers` gives the second form, `layers` = {0: {...}, 1: {...}}, for unrolled decoding;
every function here takes either.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from deepsearch_jax.policy.config import ModelConfig

Params = dict[str, Any]
# query [..., Hq, Dh], key and value [..., Hkv, Dh] of the new tokens -> attended [..., Hq, Dh] and anything to keep.
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, config: ModelConfig) -> None:
        self.eps = config.rms_norm_eps
        self.scale = nnx.Param(jnp.ones((config.hidden_size,), config.dtypes[0]))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return wide.astype(x.dtype) * scale.astype(x.dtype)


class Linear(nnx.Module):
    """x @ kernel [in, out] (+ bias), in the compute dtype."""

    def __init__(self, config: ModelConfig, size_in: int, size_out: int, *, bias: bool, rngs: nnx.Rngs) -> None:
        dtype = config.dtypes[0]
        noise = jax.random.normal(rngs.params(), (size_in, size_out), dtype)
        self.kernel = nnx.Param(noise * jnp.asarray(config.initializer_range, dtype))
        self.bias = nnx.Param(jnp.zeros((size_out,), dtype)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x @ self.kernel[...].astype(x.dtype)
        if self.bias is None:
            return y
        return y + self.bias[...].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


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

    def __call__(self, x: jax.Array, positions: jax.Array, attend: Attend) -> tuple[jax.Array, Any]:
        def split_heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], -1, self.config.head_dim)

        query = apply_rope(split_heads(self.query(x)), positions, self.config.rope_theta)
        key = apply_rope(split_heads(self.key(x)), positions, self.config.rope_theta)
        attended, kept = attend(query, key, split_heads(self.value(x)))
        return self.output(attended.reshape(*x.shape[:-1], -1)), kept


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        size, inner = config.hidden_size, config.intermediate_size
        self.gate = Linear(config, size, inner, bias=False, rngs=rngs)
        self.up = Linear(config, size, inner, bias=False, rngs=rngs)
        self.down = Linear(config, inner, size, bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class DecoderLayer(nnx.Module):
    """Pre-norm attention and MLP with residuals."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = RMSNorm(config)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x: jax.Array, positions: jax.Array, attend: Attend) -> tuple[jax.Array, Any]:
        attended, kept = self.attention(self.attention_norm(x), positions, attend)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), kept


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
        self.final_norm = RMSNorm(config)
        has_head = not config.tie_word_embeddings if has_head is None else has_head
        self.head = Linear(config, config.hidden_size, config.vocab_size, bias=False, rngs=rngs) if has_head else None

    def embed_tokens(self, tokens: jax.Array) -> jax.Array:
        """[...] int32 -> [..., E] in the compute dtype."""
        return self.embed.embedding[...][tokens].astype(self.config.dtypes[1])


def apply_rope(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding, halves convention: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin).

    Source: arXiv 2104.09864, with angle = position * theta^(-2i/Dh), as in the published Qwen2 weights.
    Args:
      x: [..., H, Dh] queries or keys.
      positions: [...] int32 absolute positions.
      theta: base of the wavelengths.
    """
    half = x.shape[-1] // 2
    wide = jnp.promote_types(x.dtype, jnp.float32)
    frequencies = theta ** (-jnp.arange(half, dtype=wide) / half)
    angles = positions[..., None, None].astype(wide) * frequencies.reshape((1,) * positions.ndim + (1, half))
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(wide), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


@functools.cache
def _graph(config: ModelConfig, stacked: bool, has_head: bool) -> nnx.GraphDef[Decoder]:
    make = functools.partial(Decoder, config, stacked=stacked, has_head=has_head)
    return nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))[0]


def bind(config: ModelConfig, params: Params) -> Decoder:
    """The NNX decoder with `params` in it; no copy. Takes stacked or unstacked layers, tied or untied head."""
    stacked = "attention" in params["layers"]
    return nnx.merge(_graph(config, stacked, "head" in params), nnx.State(params))


def scan_layers(
    decoder: Decoder,
    x: jax.Array,
    carry: Any,
    step: Callable[[DecoderLayer, jax.Array, Any, Any], tuple[jax.Array, Any]],
) -> tuple[jax.Array, Any]:
    """Runs x through all layers: x, carry = step(layer, x, carry, layer_index) for each.

    Stacked layers are scanned (layer_index is traced); unstacked ones are unrolled (layer_index is an int).
    """
    if isinstance(decoder.layers, nnx.List):
        for index, layer in enumerate(decoder.layers):
            x, carry = step(layer, x, carry, index)
        return x, carry
    graph, stacked = nnx.split(decoder.layers)

    def body(state: tuple[jax.Array, Any], layer_state: tuple[nnx.State, jax.Array]) -> Any:
        return step(nnx.merge(graph, layer_state[0]), *state, layer_state[1]), None

    indices = jnp.arange(decoder.config.num_layers)
    return jax.lax.scan(body, (x, carry), (stacked, indices))[0]


@functools.partial(jax.jit, static_argnames="config")
def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh parameters: normal with standard deviation `initializer_range`, norms 1, biases 0; stacked layers."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, rngs=nnx.Rngs(key))))


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


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array | None = None,
) -> jax.Array:
    """The decoder's output after the final norm, one causal pass over whole rows.

    A token attends to the tokens before it (and itself) that carry the same segment id. With `config.remat` each
    layer is recomputed in the backward pass.
    Args:
      tokens: [R, T] int32.
      segment_ids: [R, T] int32; 0 is padding.
      positions: [R, T] int32; by default counted from 0 within each segment.
    Returns: [R, T, E] in the compute dtype; rows of padding hold finite values without meaning.
    """
    chex.assert_equal_shape([tokens, segment_ids])
    decoder = bind(config, params)
    positions = segment_positions(segment_ids) if positions is None else positions
    causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
    mask = (segment_ids[:, None, :, None] == segment_ids[:, None, None, :]) & causal[None, None]

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, None]:
        return jax.nn.dot_product_attention(query, key, value, mask=mask), None

    def step(layer: DecoderLayer, x: jax.Array, carry: None, index: Any) -> tuple[jax.Array, None]:
        del index
        return layer(x, positions, attend)[0], carry

    def rematerialised(layer: DecoderLayer, x: jax.Array, carry: None, index: Any) -> tuple[jax.Array, None]:
        graph, state = nnx.split(layer)
        # Inside lax.scan nothing can be shared between forward and recomputation, so CSE needs no barrier there.
        checkpointed = jax.checkpoint(
            lambda state, x: step(nnx.merge(graph, state), x, None, 0)[0], prevent_cse=isinstance(index, int)
        )
        return checkpointed(state, x), carry

    x, _ = scan_layers(decoder, decoder.embed_tokens(tokens), None, rematerialised if config.remat else step)
    return decoder.final_norm(x)


def logits(params: Params, hidden: jax.Array) -> jax.Array:
    """[..., E] hidden states after the final norm -> [..., V] next-token logits, accumulated in float32 at least."""
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    if "head" in params:
        kernel = params["head"]["kernel"].astype(hidden.dtype)
        return jnp.einsum("...e,ev->...v", hidden, kernel, preferred_element_type=wide)
    embedding = params["embed"]["embedding"].astype(hidden.dtype)
    return jnp.einsum("...e,ve->...v", hidden, embedding, preferred_element_type=wide)
