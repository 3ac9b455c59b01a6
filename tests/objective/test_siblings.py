"""Advantages against siblings, worked out by hand and against the policy gradient that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np

from deepsearch_jax.objective import sibling_advantages

# Root - 0 (.6) - 1 (.5) right, 2 (.25) wrong; root - 3 (.3) - 4 (1.) wrong.
NODES = np.array([[0, 1], [0, 2], [3, 4]])
LOG_PROBS = np.log([[0.6, 0.5], [0.6, 0.25], [0.3, 1.0]])
SCORES = np.array([1.0, -1.0, -1.0])


def test_by_hand():
    got = sibling_advantages(NODES, LOG_PROBS, SCORES)
    # At the root V = 1, -1 and the tenth that nobody took counts -1: b = .6 - .3 - .1 = .2. Two paths share node 0.
    # At node 0: b = .5 - .25 - .25 = 0. Node 4 has nothing beside it and all of the mass: b = V.
    np.testing.assert_allclose(got, [[0.8 / 2, 1.0], [0.8 / 2, -1.0 * 0.25], [-1.2 * 0.3, 0.0]], atol=1e-6)
    assert got.dtype == np.float32
    # The right path alone, in a tree that had wrong ends too: -1 is what the rest counts, not the lowest score given.
    alone = sibling_advantages(NODES[:1], LOG_PROBS[:1], SCORES[:1], lowest=-1.0)
    np.testing.assert_allclose(alone, [[1 - (0.6 - 0.4), 1 - 0.0]], atol=1e-6)


def test_below_a_wrong_step_nothing_counts_and_neither_does_a_tree_without_a_difference():
    tree = np.array([[0, 1, 2], [3, 4, -1]]), np.log([[0.9, 0.2, 0.3], [0.1, 0.4, 1]])
    np.testing.assert_array_equal(sibling_advantages(*tree, -np.ones(2)), 0)
    one_right = sibling_advantages(*tree, np.array([-1.0, 1.0]))
    np.testing.assert_array_equal(one_right[0, 1:], 0)  # -1 and beside it only what counts as -1
    assert one_right[0, 0] < 0 < one_right[1, 0]
    assert one_right[1, 2] == 0  # behind the end


def test_segments_that_rounding_takes_to_nothing_stay_finite():
    got = sibling_advantages(np.array([[0], [1]]), np.array([[-1e4], [-2e4]]), np.array([1.0, -1.0]))
    np.testing.assert_allclose(got, [[2.0], [0.0]], atol=1e-6)


def test_weighted_with_their_probabilities_they_are_the_policy_gradient_of_one_choice():
    logits, values = jnp.array([1.0, -0.5, 0.3, 0.2]), jnp.array([1.0, -1.0, 1.0, -1.0])
    want = jax.grad(lambda x: jax.nn.softmax(x) @ values)(logits)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    got = sibling_advantages(np.arange(4)[:, None], log_probs[:, None], np.asarray(values))[:, 0]
    weight = np.where(got < 0, 1.0, np.exp(log_probs))  # where it is negative the probability is in it already
    jacobian = jax.jacobian(jax.nn.log_softmax)(logits)
    np.testing.assert_allclose((weight * got) @ jacobian, want, atol=1e-6)
