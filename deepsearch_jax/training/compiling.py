"""`jax.jit` with what the compiler of a backend should be told about updates."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from deepsearch_jax.policy import target_backend

# XLA's CPU compiler hands matrix products and what surrounds them to a library, YNNPACK, that keeps a transposed copy
# of the weights in each call, which no memory analysis knows of. An update of a decoder of 150,000 tokens takes 1.28 of
# its planned memory and 15 % more CPU time with these fusions than without. The option names the kinds that are wanted;
# an empty list is none of its values, and nothing here is a convolution.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"}


class Jit:
    """A jitted function, compiled with the options of the backend that it is compiled for.

    Which one that is is asked when it is called, not when it is made: modules are imported before the processes of a
    run have found each other, and before that no backend may be started.
    """

    def __init__(self, function: Callable, **arguments: Any):
        """
        Args:
          arguments: those of `jax.jit`.
        """
        functools.update_wrapper(self, function)
        self._arguments = arguments
        self._compiled_with = functools.cache(self._jit)

    def _jit(self, has_options: bool) -> Any:
        return jax.jit(
            self.__wrapped__,  # type: ignore[attr-defined]  # set by update_wrapper
            compiler_options=CPU_OPTIONS if has_options else None,
            **self._arguments,
        )

    @property
    def _jitted(self) -> Any:
        is_cpu = target_backend() == jax.default_backend() == "cpu"
        return self._compiled_with(is_cpu and _knows_cpu_options())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._jitted(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        return self._jitted.lower(*args, **kwargs)


@functools.cache
def _knows_cpu_options() -> bool:
    """Whether this release of XLA has them: they are no stable interface."""
    try:
        jax.jit(lambda: 0, compiler_options=CPU_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
