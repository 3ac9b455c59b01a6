"""Every side effect: one search, one round, one run, with its checkpoints, metrics and progress."""

from deepsearch_jax.runtime.alarms import AlarmSettings, AlarmStop
from deepsearch_jax.runtime.benchmarks import BenchmarkSettings, evaluate_benchmarks
from deepsearch_jax.runtime.chat import ChatSettings, Conversation, Talker, search_settings, visible
from deepsearch_jax.runtime.checkpoints import CheckpointError, CheckpointSettings
from deepsearch_jax.runtime.debug import DebugSettings
from deepsearch_jax.runtime.evaluate import EvaluationSettings
from deepsearch_jax.runtime.export import check_new, export_policy
from deepsearch_jax.runtime.guards import GuardSettings, TooManySkipped
from deepsearch_jax.runtime.interrupt import Interrupted, StopRequest
from deepsearch_jax.runtime.lost_processes import tells_of_lost_process
from deepsearch_jax.runtime.meshes import MeshSettings, build_mesh
from deepsearch_jax.runtime.printable import printable
from deepsearch_jax.runtime.processes import connect
from deepsearch_jax.runtime.replay import replay_batch
from deepsearch_jax.runtime.run import build_policy, run
from deepsearch_jax.runtime.saved import SavedPolicy, fingerprint_of, load_directory, load_saved
from deepsearch_jax.runtime.settings import DTYPES, RunSettings
from deepsearch_jax.runtime.tasks import Task, Verdict, build_task
from deepsearch_jax.runtime.text_tasks import Example, TextTask
from deepsearch_jax.runtime.workdir import WorkdirError

__all__ = [
    "DTYPES",
    "AlarmSettings",
    "AlarmStop",
    "BenchmarkSettings",
    "ChatSettings",
    "CheckpointError",
    "CheckpointSettings",
    "Conversation",
    "DebugSettings",
    "EvaluationSettings",
    "Example",
    "GuardSettings",
    "Interrupted",
    "MeshSettings",
    "RunSettings",
    "SavedPolicy",
    "StopRequest",
    "Talker",
    "Task",
    "TextTask",
    "TooManySkipped",
    "Verdict",
    "WorkdirError",
    "build_mesh",
    "build_policy",
    "build_task",
    "check_new",
    "connect",
    "evaluate_benchmarks",
    "export_policy",
    "fingerprint_of",
    "load_directory",
    "load_saved",
    "printable",
    "replay_batch",
    "run",
    "search_settings",
    "tells_of_lost_process",
    "visible",
]
