"""A tiny host-side driver for the engine: random trees of full segments, and the full forward pass they must equal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from deepsearch_jax import policy
from deepsearch_jax.decode import DecodeRequest, DecodeSettings, decode_children, init_pages, prefill

CONFIG = policy.ModelConfig.tiny(29, hidden_size=24, num_layers=2, num_heads=4, num_kv_heads=2, qkv_bias=True)
decode = jax.jit(decode_children, static_argnames=("config", "settings"))
encode = jax.jit(prefill, static_argnames=("config", "chunk_size"))


@functools.cache
def random_params(config=CONFIG):
    """Fresh weights, biases and norms random too, so that every one of them matters."""
    params = policy.init_params(config, jax.random.key(0))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return treedef.unflatten([x + 0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


@functools.partial(jax.jit, static_argnames="config")
def teacher_forced(config, params, tokens):
    """[T] token ids -> [T] log-probs by one full forward pass."""
    return policy.token_log_probs(config, params, tokens[None], jnp.ones_like(tokens)[None], chunk_size=64)[0][0]


def make_request(
    prompts, paths, depth_bucket, settings, *, child_pages, row_keys, active=None, slots=None, keep_pages=None
):
    """A request from paths [(page, tokens), ...]."""
    count, length = len(paths), settings.segment_length
    path_pages = np.full((count, depth_bucket), -1)
    path_tokens = np.zeros((count, depth_bucket * length), np.int32)
    for row, path in enumerate(paths):
        path_pages[row, : len(path)] = [page for page, _ in path]
        path_tokens[row, : len(path) * length] = [token for _, tokens in path for token in tokens]
    prompt_of = range(count) if slots is None else slots
    last = [(path[-1][1] if path else prompts[slot])[-1] for path, slot in zip(paths, prompt_of)]
    return DecodeRequest(
        prompt_lengths=jnp.array([len(p) for p in prompts]),
        path_pages=jnp.array(path_pages),
        depth=jnp.array([len(path) for path in paths]),
        last_token=jnp.array(last),
        child_pages=jnp.array(child_pages),
        row_keys=row_keys,
        active=jnp.ones(count, bool) if active is None else jnp.array(active),
        slots=None if slots is None else jnp.array(slots),
        path_tokens=jnp.array(path_tokens),
        keep_pages=None if keep_pages is None else jnp.array(keep_pages),
    )


@functools.partial(jax.jit, static_argnames="config")
def full_logits(config, params, tokens):
    """[T] token ids -> [T, V] logits of what follows each."""
    hidden = policy.hidden_states(config, params, tokens[None], jnp.ones_like(tokens)[None])
    return policy.logits(params, hidden)[0]


class Trees:
    """B growing trees whose every node is a full segment; nodes are paths of (page, tokens)."""

    def __init__(
        self, settings, prompts, *, pages_per_slot=16, config=CONFIG, params=None, chunk_size=256, seed=0,
        stop_table=None,
    ):  # fmt: skip
        self.stop_table = stop_table
        self.settings, self.config, self.prompts = settings, config, [np.asarray(p) for p in prompts]
        self.params = random_params(config) if params is None else params
        self.num_slots = len(prompts)
        self.longest = settings.max_prompt_length + (settings.max_depth + 1) * settings.segment_length
        self.stacked = random_params() if "attention" not in self.params["layers"] else self.params
        room = settings.max_prompt_length
        pages = init_pages(config, self.num_slots, self.num_slots * pages_per_slot, settings.segment_length, room)
        tokens = np.stack([np.pad(p, (0, room - len(p))) for p in self.prompts])
        lengths = np.array([len(p) for p in self.prompts])
        self.pages = encode(
            config, self.params, pages, jnp.array(tokens), jnp.array(lengths), lengths > 0, chunk_size=chunk_size
        )
        self.free = [list(range(i * pages_per_slot, (i + 1) * pages_per_slot)) for i in range(self.num_slots)]
        self.key = jax.random.key(seed)

    def expand(self, paths, *, depth_bucket, active=None, row_keys=None, slots=None, keep_pages=None):
        """Expands one path [(page, tokens), ...] a row; returns the segments and the pages of the children.

        Row r continues prompt slots[r], by default prompt r. A page of -1 in a path is missing.
        """
        count, samples = len(paths), self.settings.num_samples
        prompt_of = range(count) if slots is None else slots
        child_pages = np.full((count, samples), -1)
        for row, slot in zip(child_pages, prompt_of):
            taken = self.free[slot][:samples]
            del self.free[slot][:samples]
            row[: len(taken)] = taken
        if row_keys is None:
            self.key, key = jax.random.split(self.key)
            row_keys = jax.random.split(key, (count, samples))
        request = make_request(
            self.prompts, paths, depth_bucket, self.settings, child_pages=child_pages, row_keys=row_keys,
            active=active, slots=slots, keep_pages=keep_pages,
        )  # fmt: skip
        return self.serve(request), child_pages

    def serve(self, request):
        self.pages, segments, self.recomputed = decode(
            self.config, self.params, self.pages, request, self.settings, self.stop_table
        )
        return jax.tree.map(np.asarray, segments)

    def prefix(self, slot, path):
        return np.concatenate([self.prompts[slot], *(tokens for _, tokens in path)])

    def padded(self, tokens):
        """As long as any sequence can get: one compilation; padding behind changes nothing before."""
        return jnp.array(np.pad(tokens, (0, self.longest - len(tokens))), jnp.int32)

    def check(self, segments, paths, rows=None, slots=None, atol=1e-4):
        """Every segment's log-probs equal those of one full forward pass over its whole sequence."""
        for row in range(len(paths)) if rows is None else rows:
            prefix = self.prefix(row if slots is None else slots[row], paths[row])
            for k in range(self.settings.num_samples):
                length = segments.lengths[row, k]
                tokens = self.padded([*prefix, *segments.tokens[row, k, :length]])
                want = teacher_forced(self.config, self.stacked, tokens)
                got = segments.log_probs[row, k, :length]
                np.testing.assert_allclose(got, want[len(prefix) : len(prefix) + length], atol=atol)
                assert not segments.tokens[row, k, length:].any()
                assert not segments.log_probs[row, k, length:].any()


def random_prompts(*lengths, vocab_size=CONFIG.vocab_size, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, vocab_size, n) for n in lengths]


def settings(**changes):
    return DecodeSettings(**({"num_samples": 3, "segment_length": 4, "max_prompt_length": 9, "max_depth": 3} | changes))
