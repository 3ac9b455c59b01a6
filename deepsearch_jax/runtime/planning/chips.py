"""Chips that a run can be planned for: what their makers state."""

import dataclasses
import os

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      flops: dense bfloat16 operations per second (float32 ones for a CPU).
      memory: bytes.
      usable: share of the memory that programs get.
      bandwidth: bytes per second from its memory.
      link: bytes per second that it can send to its neighbours, all links of the chip together, one way.
      far_link: the same to chips of other machines.
      host: chips of one machine; 0 = links are alike everywhere.
    """

    name: str
    flops: float
    memory: float
    usable: float
    bandwidth: float
    link: float
    far_link: float
    host: int = 0

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"

    @property
    def backend(self) -> str:
        """What jax calls the backend."""
        return "cpu" if self.is_cpu else "tpu" if self.host == 0 else "gpu"

    @property
    def available(self) -> float:
        """Bytes that programs get."""
        return self.memory * self.usable


# JAX takes 75 % of a GPU's memory at the start unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise (JAX documentation,
# "GPU memory allocation"). The TPU compiler counts on 15.75 GiB of a v5e's 16; the same share is taken for the others.
_GPU, _TPU = 0.75, 15.75 / 16
_NIC = 50e9  # one 400 Gb/s network card a GPU, as in DGX H100 systems; A100 systems have 200 Gb/s
# GPUs: NVIDIA data sheets of A100 80GB SXM, H100 SXM and H200 SXM: dense bfloat16 tensor operations (half of what is
# stated "with sparsity"), memory, memory bandwidth, NVLink (stated for both directions together, here one).
# TPUs: Google Cloud's system architecture pages of v5e, v5p and v6e: bfloat16 peak, HBM capacity and bandwidth, chip to
# chip bandwidth (both directions; here one).
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("a100-80", 312e12, 80e9, _GPU, 2.039e12, 300e9, _NIC / 2, 8),
        Chip("h100", 989e12, 80e9, _GPU, 3.35e12, 450e9, _NIC, 8),
        Chip("h200", 989e12, 141e9, _GPU, 4.8e12, 450e9, _NIC, 8),
        Chip("v5e", 197e12, 16 * GIB, _TPU, 819e9, 100e9, 100e9),
        Chip("v5p", 459e12, 95 * GIB, _TPU, 2.765e12, 300e9, 300e9),
        Chip("v6e", 918e12, 32 * GIB, _TPU, 1.64e12, 224e9, 224e9),
    )
}


def find_chip(name: str, memory_fraction: float = 0.0) -> Chip:
    """The chip of that name; "cpu" is this machine, its memory shared by the devices later.

    Args:
      memory_fraction: in place of the usual share; 0 leaves it.
    Raises:
      ValueError: no such chip, or a share that is none.
    """
    if not 0 <= memory_fraction <= 1:
        raise ValueError(f"memory_fraction={memory_fraction} must be in [0, 1]; 0 takes the chip's usual share")
    if name == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        cores = os.cpu_count() or 1
        # Measured on one kind of server core with AVX-512: 110 GFLOP/s float32; a machine's memory gives some 30 GB/s.
        chip = Chip("cpu", 110e9 * cores, memory, 1.0, 30e9, 10e9, 1e9, 1)
    elif name in CHIPS:
        chip = CHIPS[name]
    else:
        raise ValueError(f"chip={name!r} is not known; choose one of {', '.join(CHIPS)}, cpu")
    return dataclasses.replace(chip, usable=memory_fraction) if memory_fraction else chip
