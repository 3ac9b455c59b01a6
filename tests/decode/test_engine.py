"""Tree decoding against one full forward pass, and what may and may not change its results."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from scipy import stats

from deepsearch_jax import policy
from deepsearch_jax.decode import (
    DecodeRequest,
    KVPages,
    assign_pages,
    build_stop_table,
    decode_children,
    init_pages,
    prefill,
)
from tests.decode.trees import (
    CONFIG,
    Trees,
    decode,
    encode,
    full_logits,
    make_request,
    random_params,
    random_prompts,
    settings,
)


@pytest.mark.parametrize(("form", "chunk_size"), [("scanned", 5), ("unstacked before", 256)])
def test_log_probs_of_random_trees_equal_one_full_forward_pass(form, chunk_size):
    params = random_params()
    if form == "unstacked before":
        params = policy.unstack_layers(CONFIG, params, copy_head=True)
    rng = np.random.default_rng(7)
    trees = Trees(settings(), random_prompts(9, 1, 6), params=params, chunk_size=chunk_size)
    nodes = [[[]] for _ in range(3)]  # per slot: the paths that may be expanded
    depths = set()
    for _ in range(7):
        picks = [rng.integers(len(paths)) for paths in nodes]
        paths = [slot_nodes[pick] for slot_nodes, pick in zip(nodes, picks)]
        depths.add(tuple(len(path) for path in paths))
        segments, child_pages = trees.expand(paths, depth_bucket=3)
        trees.check(segments, paths)
        for slot, path in enumerate(paths):
            if len(path) < 3:
                children = zip(child_pages[slot], segments.tokens[slot])
                nodes[slot] += [[*path, (page, tokens)] for page, tokens in children if page >= 0]
    assert any(len(set(mixed)) > 1 for mixed in depths)  # slots of one call were at different depths
    assert {0, 1, 2} <= {depth for mixed in depths for depth in mixed}


def test_pages_can_be_used_again_for_another_prompt():
    trees = Trees(settings(), random_prompts(5, 6))
    segments, pages = trees.expand([[], []], depth_bucket=1)
    before = trees.prefix(0, [])
    trees.prompts[1] = random_prompts(8, seed=3)[0]
    tokens = np.zeros((2, 9), np.int32)
    tokens[1, :8] = trees.prompts[1]
    trees.pages = encode(
        CONFIG,
        trees.params,
        trees.pages,
        jnp.array(tokens),
        jnp.array([5, 8]),
        jnp.array([False, True]),
        chunk_size=256,
    )
    trees.free[1] = list(pages[1])  # the finished tree gives its pages back, and has no others
    paths = [[(pages[0, 2], segments.tokens[0, 2])], []]
    segments, pages = trees.expand(paths, depth_bucket=1)
    trees.check(segments, paths)
    paths = [paths[0], [(pages[1, 1], segments.tokens[1, 1])]]
    segments, _ = trees.expand(paths, depth_bucket=1)
    trees.check(segments, paths)
    np.testing.assert_array_equal(before, trees.prompts[0])


def test_direct_rollouts_need_no_pages():
    trees = Trees(settings(segment_length=12, num_samples=4), random_prompts(3, 9), pages_per_slot=0)
    segments, _ = trees.expand([[], []], depth_bucket=0)
    assert segments.tokens.shape == (2, 4, 12)
    trees.check(segments, [[], []])


@pytest.mark.parametrize("depth_bucket", [0, 1])
def test_several_rows_may_continue_one_prompt(depth_bucket):
    """Two rows expand the first prompt's root in one call, whose last token both feed and store; then its children."""
    trees = Trees(settings(num_samples=2), random_prompts(4, 7, 5))
    slots = [2, 0, 0, 1]
    segments, pages = trees.expand([[]] * 4, depth_bucket=depth_bucket, slots=slots)
    trees.check(segments, [[]] * 4, slots=slots)
    assert (segments.tokens[1] != segments.tokens[2]).any()  # of different keys
    slots = [0, 1, 0, 2]
    paths = [[(pages[row, k], segments.tokens[row, k])] for row, k in ((1, 0), (3, 1), (2, 1))] + [[]]
    segments, _ = trees.expand(paths, depth_bucket=1, slots=slots)
    trees.check(segments, paths, slots=slots)


