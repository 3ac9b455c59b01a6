"""Operations and times that follow from sizes: what XLA's own count leaves out, since it counts a loop's body once."""

import dataclasses

from deepsearch_jax.policy import ModelConfig
from deepsearch_jax.runtime.memory import page_bytes

MFU = 0.4  # assumed share of the peak that the products of an update reach
DECODE_SHARE = 0.6  # assumed share of the memory bandwidth that a decode step reaches


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of a program on one device by what could bound it, and the largest of them.

    Attributes:
      compute: operations at `MFU` of the peak.
      memory: bytes that must be read and written, at the full bandwidth (decoding: at `DECODE_SHARE` of it).
      links: bytes sent at the full rate of the links; not overlapped with anything.
    """

    compute: float
    memory: float
    links: float

    @property
    def expected(self) -> float:
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


def weight_counts(model: ModelConfig) -> tuple[int, int]:
    """(weights of the layers' products, of the head's): each takes two operations a token."""
    heads, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    layer = model.hidden_size * (2 * heads + 2 * kv + 3 * model.intermediate_size)
    return model.num_layers * layer, model.vocab_size * model.hidden_size


def update_flops(model: ModelConfig, rows: int, length: int, block: int) -> float:
    """Operations of forward and backward pass over full causal rows, padding and recomputation included.

    A weight takes 2 operations a token forward and 4 backward, and 2 more where its product is computed again in the
    backward pass: the layers' under `remat=full` (but for the last one of a layer, whose result nobody needs again),
    the head's always (chunks of log-probs are not kept). Attention takes two products a pair of tokens forward and five
    backward by blocks, four densely.
    Args:
      block: tokens of a block of attention; pairs of blocks behind each other are left out. 0 = dense, all pairs.
    """
    layers, head = weight_counts(model)
    again = layers - model.num_layers * model.intermediate_size * model.hidden_size if model.remat == "full" else 0
    flops = float(rows * length) * (6 * layers + 2 * again + 8 * head)
    # "dots" keeps the products with weights, not those of attention.
    products = 2 + (5 if block else 4) + (2 if model.remat != "none" else 0)
    for layer in range(model.num_layers):
        flops += 2.0 * products * rows * _pairs(length, block, model.window(layer)) * model.num_heads * model.head_dim
    return flops


def forward_flops(model: ModelConfig, rows: int, length: int, block: int) -> float:
    """Operations of the forward pass alone."""
    flops = 2.0 * rows * length * sum(weight_counts(model))
    for layer in range(model.num_layers):
        flops += 4.0 * rows * _pairs(length, block, model.window(layer)) * model.num_heads * model.head_dim
    return flops


def _pairs(length: int, block: int, window: int) -> float:
    """Pairs of tokens that attention computes in a full causal row."""
    if not block:
        return float(length) ** 2
    n = -(-length // block)
    reach = min(n, -(-window // block) + 1) if window else n  # key blocks of the last query block
    return float((n * (n + 1) - (n - reach) * (n - reach + 1)) // 2) * block**2


def decode_step_bytes(
    model: ModelConfig, weight_bytes: float, rows: int, samples: int, prefix: float, own: float
) -> float:
    """Bytes that one decode step reads: the weights once, the path of each row once, every child's own tokens.

    Args:
      prefix: mean tokens of a path, prompt included.
      own: mean tokens of a child so far.
    """
    return weight_bytes + rows * (prefix + samples * own) * page_bytes(model, 1)
