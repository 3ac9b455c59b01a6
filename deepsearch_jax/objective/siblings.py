"""Advantages against siblings: what a step of a tree is worth beside the other steps from the same prefix.

A search that goes where it is likely to find something is no sample of the policy. One mean subtracted from a whole
tree then pushes likely tokens down only because the search came by: after a wrong step all that follows is below the
mean, and what follows most often is what the policy does best. Compared with its siblings such a step counts 0.
"""

import numpy as np


def sibling_advantages(
    nodes: np.ndarray, log_probs: np.ndarray, scores: np.ndarray, lowest: float | None = None
) -> np.ndarray:
    """A(s) = w(s) (V(s) - b(s)) / n(s) for the nodes on the credited paths of one tree. Own definition.

    V(s) is the best score at or below s, and b(s) the mean of V over s and its siblings weighted with their
    probabilities, where all that is on no path counts as the lowest score of the tree: so the sum of
    pi(s) (V(s) - b(s)) grad ln pi(s) over all segments behind a prefix is the gradient of the policy's expected V.
    The weight w is 1 where the difference is positive, and pi(s) given its parent where it is negative: what was found
    right counts in full however unlikely it was, a mistake as much as the policy makes it (off-policy as in TOPR,
    arXiv 2503.14286).
    n(s) is the number of paths through s, each of which carries the advantage.

    Args:
      nodes: [M, D] int, equal numbers for equal prefixes, negative behind the end of a path.
      log_probs: [M, D] float, of a node's segment given its prefix, under the raw policy; nats.
      scores: [M] float final rewards.
      lowest: of the tree; None: of `scores`.
    Returns: [M, D] float32, 0 behind the ends.
    """
    on_path = nodes >= 0
    numbers, place = np.unique(nodes[on_path], return_inverse=True)
    rows, columns = np.nonzero(on_path)
    parent, probability = np.full(len(numbers), -1, nodes.dtype), np.zeros(len(numbers))
    parent[place] = np.where(columns > 0, nodes[rows, columns - 1], -1)
    probability[place] = np.exp(log_probs[on_path])
    value = np.full(len(numbers), -np.inf)
    np.maximum.at(value, place, scores[rows])
    num_paths = np.bincount(place, minlength=len(numbers))

    family = np.unique(parent, return_inverse=True)[1]
    total = np.bincount(family, probability)
    rest = np.maximum(1 - total, 0)
    sums = np.bincount(family, probability * value) + rest * (scores.min(initial=np.inf) if lowest is None else lowest)
    difference = value - (sums / (total + rest))[family]
    advantage = np.where(difference < 0, probability, 1.0) * difference / num_paths
    found = np.zeros(nodes.shape, np.float32)
    found[on_path] = advantage[place]
    return found
