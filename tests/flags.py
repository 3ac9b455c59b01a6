"""What XLA is told in tests: their programs run once or twice, so that most of the time goes into compiling them."""

import importlib.metadata

# Without optimisation compiling takes less than half the time. So it does with the older way to emit loops, with which
# programs are a tenth slower; later releases of XLA do not know that flag, and what it does not know ends the process.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0" + (
    " --xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else ""
)
