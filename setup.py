"""Installs deepsearch_jax. The base install needs only plain `jax`; pick the accelerator with an extra."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "deepsearch_jax/__init__.py").read_text())[1]

# jax 0.11 has no working flax pair, so each Python gets one of the two tested sets (pinned in requirements.txt).
INSTALL_REQUIRES = [
    "absl-py>=2.1",
    "chex>=0.1.90",
    "flax>=0.12.8,<0.12.12; python_version < '3.12'",
    "flax>=0.12.12; python_version >= '3.12'",
    "grain>=0.2.12",
    "huggingface_hub>=0.30",
    "jinja2>=3.1",  # chat templates
    "jax>=0.10.2,<0.11; python_version < '3.12'",
    "jax>=0.12,<0.13; python_version >= '3.12'",
    "math-verify>=0.9",
    "matplotlib>=3.8",  # curves.png at the end of every run
    "ml_collections>=1.0",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.30",
    "pyarrow>=16",
    "rich>=13.7",
    "safetensors>=0.5",
    "sympy>=1.13",
    "tensorboardX>=2.6",
    "transformers>=4.51",
]

EXTRAS = {
    "cuda12": ["jax[cuda12]"],
    "cuda13": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "ruff==0.17.6",
        "mypy==2.4.1",
        "reasoning-gym>=0.1.19",
    ],
    "eval": ["reasoning-gym>=0.1.19"],
    "wandb": ["wandb>=0.19"],
}

setup(
    name="deepsearch_jax",
    version=VERSION,
    description="DeepSearch in JAX: Monte Carlo tree search inside the RL loop for small reasoning models",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["deepsearch_jax*", "experiments*"]),
    package_data={"experiments": ["pages/*", "pages/*/*"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
)
