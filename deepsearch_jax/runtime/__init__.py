"""Every side effect: one search, one round, one run, with its checkpoints, metrics and progress."""

from deepsearch_jax.runtime.alarms import AlarmSettings, AlarmStop
from deepsearch_jax.runtime.benchmarks import BenchmarkSettings, evaluate_benchmarks
from deepsearch_jax.runtime.checkpoints import CheckpointError, CheckpointSettings
from deepsearch_jax.runtime.evaluate import EvaluationSettings
from deepsearch_jax.runtime.learning import TooManySkipped
from deepsearch_jax.runtime.meshes import MeshSettings, build_mesh
from deepsearch_jax.runtime.printable import printable
from deepsearch_jax.runtime.processes import connect
from deepsearch_jax.runtime.run import build_policy, run
from deepsearch_jax.runtime.settings import RunSettings
from deepsearch_jax.runtime.tasks import Task, Verdict, build_task

__all__ = [
    "AlarmSettings",
    "AlarmStop",
    "BenchmarkSettings",
    "CheckpointError",
    "CheckpointSettings",
    "EvaluationSettings",
    "MeshSettings",
    "RunSettings",
    "Task",
    "TooManySkipped",
    "Verdict",
    "build_mesh",
    "build_policy",
    "build_task",
    "connect",
    "evaluate_benchmarks",
    "printable",
    "run",
]
