"""Everything a run can be told, in one frozen record of records."""

import dataclasses

from deepsearch_jax.cache import FilterSettings
from deepsearch_jax.data.degenerate import DegenerateSettings
from deepsearch_jax.objective import AdvantageSettings, LossSettings
from deepsearch_jax.policy import REMAT, LoraSettings
from deepsearch_jax.runtime.alarms import AlarmSettings
from deepsearch_jax.runtime.checkpoints import CheckpointSettings
from deepsearch_jax.runtime.confidence import ConfidenceSettings
from deepsearch_jax.runtime.debug import DebugSettings
from deepsearch_jax.runtime.evaluate import EvaluationSettings
from deepsearch_jax.runtime.groups import PackSettings
from deepsearch_jax.runtime.guards import GuardSettings
from deepsearch_jax.runtime.loggers import LoggerSettings
from deepsearch_jax.runtime.meshes import MeshSettings
from deepsearch_jax.runtime.record import RecordSettings
from deepsearch_jax.runtime.rollout_settings import RolloutSettings, check_siblings
from deepsearch_jax.runtime.tasks import TaskSettings
from deepsearch_jax.runtime.watchdog import WatchdogSettings
from deepsearch_jax.training import UpdateSettings
from deepsearch_jax.tree import SearchSettings

METHODS = ("deepsearch", "grpo", "dapo")
REFILTERS = ("previous", "all")
DTYPES = ("float32", "bfloat16", "float16")
OLD_LOG_PROBS = ("recompute", "sampler")
SEARCH_WHEN = ("always", "hard", "no_signal")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(choices)}")


