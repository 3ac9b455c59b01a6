"""What a set of verified samples says of a policy: unbiased pass@k, majority votes, intervals over problems. Pure."""

from collections.abc import Callable, Sequence

import numpy as np

BOOTSTRAP_DRAWS = 10_000


def pass_at_k(num_correct: np.ndarray, num_samples: int, k: int) -> np.ndarray:
    """Probability that at least one of k samples is correct, without bias: 1 - C(n - c, k) / C(n, k).

    Of n samples c are correct (Chen et al., arXiv 2107.03374, equation 1).
    Args:
      num_correct: [...] int, 0..num_samples.
      num_samples: n.
      k: 1..n.
    Returns: [...] float64.
    Raises:
      ValueError: k is not in 1..n.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@k needs k={k} to be between 1 and the {num_samples} samples a problem has")
    wrong = num_samples - np.asarray(num_correct, np.float64)
    # A product of k factors (n - c - i) / (n - i): the binomials themselves overflow.
    i = np.arange(k)
    return 1 - np.prod(np.maximum(wrong[..., None] - i, 0) / (num_samples - i), axis=-1)


def powers_up_to(num_samples: int) -> list[int]:
    """1, 2, 4, ... and the number of samples itself: the k that are reported."""
    return sorted({*(2**i for i in range(num_samples.bit_length())), num_samples})


def majority_vote(answers: Sequence[str | None], is_correct: Sequence[bool], same: Callable[[str, str], bool]) -> float:
    """Whether the answer that most samples give is correct (self-consistency, arXiv 2203.11171).

    Samples without an answer do not vote. Where several answers have equally many votes, each is as likely to be taken.
    Args:
      answers: of the samples.
      is_correct: the verdicts. Members of one class may differ in them (another form was not recognised); the class is
        then as correct as the share of its members that are.
      same: whether two answers say the same.
    Returns: in [0, 1]; 0 without any answer.
    """
    classes: list[tuple[str, list[bool]]] = []
    for answer, correct in zip(answers, is_correct, strict=True):
        if answer is None:
            continue
        for representative, votes in classes:
            if answer == representative or same(answer, representative):
                votes.append(bool(correct))
                break
        else:
            classes.append((answer, [bool(correct)]))
    if not classes:
        return 0.0
    most = max(len(votes) for _, votes in classes)
    return float(np.mean([np.mean(votes) for _, votes in classes if len(votes) == most]))


def bootstrap_interval(values: np.ndarray, draws: int = BOOTSTRAP_DRAWS, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean over problems, by drawing problems with replacement (percentiles).

    Args:
      values: [N], one a problem.
    """
    values = np.asarray(values, np.float64)
    rng, means = np.random.default_rng(seed), np.empty(draws)
    for start in range(0, draws, 1000):  # at most a thousand times N numbers at a time
        part = rng.integers(len(values), size=(min(1000, draws - start), len(values)))
        means[start : start + len(part)] = values[part].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
