"""How responses are sampled and searched: the settings group `rollout`."""

import dataclasses

from deepsearch_jax.decode import DecodeSettings
from deepsearch_jax.tree import SearchSettings

_CPU_ROWS = 8


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """How responses are sampled.

    Attributes:
      num_slots: prompts (or trees) in work at a time; a multiple of the number of devices.
      half_batches: search the slots as two batches, so that one decodes while the verdicts of the other are found:
        "yes", "no" or "auto", which is yes on accelerators. On CPU the larger batch is worth more.
      temperature: of the sampling distribution; 1 is the policy itself.
      top_k: most likely tokens kept; 0 keeps all.
      top_p: probability mass kept; 1 keeps all.
      min_p: tokens less likely than this share of the likeliest one are cut off; 0 keeps all.
      stop_strings: texts that end a response as an end of sequence does.
      entropy: compute the exact entropy of every sampled token's distribution and log its mean.
      unroll_layers: decode with the layers' weights apart: "yes", "no", or "auto", which is yes on CPU, where it is
        faster, and costs a second copy of the weights.
      prompt_multiple: prompts are padded to a multiple of this many tokens; each length compiles once.
      path_multiple: paths to expanded nodes are padded to a multiple of this many segments; each length compiles once.
        At or above search.max_depth there is one program for all depths.
      page_pool_gib: memory for the KV pages of tree nodes on each device; 0 takes what the searches need, at most half
        of what the device has beside the training state. Nodes without a page are encoded again when they are expanded.
        Direct samples of a problem whose keys and values would take more are drawn in several parts.
      rows_at_once: nodes that a device expands together in a search; where more wait they take turns, and idle places
        are left out. At or above num_slots * search.picks_per_step all are computed, idle or not. 0 chooses: 8 on CPU
        where search.expansion is "lazy", all elsewhere.
      int8: decode with weights rounded to 8 bits, one scale a column; see benchmarks/int8.py for what it costs.
    """

    num_slots: int = 16
    half_batches: str = "auto"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_strings: tuple[str, ...] = ()
    entropy: bool = False
    unroll_layers: str = "auto"
    prompt_multiple: int = 32
    path_multiple: int = 4
    page_pool_gib: float = 0.0
    rows_at_once: int = 0
    int8: bool = False

    def __post_init__(self) -> None:
        for name in ("half_batches", "unroll_layers"):
            if getattr(self, name) not in ("auto", "yes", "no"):
                raise ValueError(f"{name}={getattr(self, name)!r} must be 'auto', 'yes' or 'no'")
        if any(not text for text in self.stop_strings):
            raise ValueError(f"stop_strings={self.stop_strings!r} holds an empty text, which would end every response")
        if not self.page_pool_gib >= 0:
            raise ValueError(f"page_pool_gib={self.page_pool_gib} must be 0 (as needed) or more")
        if self.rows_at_once < 0:
            raise ValueError(f"rows_at_once={self.rows_at_once} must be 0 (chosen by the backend) or more")
        # What the decode engine would say once the first prompt is there.
        DecodeSettings(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)
        for name in ("num_slots", "prompt_multiple", "path_multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def slots_of(self, num_devices: int) -> int:
        """Slots of one device. Raises: ValueError where the devices cannot share them."""
        if self.num_slots % num_devices:
            raise ValueError(
                f"rollout.num_slots={self.num_slots} cannot be shared by {num_devices} devices; the next size that "
                f"fits is {-(-self.num_slots // num_devices) * num_devices}"
            )
        return self.num_slots // num_devices

    def decoding(
        self, num_samples: int, length: int, eos_ids: tuple[int, ...], temperature: float | None = None
    ) -> DecodeSettings:
        """Of a call that samples `num_samples` segments of up to `length` tokens; temperature: by default ours."""
        return DecodeSettings(
            num_samples=num_samples, segment_length=length, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p,
            temperature=self.temperature if temperature is None else temperature, entropy=self.entropy, eos_ids=eos_ids,
        )  # fmt: skip

    def num_batches(self, backend: str, num_devices: int) -> int:
        """Batches that the slots of a search form on a jax backend of that name: 1 or 2."""
        halves = self.half_batches == "yes" or (self.half_batches == "auto" and backend != "cpu")
        if halves and self.num_slots % (2 * num_devices):
            if self.half_batches == "auto":
                return 1
            raise ValueError(
                f"half_batches='yes' needs num_slots={self.num_slots} to be a multiple of twice the {num_devices} "
                f"device(s); the next such size is {-(-self.num_slots // (2 * num_devices)) * 2 * num_devices}"
            )
        return 2 if halves else 1

    def lot_size(self, backend: str, search: SearchSettings, num_cursors: int) -> int:
        """Nodes that a jax backend of that name expands together, of those at `num_cursors` cursors of a device.

        A CPU computes every row, so that idle ones cost as much as others; below eight rows the weights are read too
        often. Cursors of eager trees are rarely idle.
        """
        wanted = self.rows_at_once or (_CPU_ROWS if backend == "cpu" and search.is_lazy else num_cursors)
        return min(wanted, num_cursors)

    def unrolls(self, backend: str) -> bool:
        """Whether a jax backend of that name decodes with unrolled layers."""
        return self.unroll_layers == "yes" or (self.unroll_layers == "auto" and backend == "cpu")


def check_siblings(search: SearchSettings, rollout: RolloutSettings) -> None:
    """Raises: ValueError where the samples have no room for children that differ from their siblings."""
    if not search.are_distinct:
        return
    if rollout.temperature == 0:
        raise ValueError(
            f"search.siblings={search.siblings!r} with rollout.temperature={rollout.temperature}: the likeliest child "
            "has no sibling at temperature 0; set it above 0 (0.3 is nearly greedy), or search.siblings='independent'"
        )
    if rollout.top_k or rollout.top_p < 1 or rollout.min_p:
        raise ValueError(
            f"search.siblings={search.siblings!r} with rollout.top_k={rollout.top_k}, top_p={rollout.top_p}, "
            f"min_p={rollout.min_p}: a cut may leave no token but those of the siblings; lower rollout.temperature and "
            "leave the cuts off, or set search.siblings='independent'"
        )