def _check_at_least(settings: object, bound: float, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < bound:
            raise ValueError(f"{name}={getattr(settings, name)} must be at least {bound}")


def check_seed(seed: int) -> None:
    """Raises: ValueError for a seed that JAX's keys would cut off: they take 32 bits."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} must be at least 0 and below 2**32")


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The policy to start from.

    Attributes:
      path: a Hugging Face directory; "" starts a small decoder of the sizes below from nothing.
      hidden_size, num_layers, num_heads, num_kv_heads, intermediate_size: sizes of the decoder from nothing.
      param_dtype: of the master weights.
      compute_dtype: of the matrix products; "auto" is float32 on CPU and bfloat16 on accelerators.
      remat: what the backward pass recomputes: "none", each layer ("full": least memory, about a third more time), or
        all but the products with weights ("dots").
    """

    path: str = ""
    hidden_size: int = 80
    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 4
    intermediate_size: int = 224
    param_dtype: str = "float32"
    compute_dtype: str = "auto"
    remat: str = "none"

    def __post_init__(self) -> None:
        _check_choice("param_dtype", self.param_dtype, DTYPES)
        _check_choice("compute_dtype", self.compute_dtype, ("auto", *DTYPES))
        _check_choice("remat", self.remat, REMAT)


@dataclasses.dataclass(frozen=True)
class RoundSettings:
    """Rounds of training, each on the problems that are still hard (Eq. 8-9).

    Attributes:
      num_rounds: rounds of the run.
      steps_per_round: training steps in a round; 0 passes once through the round's problems.
      problems_per_step: problems searched (or sampled) for one step.
      problems_per_update: problems in one optimizer update; 0 takes all of the step. A divisor of problems_per_step.
      group_size: trajectories of a problem under direct sampling; a search yields search.num_trajectories at most.
      search_when: which problems are searched, of those without a cached solution: "always" all (the paper); "hard"
        those whose last direct samples (of the filter or of a step) were correct less often than filter.threshold, the
        others, and those never sampled, get direct samples; "no_signal" those whose group of direct samples, drawn
        first, is all wrong: their trees start from these samples. Direct groups train as in GRPO.
      probe_size: direct samples that a problem gets first under "no_signal"; a group of right and wrong ones is then
        filled up to group_size, one of right ones alone stays as it is, one of wrong ones becomes a tree. 0 draws a
        whole group first.
      filter_problems: whether a round works on its hard problems alone (see `filter`) or on all.
      filter_first_round: False if the problem files are filtered already (the published DeepMath subsets are).
      max_candidates: problems the filter samples for a round; 0 takes all.
      refilter: what a later round is chosen from: the subset of the "previous" round (the paper) or "all" problems.
      max_generated_tokens: no step starts once so many tokens were sampled, whatever for; 0 = no limit.
      dynamic_sampling_batches: how many batches of problems may be drawn until problems_per_step groups have mixed
        rewards (DAPO); 1 draws one and trains on what it gives.
    """

    num_rounds: int = 2
    steps_per_round: int = 10
    problems_per_step: int = 16
    problems_per_update: int = 0
    group_size: int = 8
    search_when: str = "always"
    probe_size: int = 0
    filter_problems: bool = True
    filter_first_round: bool = True
    max_candidates: int = 0
    refilter: str = "previous"
    max_generated_tokens: int = 0
    dynamic_sampling_batches: int = 1

    def __post_init__(self) -> None:
        _check_choice("refilter", self.refilter, REFILTERS)
        _check_choice("search_when", self.search_when, SEARCH_WHEN)
        _check_at_least(self, 1, "num_rounds", "problems_per_step", "dynamic_sampling_batches")
        _check_at_least(self, 2, "group_size")  # one response alone has nothing to be compared with
        _check_at_least(self, 0, "steps_per_round", "problems_per_update", "max_candidates", "max_generated_tokens")
        if self.probe_size and not 2 <= self.probe_size <= self.group_size:
            raise ValueError(
                f"probe_size={self.probe_size} must be between 2, so that samples can differ, and group_size="
                f"{self.group_size}, or 0 for a whole group"
            )
        if self.problems_per_update and self.problems_per_step % self.problems_per_update:
            raise ValueError(
                f"problems_per_update={self.problems_per_update} must divide "
                f"problems_per_step={self.problems_per_step}, or be 0 for one update a step"
            )

    @property
    def update_problems(self) -> int:
        return self.problems_per_update or self.problems_per_step

    @property
    def first_samples(self) -> int:
        """Direct samples that a problem gets before it is searched, where search_when is "no_signal"."""
        return self.probe_size or self.group_size


@dataclasses.dataclass(frozen=True)
class CacheSettings:
    """The solution cache (Eq. 10-12).

    Attributes:
      capacity: problems it holds; 0 switches it off and every hard problem is searched every time.
      paths_per_problem: correct paths kept of a problem.
      page_length: tokens of a page; a path has room for as many pages as the longest response takes.
      import_paths: replay buffers of the authors' code (JSON) whose solutions, verified anew, a new run starts with.
    """

    capacity: int = 256
    paths_per_problem: int = 4
    page_length: int = 256
    import_paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_at_least(self, 0, "capacity")
        _check_at_least(self, 1, "paths_per_problem", "page_length")


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """One run.

    Attributes:
      seed: of everything random.
      method: "deepsearch", or a baseline from the same trainer: "grpo" and "dapo" sample directly and take outcome
        advantages; "dapo" also draws batches until its groups are mixed (rounds.dynamic_sampling_batches).
      lora: trains adapters of a frozen model instead of all its parameters.
      warm_start: optimizer of the supervised warm start of tasks that have one; its learning rate comes with the batch.
      log_prob_chunk: tokens whose logits exist at a time in the training forward (memory: this times the vocabulary).
      old_log_probs: "recompute" by the training forward, or from the "sampler".
      num_devices: devices used; 0 takes all.
      mesh: how the update spreads the parameters over them.
      compile_cache: where compiled programs are kept for the next start: "auto" (below the user's cache directory, or
        where JAX_COMPILATION_CACHE_DIR says), "off", or a directory.
    """

    seed: int = 0
    method: str = "deepsearch"
    task: TaskSettings = TaskSettings()
    model: ModelSettings = ModelSettings()
    lora: LoraSettings = LoraSettings()
    search: SearchSettings = SearchSettings()
    confidence: ConfidenceSettings = ConfidenceSettings()
    rollout: RolloutSettings = RolloutSettings()
    rounds: RoundSettings = RoundSettings()
    filter: FilterSettings = FilterSettings()
    cache: CacheSettings = CacheSettings()
    advantage: AdvantageSettings = AdvantageSettings()
    loss: LossSettings = LossSettings()
    optimizer: UpdateSettings = UpdateSettings()
    warm_start: UpdateSettings = UpdateSettings(warmup_steps=0, b2=0.99, weight_decay=0.01)
    log_prob_chunk: int = 1024
    pack: PackSettings = PackSettings()
    degenerate: DegenerateSettings = DegenerateSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    alarms: AlarmSettings = AlarmSettings()
    loggers: LoggerSettings = LoggerSettings()
    guards: GuardSettings = GuardSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    debug: DebugSettings = DebugSettings()
    record: RecordSettings = RecordSettings()
    old_log_probs: str = "recompute"
    num_devices: int = 0
    mesh: MeshSettings = MeshSettings()
    compile_cache: str = "auto"

    def __post_init__(self) -> None:
        _check_choice("method", self.method, METHODS)
        _check_choice("old_log_probs", self.old_log_probs, OLD_LOG_PROBS)
        check_seed(self.seed)
        _check_at_least(self, 0, "num_devices")
        _check_at_least(self, 1, "log_prob_chunk")
        if self.search.num_grafts:
            raise ValueError(
                f"search.num_grafts={self.search.num_grafts} is chosen by the run; set rounds.search_when='no_signal' "
                "to start trees from rounds.group_size direct samples"
            )
        if self.rounds.search_when == "no_signal" and not self.search.sample_credits < self.search.num_trajectories:
            raise ValueError(
                f"search.sample_credits={self.search.sample_credits} leaves none of search.num_trajectories="
                f"{self.search.num_trajectories} to the search; lower the one or raise the other"
            )
        check_siblings(self.search, self.rollout)
        if self.filter.min_direct > self.rounds.group_size - self.uses_cache:
            beside = " beside a cached path" if self.uses_cache else ""
            raise ValueError(
                f"filter.min_direct={self.filter.min_direct} direct rollouts do not fit into a group of "
                f"rounds.group_size={self.rounds.group_size}{beside}; lower the one or raise the other"
            )
        if self.model.path and self.task.has_warm_start and not self.task.is_text:
            raise ValueError(
                f"model.path={self.model.path!r} is given, but task.name={self.task.name!r} trains a small model of "
                "its own alphabet from nothing; set task.name='math', leave model.path empty, or switch the warm start "
                "off to go on from a policy of this task (task.arithmetic.warm_start_stages=())"
            )
        if self.lora.rank and self.task.has_warm_start and not self.task.is_text:
            off = {"arithmetic": "warm_start_stages=()", "countdown": "warm_start_steps=0"}[self.task.name]
            raise ValueError(
                f"lora.rank={self.lora.rank} trains adapters of a frozen model, but the warm start of "
                f"task.name={self.task.name!r} trains that model from nothing; set lora.rank=0, or "
                f"task.{self.task.name}.{off} to adapt a model that has learnt nothing"
            )
        if self.lora.rank and self.task.is_text and not self.model.path:
            raise ValueError(
                f"lora.rank={self.lora.rank} trains adapters of a frozen model, but model.path is empty and "
                f"task.name={self.task.name!r} starts a small model from nothing; set lora.rank=0 or give model.path"
            )
        if self.task.name == "math" and not self.model.path:
            raise ValueError(
                "task.name='math' starts from a pretrained model, but model.path is empty; give the directory of a "
                "Hugging Face checkpoint with --config.model.path=DIR"
            )
        if self.cache.import_paths and not self.uses_cache:
            raise ValueError(
                f"cache.import_paths={self.cache.import_paths} names solutions, but the run has no cache: set "
                "method='deepsearch' and cache.capacity above 0, or import nothing"
            )
        if self.method == "dapo" and self.rounds.dynamic_sampling_batches < 2:
            raise ValueError(
                f"method='dapo' draws until its groups are mixed, but rounds.dynamic_sampling_batches="
                f"{self.rounds.dynamic_sampling_batches}; set at least 2, or method='grpo'"
            )
        if self.advantage.normalisation == "row_mean_std" and (
            self.advantage.level == "outcome" or self.rounds.search_when != "always"
        ):
            raise ValueError(
                f"advantage.normalisation='row_mean_std' compares the steps of a response, and with advantage.level="
                f"{self.advantage.level!r} and rounds.search_when={self.rounds.search_when!r} some have one score "
                "alone, which would teach nothing; set 'mean', or level='node' and search_when='always'"
            )
        if self.method != "deepsearch" and self.advantage.level != "outcome":
            raise ValueError(
                f"method={self.method!r} compares outcomes, but advantage.level={self.advantage.level!r}; "
                "set advantage.level='outcome'"
            )

    @property
    def uses_cache(self) -> bool:
        """Whether the solution cache is filled and looked at."""
        return self.method == "deepsearch" and self.cache.capacity > 0
