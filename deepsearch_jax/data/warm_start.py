"""Supervised batches of written arithmetic for the warm start, each made from (seed, step) alone."""

import numpy as np

from deepsearch_jax.data.arithmetic import (
    ALPHABET,
    EOS,
    WARM_START_STREAM,
    ArithmeticSettings,
    Chains,
    WarmStartStage,
    is_heldout,
    max_prompt_length,
    max_response_length,
    opened,
    sample_chains,
    write_prompts,
    write_solutions,
)
from deepsearch_jax.data.borrowing import borrows, fits_forgotten, forgotten
from deepsearch_jax.data.tokenizers import CharTokenizer
from deepsearch_jax.types import TokenBatch


def num_warm_start_steps(settings: ArithmeticSettings) -> int:
    """Optimizer steps of all stages together."""
    return sum(stage.num_steps for stage in settings.warm_start_stages)


def stage_at(settings: ArithmeticSettings, step: int) -> WarmStartStage:
    """The stage that step `step` (from 0, over all stages) belongs to. Raises: ValueError outside the warm start."""
    first = 0
    for stage in settings.warm_start_stages:
        if first <= step < first + stage.num_steps:
            return stage
        first += stage.num_steps
    raise ValueError(f"step={step} lies outside the warm start of {first} steps")


def row_length(stage: WarmStartStage, settings: ArithmeticSettings) -> int:
    """T of the stage's batches; stages with equal longest chains share it, and with it the compiled update."""
    return max_prompt_length(stage.lengths, settings) + max_response_length(stage.lengths, settings)


def warm_start_batch(settings: ArithmeticSettings, step: int) -> TokenBatch:
    """The batch of one step: TokenBatch of numpy arrays [R, T] with the loss on the response, EOS included.

    Advantages and old log-probs are zeros, which a supervised loss does not read. No held-out chain occurs.
    """
    stage = stage_at(settings, step)
    rng = np.random.default_rng(np.random.SeedSequence((settings.seed, WARM_START_STREAM, step)))
    weights = np.asarray(stage.weights or [1.0] * len(stage.lengths))
    lengths = rng.choice(stage.lengths, settings.warm_start_batch_size, p=weights / weights.sum())
    chains = _training_chains(rng, lengths, settings, may_be_forgotten=stage.forget_borrow > 0)
    values = (
        forgotten(chains.values, borrows(chains) & (rng.random(chains.operands.shape) < stage.forget_borrow))
        if stage.forget_borrow
        else noisy_values(rng, chains, stage.plus_noise, stage.minus_noise, settings)
    )
    return supervised_rows(
        [opened(prompt) for prompt in write_prompts(chains)],
        write_solutions(chains, values),
        row_length(stage, settings),
        CharTokenizer(ALPHABET, eos=EOS),
    )


def _training_chains(
    rng: np.random.Generator, lengths: np.ndarray, settings: ArithmeticSettings, *, may_be_forgotten: bool
) -> Chains:
    """Chains of these lengths, held-out ones drawn again; so are those that no forgetful calculation can write."""
    chains = sample_chains(rng, lengths, settings)
    for _ in range(1000):
        prompts = write_prompts(chains)
        again = np.array([is_heldout(p, settings.heldout_share) for p in prompts])
        if may_be_forgotten:
            again |= ~fits_forgotten(chains, settings.max_value)
        if not again.any():
            return chains
        fresh = sample_chains(rng, lengths, settings)
        chains = Chains(
            np.where(again, fresh.start, chains.start),
            np.where(again[:, None], fresh.operands, chains.operands),
            chains.lengths,
        )
    raise ValueError(
        f"found no training chains of lengths {sorted(set(lengths.tolist()))}: heldout_share={settings.heldout_share} "
        "holds nearly all out; lower it or widen the range of values"
    )


def noisy_values(
    rng: np.random.Generator, chains: Chains, plus_noise: float, minus_noise: float, settings: ArithmeticSettings
) -> np.ndarray:
    """Written values [n, L], each wrong with the given probability and otherwise right for the value written before it.

    A mistake shifts the rest of its chain. Shifts are drawn evenly among those that keep the rest within the domain, so
    every step remains a computation the policy can learn; a step with no such shift stays right.
    """
    exact = chains.values
    depth = exact.shape[1]
    inside = np.arange(depth) < chains.lengths[:, None]
    # Smallest and largest exact value from each step to the end of its chain.
    lowest = np.minimum.accumulate(np.where(inside, exact, settings.max_value)[:, ::-1], axis=1)[:, ::-1]
    highest = np.maximum.accumulate(np.where(inside, exact, settings.min_value)[:, ::-1], axis=1)[:, ::-1]
    probability = np.where(chains.operands > 0, plus_noise, minus_noise)
    shift = np.zeros(exact.shape[0], np.int64)
    written = np.empty_like(exact)
    for step in range(depth):
        least, most = settings.min_value - lowest[:, step], settings.max_value - highest[:, step]
        other = least + rng.integers(0, np.maximum(most - least, 1))
        other += other >= shift  # skips the shift that would make the step right
        wrong = (rng.random(shift.size) < probability[:, step]) & (most > least)
        shift = np.where(wrong, other, shift)
        written[:, step] = exact[:, step] + shift
    return written


def supervised_rows(prompts: list[str], responses: list[str], width: int, tokenizer: CharTokenizer) -> TokenBatch:
    """Rows of `width` tokens with the loss on the responses, which end with the EOS character."""
    tokens = np.full((len(prompts), width), tokenizer.pad_id, np.int32)
    loss_mask = np.zeros(tokens.shape, bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses)):
        ids = tokenizer.encode(prompt + response)
        tokens[row, : len(ids)] = ids
        loss_mask[row, len(prompt) : len(ids)] = True
    zeros = np.zeros(tokens.shape, np.float32)
    segment_ids = (tokens != tokenizer.pad_id).astype(np.int32)
    # numpy arrays on purpose: the caller decides where they go.
    return TokenBatch(tokens, segment_ids, loss_mask, zeros, zeros.copy())  # type: ignore[arg-type]