def eos_params(eos_id, logit):
    """Weights under which `eos_id` has almost all (or almost none) of the mass everywhere."""
    config = policy.ModelConfig.tiny(29, hidden_size=24, num_layers=2, num_heads=4, tie_word_embeddings=False)
    params = jax.tree.map(lambda x: x, random_params(config))
    # With the final norm's scale 0 but for a constant direction the hidden state would vanish; the layers' output is
    # left as it is and the head answers to the embedding's constant first coordinate instead.
    params["embed"]["embedding"] = params["embed"]["embedding"].at[:, 0].set(50.0)
    params["head"]["kernel"] = params["head"]["kernel"].at[0, eos_id].set(logit)
    return config, params


def test_every_eos_id_ends_a_segment_and_the_loop_stops_early():
    config, params = eos_params(11, 10.0)
    trees = Trees(settings(eos_ids=(3, 11)), random_prompts(4, 5), config=config, params=params)
    segments, _ = trees.expand([[], []], depth_bucket=1)
    np.testing.assert_array_equal(segments.lengths, 1)
    np.testing.assert_array_equal(segments.tokens[..., 0], 11)
    np.testing.assert_array_equal(segments.tokens[..., 1:], 0)
    assert segments.is_eos.all()
    trees.check(segments, [[], []])


def test_the_loop_runs_no_longer_than_its_longest_row():
    """An early exit is visible in the pages: tokens that were never fed leave zeros."""
    config, params = eos_params(11, 10.0)
    trees = Trees(settings(eos_ids=(3, 11)), random_prompts(4, 5), config=config, params=params)
    _, pages = trees.expand([[], []], depth_bucket=1)
    assert not np.asarray(trees.pages.keys)[:, pages.ravel()].any()  # one sampled token, none fed
    never = Trees(settings(eos_ids=()), random_prompts(4, 5), config=config, params=params)
    _, pages = never.expand([[], []], depth_bucket=1)
    written = np.abs(np.asarray(never.pages.keys)[:, pages.ravel()]).sum(axis=(0, 2, 4))  # [pages, S]
    assert (written[:, :3] > 0).all()
    assert not written[:, 3].any()  # the last sampled token is fed by its node's own expansion


def test_eos_in_the_last_slot_counts():
    trees = Trees(settings(num_samples=8, eos_ids=()), random_prompts(6))
    free, _ = trees.expand([[]], depth_bucket=0)
    last = int(free.tokens[0, 0, -1])
    rows = [k for k in range(8) if last not in free.tokens[0, k, :-1]]
    again = Trees(settings(num_samples=8, eos_ids=(last,)), random_prompts(6))
    segments, _ = again.expand([[]], depth_bucket=0)  # the same keys: seeds are equal
    np.testing.assert_array_equal(segments.tokens[0, rows], free.tokens[0, rows])
    np.testing.assert_array_equal(segments.lengths[0, rows], 4)
    np.testing.assert_array_equal(segments.is_eos[0, rows], free.tokens[0, rows, -1] == last)
    assert not free.is_eos.any()
    assert segments.is_eos[0].any()


def test_inactive_slots_write_nothing():
    trees = Trees(settings(), random_prompts(4, 5))
    segments, pages = trees.expand([[], []], depth_bucket=1)
    before = jax.tree.map(np.asarray, trees.pages)
    paths = [[(pages[slot, 0], segments.tokens[slot, 0])] for slot in range(2)]
    segments, _ = trees.expand(paths, depth_bucket=1, active=[True, False])
    np.testing.assert_array_equal(segments.lengths[1], 0)
    assert not segments.tokens[1].any()
    assert not segments.is_eos[1].any()
    trees.check(segments, paths, rows=[0])
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(trees.pages)):
        start = old.shape[1] // 2  # the second slot's half of the pool and of the prompts
        np.testing.assert_array_equal(old[:, start:], new[:, start:])


