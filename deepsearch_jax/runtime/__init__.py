"""Every side effect: one search, one round, one run, with its checkpoints, metrics and progress."""

from deepsearch_jax.runtime.alarms import AlarmSettings, AlarmStop
from deepsearch_jax.runtime.benchmarks import BenchmarkSettings, evaluate_benchmarks
from deepsearch_jax.runtime.checkpoints import CheckpointError, CheckpointSettings
from deepsearch_jax.runtime.debug import DebugSettings
from deepsearch_jax.runtime.evaluate import EvaluationSettings
from deepsearch_jax.runtime.guards import GuardSettings, TooManySkipped
from deepsearch_jax.runtime.meshes import MeshSettings, build_mesh
from deepsearch_jax.runtime.processes import connect
from deepsearch_jax.runtime.replay import replay_batch
from deepsearch_jax.runtime.run import build_policy, run
from deepsearch_jax.runtime.settings import RunSettings
from deepsearch_jax.runtime.tasks import Task, Verdict, build_task

__all__ = [
    "AlarmSettings",
    "AlarmStop",
    "BenchmarkSettings",
    "CheckpointError",
    "CheckpointSettings",
    "DebugSettings",
    "EvaluationSettings",
    "GuardSettings",
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
    "replay_batch",
    "run",
]
