"""What XLA is told in tests: their programs run once or twice, so that most of the time goes into compiling them."""

import importlib.metadata

# Without optimisation compiling takes less than half the time. The older way to emit loops takes another third off the
# time of the tests, though programs are slower by it; later releases of XLA do not know that flag, and what it does not
# know ends the process.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0" + (
    " --xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else ""
)
