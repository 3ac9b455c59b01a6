"""Enforces the import table of the package: arrows point one way, and the core touches no file, clock or process.

The table is of what modules write down (every import statement, also inside functions), not of what that loads.
"""

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "deepsearch_jax"

# What each module of the package, and `experiments`, may import of ours beside itself.
ALLOWED: dict[str, set[str]] = {
    "types": set(),
    "tree": {"types"},
    "objective": {"types"},
    "cache": {"types"},
    "policy": {"types"},
    "decode": {"policy", "types"},
    "verify": set(),
    "data": {"types"},
    "training": {"objective", "policy", "types"},
    # config gathers the settings classes; that it and runtime do not need each other in a circle has its own test.
    "config": {"types", "tree", "objective", "cache", "policy", "decode", "verify", "data", "training", "runtime"},
    "runtime": {"types", "tree", "objective", "cache", "policy", "decode", "verify", "data", "training", "config"},
    "experiments": {"types", "runtime", "config"},
}

# The core is functions from arrays to arrays.
PURE = ("types", "tree", "objective", "cache", "decode")
IMPURE_LIBRARIES = frozenset(
    """absl argparse asyncio atexit concurrent configparser ctypes datetime faulthandler fcntl getpass glob gzip http
    importlib inspect io json locale logging mmap multiprocessing os pathlib pickle platform psutil pty queue random
    requests resource secrets select selectors shelve shutil signal socket sqlite3 ssl subprocess sys syslog tempfile
    threading time urllib uuid warnings zipfile
    fsspec grain huggingface_hub math_verify ml_collections orbax pyarrow rich safetensors sympy tensorboardX
    tokenizers torch transformers wandb""".split()  # noqa: SIM905  (a list of 70 strings reads worse)
)
IMPURE_NAMES = frozenset({"open", "print", "input", "eval", "exec", "__import__", "breakpoint"})
# The core calls back to nobody: verdicts come from the host as arrays.
CALLBACKS = frozenset({"pure_callback", "io_callback", "host_callback", "debug.callback", "debug.print"})

# The verifier runs in worker processes that must start fast and hold no device.
DEVICE_LIBRARIES = frozenset({"jax", "jaxlib", "flax", "optax", "chex", "orbax", "grain", "torch", "tensorflow"})


def python_files(root: pathlib.Path) -> list[pathlib.Path]:
    return [path for folder in (PACKAGE, "experiments") for path in sorted((root / folder).rglob("*.py"))]


def unit_of(module: tuple[str, ...]) -> str:
    """Row of the table a dotted name belongs to; "" for the bare package, which holds nothing but its version."""
    if module[0] != PACKAGE:
        return module[0]
    return module[1] if len(module) > 1 else ""


def imports_of(tree: ast.AST, module: tuple[str, ...], is_package: bool) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, absolute dotted name) of all a file imports; `from a import b` gives a.b, as b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base: tuple[str, ...] = ()
            if node.level:
                base = module if is_package else module[:-1]
                base = base[: len(base) - (node.level - 1)]
            base += tuple((node.module or "").split(".")) if node.module else ()
            for alias in node.names:
                yield node.lineno, (*base, alias.name)


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def complaints(root: pathlib.Path) -> list[str]:
    """All breaches of the table below `root`, one line each."""
    found = []
    for path in python_files(root):
        relative = path.relative_to(root)
        is_package = path.name == "__init__.py"
        module = relative.with_suffix("").parts
        module = module[:-1] if is_package else module
        unit = unit_of(module)
        if unit and unit not in ALLOWED:
            found.append(
                f"{relative}: the import table has no row for {unit!r}; add one to {pathlib.Path(__file__).name}"
            )
            continue
        tree = ast.parse(path.read_text("utf-8"), filename=str(path))
        for line, name in imports_of(tree, module, is_package):
            place = f"{relative}:{line}"
            if name[0] in (PACKAGE, "experiments"):
                target = unit_of(name)
                if target in ("__version__", "", unit):
                    continue
                if not unit or target not in ALLOWED[unit]:
                    found.append(f"{place}: {unit or PACKAGE} must not import {'.'.join(name)}")
            elif name[0] in ("tests", "benchmarks"):
                found.append(f"{place}: {unit or PACKAGE} must not import {name[0]}")
            elif unit in PURE and name[0] in IMPURE_LIBRARIES:
                found.append(f"{place}: {unit} is a pure module and must not import {name[0]}")
            elif unit == "verify" and name[0] in DEVICE_LIBRARIES:
                found.append(f"{place}: verify must not import {name[0]}")
            elif unit in PURE and name[-1] in CALLBACKS:
                found.append(f"{place}: {unit} is a pure module and must not import {'.'.join(name)}")
        if unit in PURE:
            found += [
                f"{relative}:{line}: {unit} is a pure module and must not use {what}" for line, what in impure(tree)
            ]
    return found


