"""Nothing that is loaded can run: no pickle and its kin, no evaluated text, no archive, anywhere in the package.

Read from the syntax, so a name in a comment does not count and an import inside a function does.
"""

import ast
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.test_imports import REPOSITORY, dotted, python_files

FORBIDDEN_MODULES = frozenset(
    """pickle cPickle _pickle dill cloudpickle joblib jsonpickle marshal shelve dbm yaml ruamel torch tensorflow
    tarfile multiprocessing runpy code codeop imp pty xmlrpc""".split()  # noqa: SIM905
)
FORBIDDEN_NAMES = frozenset({"eval", "exec", "compile", "__import__"})
FORBIDDEN_CALLS = frozenset(
    """os.system os.popen os.execv os.spawnv shutil.unpack_archive np.fromfile numpy.fromfile pd.read_pickle
    concurrent.futures.ProcessPoolExecutor ProcessPoolExecutor builtins.eval builtins.exec zipfile.ZipFile
    zipfile.PyZipFile zipfile.Path ctypes.pythonapi types.FunctionType types.CodeType""".split()  # noqa: SIM905
)
# Of modules that may be imported (numpy's own archives are told apart by zipfile.is_zipfile), what may not be taken.
FORBIDDEN_PARTS = frozenset(call.rpartition(".")[::2] for call in FORBIDDEN_CALLS) | {("numpy", "load")}
FORBIDDEN_KEYWORDS = {"allow_pickle": False, "trust_remote_code": False, "shell": False, "weights_only": True}
FORBIDDEN_METHODS = frozenset({"extractall", "read_pickle", "to_pickle", "unpack_archive"})
# Suites and own tasks are Python that their user names, as a config is (README): the only places where a file is run.
RUNS_FILES = frozenset({"deepsearch_jax/runtime/text_tasks.py", "experiments/compare/suite.py"})


def dangers(tree: ast.AST, name: str) -> Iterator[tuple[int, str]]:
    """(line, what) of everything in a file that could run what it loads."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            yield from ((line, alias.name) for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            if (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
                yield line, f"from {node.module}"
            taken = [(node.module or "", alias.name) for alias in node.names]
            yield from ((line, name) for part in taken for name in part[1:] if part in FORBIDDEN_PARTS)
            yield from ((line, name) for _, name in taken if name in FORBIDDEN_METHODS | {"ProcessPoolExecutor"})
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            yield line, node.id
        elif isinstance(node, ast.Attribute):
            if node.attr in FORBIDDEN_METHODS or dotted(node) in FORBIDDEN_CALLS:
                yield line, dotted(node)
            if node.attr == "exec_module" and name not in RUNS_FILES:
                yield line, dotted(node)
        elif isinstance(node, ast.Call):
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            for keyword, safe in FORBIDDEN_KEYWORDS.items():
                value = keywords.get(keyword)
                if value is not None and not (isinstance(value, ast.Constant) and value.value is safe):
                    yield line, f"{keyword}={ast.unparse(value)}"
            if dotted(node.func) in ("np.load", "numpy.load") and "allow_pickle" not in keywords:
                yield line, "np.load without allow_pickle=False"


def test_nothing_that_is_loaded_can_run():
    found = []
    for path in python_files(REPOSITORY):
        name = path.relative_to(REPOSITORY).as_posix()
        tree = ast.parse(path.read_text("utf-8"), filename=name)
        found += [f"{name}:{line}: {what}" for line, what in dangers(tree, name)]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "def f():\n    from dill import loads",
        "import concurrent.futures as c\nfrom concurrent.futures import ProcessPoolExecutor",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "np.load(file, allow_pickle=flag)",
        "eval('1')",
        "import yaml",
        "tar.extractall(place)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "spec.loader.exec_module(module)",
        "from multiprocessing import Pool",
        "import zipfile\nzipfile.ZipFile(path).read(name)",
        "from zipfile import ZipFile",
        "from os import system",
        "from numpy import load",
    ],
)
def test_the_search_finds_what_it_is_for(text):
    assert list(dangers(ast.parse(text), "x.py"))


@pytest.mark.parametrize(
    "text",
    [
        "np.load(file, allow_pickle=False)",
        "re.compile('x')",
        "lowered.compile()",
        "import json",
        "zipfile.is_zipfile(path)",
    ],
)
def test_the_search_leaves_the_rest_alone(text):
    assert list(dangers(ast.parse(text), "x.py")) == []


WATCHED = """
import json, sys
found = []
sys.addaudithook(lambda event, args: found.append(args[:2]) if event == "pickle.find_class" else None)
import pathlib
from deepsearch_jax.policy import load_pretrained
from deepsearch_jax.data.problems import load_problems
load_pretrained(sys.argv[1])
load_problems(sys.argv[2])
print(json.dumps([str(pair) for pair in found]))
"""


def test_models_and_problems_are_read_without_unpickling(tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps({"question": "1+1", "answer": "2"}) + "\n", encoding="utf-8")
    command = [sys.executable, "-c", WATCHED, str(REPOSITORY / "tests" / "data" / "tiny_qwen2"), str(problems)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, cwd=REPOSITORY)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_config_is_called_code_where_people_look():
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    assert "a config is code" in " ".join(readme.split())
    assert pathlib.Path(REPOSITORY / "docs" / "verifier.md").exists()
