"""GPUs to lower and compile for where there is none.

jax's CUDA plugin compiles for a GPU that it only has a description of; lowering needs not even the
plugin, but on newer jax an abstract device to ask.
"""

from __future__ import annotations

import importlib.util
import pathlib

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh


def has_gpu_compiler() -> bool:
    """Whether jax's CUDA plugin is installed; it needs no CUDA libraries to compile."""
    return any(
        importlib.util.find_spec(f"jax_cuda{version}_plugin") is not None for version in (12, 13)
    )


def gpu_target(name: str, num_devices: int = 1) -> jax.sharding.Mesh:
    """Devices that can be compiled for, and never run.

    Args:
        name: ``h200`` or ``a100``, a description beside this file.
        num_devices: of one host, along the mesh's only axis, ``gpu``.
    """
    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        target_config=pathlib.Path(__file__).with_name(f"{name}.txtpb").read_text(),
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