def test_entropies_and_log_probs_of_a_cut_distribution_equal_the_full_pass():
    how = settings(num_samples=6, temperature=0.7, min_p=0.2, entropy=True, eos_ids=(7, 20))
    trees = Trees(how, random_prompts(5, 9))
    first, pages = trees.expand([[], []], depth_bucket=1)
    trees.check(first, [[], []])
    full = [int(np.flatnonzero((row == 4) & ~eos)[0]) for row, eos in zip(first.lengths, first.is_eos)]
    paths = [[(pages[row, k], first.tokens[row, k])] for row, k in enumerate(full)]
    segments, _ = trees.expand(paths, depth_bucket=1)
    for row, path in enumerate(paths):
        prefix = trees.prefix(row, path)
        for k in range(6):
            length = segments.lengths[row, k]
            tokens = trees.padded([*prefix, *segments.tokens[row, k]])
            logits = np.asarray(full_logits(CONFIG, trees.params, tokens), np.float64)[len(prefix) - 1 :][:length]
            raw, cut = np.exp(logits), np.exp(logits / 0.7)
            raw /= raw.sum(axis=1, keepdims=True)
            np.testing.assert_allclose(segments.entropies[row, k, :length], -(raw * np.log(raw)).sum(axis=1), atol=1e-4)
            assert not segments.entropies[row, k, length:].any()
            cut[cut < 0.2 * cut.max(axis=1, keepdims=True)] = 0
            own = segments.tokens[row, k, :length]
            want = np.log(cut[np.arange(length), own] / cut.sum(axis=1))
            np.testing.assert_allclose(segments.sampling_log_probs[row, k, :length], want, atol=1e-4)
    assert (segments.lengths < 4).any()


def test_greedy_takes_the_most_likely_token():
    trees = Trees(settings(temperature=0.0, num_samples=2), random_prompts(5))
    segments, _ = trees.expand([[]], depth_bucket=0)
    np.testing.assert_array_equal(segments.tokens[0, 0], segments.tokens[0, 1])
    tokens = trees.prompts[0]
    for t in range(4):
        logits = full_logits(CONFIG, trees.params, trees.padded(tokens))[len(tokens) - 1]
        assert int(jnp.argmax(logits)) == segments.tokens[0, 0, t]
        tokens = np.append(tokens, segments.tokens[0, 0, t])
    trees.check(segments, [[]])
    assert not segments.sampling_log_probs.any()


def test_one_compilation_serves_all_steps():
    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(decode_children, n=1), static_argnums=(0, 4))
    trees = Trees(settings(), random_prompts(4, 5))
    for depth in (0, 1):
        request = DecodeRequest(
            jnp.array([4, 5]), jnp.full((2, 1), depth - 1), jnp.array([depth, 0]), jnp.array([1, 2]),
            jnp.full((2, 3), -1), jax.random.split(jax.random.key(depth), (2, 3)), jnp.array([True, depth == 0]),
        )  # fmt: skip
        traced(CONFIG, trees.params, trees.pages, request, settings())


