"""The devices of a run: one axis for rollouts, three for the update."""

import dataclasses

import jax
from jax.sharding import AxisType, Mesh


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """How the update spreads parameters over the devices; rows and trees are shared among the rest (axis `data`).

    Attributes:
      fsdp: devices that parameters, gradients and moments are spread over; each still computes rows of its own.
      tensor: devices that share the matrix products of every row.
    """

    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name in ("fsdp", "tensor"):
            if getattr(self, name) < 1:
                raise ValueError(f"mesh.{name}={getattr(self, name)} must be at least 1 device")


def build_mesh(num_devices: int, *, local: bool = False) -> Mesh | None:
    """A mesh with one axis `data` over the devices of all processes, None for one device.

    Args:
      local: over the devices of this process alone.
    Raises:
      ValueError: more devices are asked for than there are, or some of those of several processes.
    """
    if num_devices and jax.process_count() > 1:
        raise ValueError(f"num_devices={num_devices} of several processes: leave it 0 and start fewer processes")
    available = jax.local_devices() if local else jax.devices()
    if num_devices > len(available):
        raise ValueError(f"num_devices={num_devices}, but this machine has {len(available)}; 0 takes all of them")
    devices = available[: num_devices or len(available)]
    if len(devices) == 1:
        return None
    # Automatic axes: the steps say their specs where they map over shards, the compiler places the rest.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def build_train_mesh(mesh: Mesh | None, settings: MeshSettings) -> Mesh | None:
    """The same devices with the axes data, fsdp and tensor, or `mesh` itself where parameters are not spread.

    Raises:
      ValueError: the axes do not divide the devices.
    """
    parts, devices = settings.fsdp * settings.tensor, 1 if mesh is None else mesh.size
    if devices % parts:
        raise ValueError(
            f"mesh.fsdp={settings.fsdp} times mesh.tensor={settings.tensor} must divide the {devices} device(s) of the "
            "run; lower them or use more devices (num_devices)"
        )
    if parts == 1 or mesh is None:
        return mesh
    shape = (devices // parts, settings.fsdp, settings.tensor)
    # In the order of the rollouts' mesh, or moving parameters between the two would shuffle devices.
    return Mesh(mesh.devices.reshape(shape), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
