"""What the CPU's compiler is told about updates."""

import jax
import jax.numpy as jnp
import numpy as np

from deepsearch_jax.policy import compiling_for
from deepsearch_jax.training import compiling
from deepsearch_jax.training.compiling import Jit

SHAPES = (jax.ShapeDtypeStruct((128, 64), jnp.float32), jax.ShapeDtypeStruct((256, 64), jnp.float32))


def softmax_of_product(a, b):
    return jax.nn.softmax(a @ b.T)


def library_fusions(program):
    return program.compile().as_text().count("ynn_fusion")


def test_updates_on_a_cpu_have_no_fusions_that_hold_weights_unseen():
    jitted = Jit(softmax_of_product)
    assert library_fusions(jitted.lower(*SHAPES)) == 0
    assert library_fusions(jax.jit(softmax_of_product).lower(*SHAPES)) > 0
    with compiling_for("cuda"):  # plans of accelerators stay what was measured
        assert library_fusions(jitted.lower(*SHAPES)) > 0


def test_a_release_without_the_option_compiles_as_it_likes(monkeypatch):
    monkeypatch.setattr(compiling, "CPU_OPTIONS", {"xla_cpu_option_of_another_release": "1"})
    compiling._knows_cpu_options.cache_clear()
    try:
        doubled = Jit(lambda x, *, by: by * x, static_argnames="by")(np.arange(3.0, dtype=np.float32), by=2)
    finally:
        compiling._knows_cpu_options.cache_clear()
    np.testing.assert_array_equal(doubled, [0, 2, 4])