@pytest.mark.slow
def test_a_sharded_batch_gives_what_one_device_gives():
    """Each of 4 devices holds 2 prompts with 2 rows each and its own pool; ids of slots and pages are of the shard.

    Its second call finds one of two pages missing, ends at stop strings and takes pages by priority.
    """
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    params, how = random_params(), settings(recompute=True, entropy=True)
    table = build_stop_table(["b"], [b"a", b"b"] * 14 + [b"a"])
    prompts = random_prompts(*range(1, 9))
    tokens = jnp.array(np.stack([np.pad(p, (0, 9 - len(p))) for p in prompts]), jnp.int32)
    lengths, slots = jnp.arange(1, 9), jnp.tile(jnp.array([1, 0, 0, 1]), 4)
    last = jnp.array([prompts[2 * (row // 4) + int(slots[row])][-1] for row in range(16)])
    some_of = jax.random.normal(jax.random.key(3), (8, 3))  # per tree: what its three nodes are worth

    def run(params, table, pages, tokens, lengths, slots, last, keys, some_of):
        rows, none = jnp.arange(4), jnp.zeros_like(last)
        pages = prefill(CONFIG, params, pages, tokens, lengths, lengths > 0)
        request = DecodeRequest(
            lengths, none[:, None] - 1, none, last, rows[:, None] * 3 + jnp.arange(3)[None], keys[:, 0], none == 0,
            slots, jnp.tile(none[:, None], (1, 4)), none[:, None] - 1,
        )  # fmt: skip
        pages, one, nothing = decode_children(CONFIG, params, pages, request, how)
        request = request.replace(
            path_pages=jnp.where(rows % 2 == 0, 3 * rows, -1)[:, None], depth=none + 1,
            path_tokens=one.tokens[:, 0], last_token=one.tokens[:, 0, -1], row_keys=keys[:, 1],
            keep_pages=jnp.full((4, 1), 3), child_pages=jnp.full((4, 3), -1),
        )  # fmt: skip
        pages, two, recomputed = decode_children(CONFIG, params, pages, request, how, table)
        page_of = jnp.full_like(some_of, -1, dtype=jnp.int32)
        page_of, evicted = assign_pages(page_of, some_of, some_of > -1, jnp.ones_like(page_of), 4)
        return one, two, nothing + recomputed, page_of, evicted[None]

    arguments = (tokens, lengths, slots, last, jax.random.split(jax.random.key(5), (16, 2, 3)), some_of)
    over, first_axis = PartitionSpec(None, "data"), PartitionSpec("data")
    sharded = jax.jit(
        jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), KVPages(over, over, over, over), *(first_axis,) * 6),
            out_specs=first_axis,
        )
    )
    got = sharded(params, table, init_pages(CONFIG, 8, 48, how.segment_length, how.max_prompt_length), *arguments)
    assert got[1].is_eos.any()
    alone = jax.jit(run)
    np.testing.assert_array_equal(got[2], [0, 3, 0, 3] * 4)
    for shard in range(4):
        mine = jax.tree.map(lambda x, s=shard: x[s * len(x) // 4 : (s + 1) * len(x) // 4], arguments)
        small = init_pages(CONFIG, 2, 12, how.segment_length, how.max_prompt_length)
        want = alone(params, table, small, *mine)
        part = jax.tree.map(lambda x, s=shard: x[s * len(x) // 4 : (s + 1) * len(x) // 4], got)
        chex.assert_trees_all_close(part, want, atol=1e-5)


def test_shapes_that_do_not_fit_are_refused():
    trees = Trees(settings(), random_prompts(4))
    with pytest.raises(AssertionError):
        decode(CONFIG, trees.params, trees.pages, some_request(), settings(segment_length=5))


def some_request():
    return DecodeRequest(
        jnp.array([4]), jnp.full((1, 1), -1), jnp.array([0]), jnp.array([1]), jnp.full((1, 3), -1),
        jax.random.split(jax.random.key(0), (1, 3)), jnp.array([True]),
    )  # fmt: skip


@pytest.mark.slow
def test_pairs_of_sampled_tokens_follow_the_policy():
    """Chi-square over the first two tokens together: p(a) p(b | a), from the first step and from the loop."""
    how = settings(num_samples=4000, segment_length=2, temperature=0.8)
    trees = Trees(how, random_prompts(5), pages_per_slot=0)
    segments, _ = trees.expand([[]], depth_bucket=0)
    vocabulary = jnp.arange(CONFIG.vocab_size)
    rows = jnp.concatenate([jnp.tile(jnp.array(trees.prompts[0]), (CONFIG.vocab_size, 1)), vocabulary[:, None]], axis=1)
    hidden = policy.hidden_states(CONFIG, trees.params, rows, jnp.ones_like(rows))[:, -2:]
    table = np.asarray(jax.nn.softmax(policy.logits(trees.params, hidden) / how.temperature, axis=-1), np.float64)
    expected = (table[0, 0][:, None] * table[:, 1]).ravel() * how.num_samples
    counts = np.bincount(segments.tokens[0, :, 0] * CONFIG.vocab_size + segments.tokens[0, :, 1], minlength=29 * 29)
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    assert common.sum() > 20
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3
    drawn = np.log(table[segments.tokens[0, :, 0], 1, segments.tokens[0, :, 1]])
    np.testing.assert_allclose(segments.sampling_log_probs[0, :, 1], drawn, atol=1e-4)


@pytest.mark.parametrize("is_unrolled", [True, False])
def test_the_pool_is_written_in_place(is_unrolled):
    """A copy of all pages in every expansion took two thirds of a search iteration."""
    own = settings(num_samples=2, unroll_layers=is_unrolled)
    trees = Trees(own, random_prompts(5, 6), pages_per_slot=13)
    segments, pages = trees.expand([[], []], depth_bucket=2)
    path = [[(pages[row, 0], segments.tokens[row, 0])] for row in range(2)]
    keys = jax.random.split(jax.random.key(0), (4, 2))
    request = make_request(
        trees.prompts, path * 2, 2, own, child_pages=np.arange(8).reshape(4, 2) + 14, row_keys=keys, slots=[0, 1, 0, 1]
    )
    donating = jax.jit(decode_children, static_argnames=("config", "settings"), donate_argnames="pages")
    program = donating.lower(CONFIG, trees.params, trees.pages, request, own).compile().as_text()
    for field in (trees.pages.keys, trees.pages.prompt_keys):
        pool = "f32[" + ",".join(map(str, field.shape)) + "]"
        assert pool in program
        assert not [line for line in program.splitlines() if f"= {pool}" in line and " copy(" in line]