def impure(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of input, output, callbacks and globals in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_NAMES:
            yield node.lineno, f"{node.func.id}()"
        elif isinstance(node, ast.Global):
            yield node.lineno, "global"
        elif isinstance(node, ast.Attribute):
            name = dotted(node)
            if any(name == c or name.endswith("." + c) for c in CALLBACKS) or name.startswith(
                ("np.random", "numpy.random")
            ):
                yield node.lineno, name


def test_imports_follow_the_table():
    assert complaints(REPOSITORY) == []


def test_packages_form_no_circle():
    """config may read the settings of runtime, or runtime the gathered config, but not both."""
    edges: dict[str, set[str]] = {}
    for path in python_files(REPOSITORY):
        is_package = path.name == "__init__.py"
        module = path.relative_to(REPOSITORY).with_suffix("").parts
        module = module[:-1] if is_package else module
        tree = ast.parse(path.read_text("utf-8"))
        targets = {unit_of(n) for _, n in imports_of(tree, module, is_package) if n[0] in (PACKAGE, "experiments")}
        edges.setdefault(unit_of(module), set()).update(targets & set(ALLOWED) - {unit_of(module)})
    remaining = dict(edges)
    while leaves := [unit for unit, targets in remaining.items() if not targets & set(remaining)]:
        for unit in leaves:
            del remaining[unit]
    assert remaining == {}


def test_the_walk_sees_every_package():
    seen = {unit_of(path.relative_to(REPOSITORY).with_suffix("").parts) for path in python_files(REPOSITORY)}
    assert {"types", "tree", "objective", "cache", "policy", "decode", "verify", "data", "training"} <= seen
    assert {"runtime", "experiments"} <= seen


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("tree/a.py", "import deepsearch_jax.cache", "a.py:1: tree must not import deepsearch_jax.cache"),
        ("tree/a.py", "from deepsearch_jax import objective", "tree must not import deepsearch_jax.objective"),
        ("tree/a.py", "from deepsearch_jax.policy.model import X", "must not import deepsearch_jax.policy.model.X"),
        ("tree/a.py", "from ..cache import insert", "must not import deepsearch_jax.cache.insert"),
        ("tree/a.py", "from .. import cache", "must not import deepsearch_jax.cache"),
        ("tree/__init__.py", "from ..cache import insert", "must not import deepsearch_jax.cache.insert"),
        ("tree/deep/a.py", "from ...cache import insert", "must not import deepsearch_jax.cache.insert"),
        ("tree/a.py", "def f():\n    import deepsearch_jax.data", "a.py:2: tree must not import deepsearch_jax.data"),
        ("types.py", "import deepsearch_jax.tree", "types must not import deepsearch_jax.tree"),
        ("verify/a.py", "from deepsearch_jax.types import Outcome", "verify must not import deepsearch_jax.types"),
        ("verify/a.py", "import jax.numpy as jnp", "verify must not import jax"),
        ("verify/a.py", "def f():\n    from flax import struct", "a.py:2: verify must not import flax"),
        ("training/a.py", "import deepsearch_jax.decode", "training must not import deepsearch_jax.decode"),
        ("runtime/a.py", "import experiments.run", "runtime must not import experiments.run"),
        ("runtime/a.py", "import tests.oracle", "runtime must not import tests"),
        ("__init__.py", "from deepsearch_jax.tree import state", "deepsearch_jax must not import deepsearch_jax.tree"),
        ("tree/a.py", "import os.path", "tree is a pure module and must not import os"),
        ("objective/a.py", "from pathlib import Path", "objective is a pure module and must not import pathlib"),
        ("cache/a.py", "import time", "cache is a pure module and must not import time"),
        ("decode/a.py", "import logging", "decode is a pure module and must not import logging"),
        ("decode/a.py", "import transformers", "decode is a pure module and must not import transformers"),
        ("tree/a.py", "from jax.experimental import io_callback", "must not import jax.experimental.io_callback"),
        (
            "tree/a.py",
            "import jax\njax.debug.print('x')",
            "a.py:2: tree is a pure module and must not use jax.debug.print",
        ),
        ("tree/a.py", "import jax\njax.pure_callback(f, s)", "must not use jax.pure_callback"),
        ("tree/a.py", "import numpy as np\nnp.random.rand()", "must not use np.random"),
        ("tree/a.py", "x = open('f')", "must not use open()"),
        ("tree/a.py", "def f():\n    global x\n    x = 1", "a.py:2: tree is a pure module and must not use global"),
        ("novel/a.py", "", "the import table has no row for 'novel'"),
        ("../experiments/a.py", "import deepsearch_jax.tree", "experiments must not import deepsearch_jax.tree"),
    ],
)
def test_a_breach_is_seen(tmp_path, file, source, complaint):
    path = (tmp_path / PACKAGE / file).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    found = complaints(tmp_path)
    assert found
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "tree/a.py",
            "from deepsearch_jax.types import Segments\nfrom deepsearch_jax.tree.state import Tree\nimport jax",
        ),
        ("tree/a.py", "from .state import Tree\nfrom ..types import Segments\nfrom . import frontier"),
        ("tree/__init__.py", "from .state import Tree"),
        ("decode/a.py", "from deepsearch_jax import policy, types\nimport functools, math"),
        ("verify/a.py", "import os, time, multiprocessing, sympy"),
        ("runtime/a.py", "import os, time\nfrom deepsearch_jax import __version__, tree, verify"),
        ("tree/a.py", "import jax\njax.random.split(key)\njnp.ones(3).debug"),
        ("../experiments/a.py", "from deepsearch_jax.runtime import train\nfrom experiments.configs import quickstart"),
    ],
)
def test_what_the_table_allows_passes(tmp_path, file, source):
    path = (tmp_path / PACKAGE / file).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert complaints(tmp_path) == []


def test_the_verifier_loads_no_jax():
    """What its modules write down is one thing, what a worker process loads is what costs."""
    program = """
import importlib, pkgutil, sys
import deepsearch_jax.verify as verify
for module in pkgutil.walk_packages(verify.__path__, "deepsearch_jax.verify."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(sorted({"jax", "jaxlib", "flax", "torch"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
