"""GPUs to lower and compile for where there is none.

jax's CUDA plugin compiles for a GPU that it only has a description of; lowering needs not even the
plugin, but on newer jax an abstract device to ask.
"""

from __future__ import annotations

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh

from cwm_jax.planning.targets import gpu_description


def gpu_target(name: str, num_devices: int = 1) -> jax.sharding.Mesh:
    """Devices that can be compiled for, and never run.

    Args:
        name: ``h100``, ``h200`` or ``a100``.
        num_devices: of one host, along the mesh's only axis, ``gpu``.
    """
    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        target_config=gpu_description(name),
        topology=f"1x{num_devices}x1",
    )
    return topologies.make_mesh(topology, (num_devices,), ("gpu",))


def abstract_gpu(device_kind: str) -> AbstractMesh:
    """For ``jax.sharding.use_abstract_mesh`` around a lowering.

    Args:
        device_kind: as jax spells it, ``NVIDIA H200``.
    """
    device = AbstractDevice(device_kind=device_kind, num_cores=None, platform="gpu")
    return AbstractMesh((1,), ("gpu",), abstract_device=device)
