"""DeepSearch in JAX: tree search inside the RL loop (arXiv 2509.25454)."""

__version__ = "0.1.0"
