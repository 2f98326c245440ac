"""Devices to plan for: what a target's name says, and devices that can be compiled for, never run.

v5p:4x4x8       a TPU topology: v4 and v5p in three dimensions, v5e and v6e in two
v5p-256         a cloud name; for v4 and v5p the number counts TensorCores, two on a chip
v6e-64          for v5e (v5litepod too) and v6e it counts chips
h200:64         GPUs in nodes of eight
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import re
from pathlib import Path
from typing import Any

from cwm_jax.training.hardware import Accelerator, accelerator

GPUS_PER_NODE = 8
# The only attention that each kind of target has; "auto" would ask the machine that plans.
_ATTENTION = {"h100": "hopper", "h200": "hopper", "a100": "triton"}
TPU_DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
CORES_PER_CHIP = {"v4": 2, "v5p": 2}  # in cloud names
# A dimension of a torus is closed to a ring if it is a multiple of this, else it is a line.
_RING_SIZE = {"v4": 4, "v5e": 16, "v5p": 4, "v6e": 16}  # secondary: the public scaling book
_KNOWN = (
    "v4:2x2x4, v5p:4x4x8 (TPU topologies of three dimensions), v5e:8x8, v6e:16x16 (of two), "
    "v5p-256, v6e-64 (cloud names), h100:64, h200:64, a100:64 (GPUs in nodes of 8)"
)
_INSTALL = "pip install -r requirements-aot.txt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A cluster."""

    name: str
    accelerator: Accelerator
    shape: tuple[int, ...]
    """Chips along each dimension of a TPU's torus; (nodes, GPUs in a node)."""
    platform: str
    """``tpu``, ``cuda``, or ``cpu``: this process's own devices, to try a plan on."""
    attention: str
    """Implementation that its programs run."""

    @property
    def num_devices(self) -> int:
        return math.prod(self.shape)

    @property
    def devices_per_node(self) -> int | None:
        """Those joined by NVLink; None for a TPU slice, which is one network."""
        return self.shape[-1] if self.platform == "cuda" else None

    @property
    def usable_bytes(self) -> int:
        """Of a device's memory, for a program."""
        return int(self.accelerator.memory_bytes * self.accelerator.usable_memory_fraction)

    def is_ring(self, dimension: int) -> bool:
        """Whether a dimension of the torus closes."""
        return self.shape[dimension] % _RING_SIZE.get(self.accelerator.name, 1) == 0

    def describe(self) -> str:
        size = "x".join(map(str, self.shape))
        if self.platform == "tpu":
            return f"{self.num_devices} {self.accelerator.name} chips, topology {size}"
        if self.platform == "cuda":
            nodes, in_node = self.shape
            return f"{self.num_devices} {self.accelerator.name} GPUs, {nodes} nodes of {in_node}"
        return f"{self.num_devices} devices of this process"


def parse_target(name: str) -> Target:
    """What a target's name says.

    Raises:
        ValueError: a name of no known form, an unknown chip, or a size that it does not come in.
    """
    if found := re.fullmatch(r"(v\d\w*?):(\d+(?:x\d+)*)", name):
        return _tpu(name, found[1], tuple(map(int, found[2].split("x"))))
    if found := re.fullmatch(r"(v\d\w*?)-(\d+)", name):
        return _cloud_tpu(name, found[1].replace("v5litepod", "v5e"), int(found[2]))
    found = re.fullmatch(r"([a-z]+\d+):(\d+)", name)
    if found and found[1] in _ATTENTION:
        return _gpus(name, found[1], int(found[2]))
    raise ValueError(f"unknown target {name!r}; known: {_KNOWN}")


def _tpu(name: str, chip: str, shape: tuple[int, ...]) -> Target:
    dimensions = TPU_DIMENSIONS.get(chip)
    if dimensions is None:
        raise ValueError(f"unknown target {name!r}; known: {_KNOWN}")
    shape = shape + (1,) * (dimensions - len(shape))
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(
            f"target {name!r}: {chip} has topologies of {dimensions} dimensions; got {len(shape)}"
        )
    return Target(
        name=name, accelerator=accelerator(chip), shape=shape, platform="tpu", attention="tpu"
    )


def _cloud_tpu(name: str, chip: str, number: int) -> Target:
    if chip not in TPU_DIMENSIONS:
        raise ValueError(f"unknown target {name!r}; known: {_KNOWN}")
    cores = CORES_PER_CHIP.get(chip, 1)
    chips, rest = divmod(number, cores)
    if rest or chips < 4 or chips & (chips - 1):
        raise ValueError(
            f"target {name!r}: the number counts {'TensorCores' if cores > 1 else 'chips'}; "
            f"expected a power of two, {4 * cores} or more, or a topology such as "
            f"{chip}:{'x'.join(['4'] * TPU_DIMENSIONS[chip])}"
        )
    shape = [1] * TPU_DIMENSIONS[chip]
    for _ in range(chips.bit_length() - 1):  # as near to a square or cube as it goes
        shape[shape.index(min(shape))] *= 2
    shape.sort(reverse=chips == 4)  # 4x4x8, but 2x2x1
    return _tpu(name, chip, tuple(shape))


def _gpus(name: str, gpu: str, number: int) -> Target:
    in_node = min(number, GPUS_PER_NODE)
    if number < 1 or number % in_node:
        raise ValueError(
            f"target {name!r}: expected 1 to 8 GPUs, or a multiple of {GPUS_PER_NODE} (nodes)"
        )
    return Target(
        name=name,
        accelerator=accelerator(gpu),
        shape=(number // in_node, in_node),
        platform="cuda",
        attention=_ATTENTION[gpu],
    )


# ---------------------------------------------------------------- devices


def prepare_environment() -> None:
    """Keeps jax on the CPU and libtpu from asking for a TPU; call it before jax is first used."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server without a TPU
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # else a second process aborts
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def target_devices(target: Target) -> list[Any]:
    """Devices of the target, in jax's order.

    Raises:
        ValueError: the compiler is not installed, or it refuses the topology.
    """
    if target.platform == "cpu":
        import jax

        return jax.devices()[: target.num_devices]
    size = "x".join(map(str, target.shape))
    if target.platform == "tpu":
        _check_compiler(has_tpu_compiler(), target, "libtpu")
        name = f"{target.accelerator.name}:{size}"
        return _topology_devices(target.name, platform="tpu", topology_name=name)
    _check_compiler(has_gpu_compiler(), target, "jax-cuda13-plugin and jax-cuda13-pjrt")
    return _topology_devices(
        target.name,
        platform="cuda",
        topology_name="",
        target_config=gpu_description(target.accelerator.name),
        topology=f"1x{size}",
    )


def has_tpu_compiler() -> bool:
    """Whether libtpu is installed; it needs no TPU to compile."""
    return importlib.util.find_spec("libtpu") is not None


def has_gpu_compiler() -> bool:
    """Whether jax's CUDA plugin is installed; it needs no CUDA libraries to compile."""
    return any(
        importlib.util.find_spec(f"jax_cuda{version}_plugin") is not None for version in (12, 13)
    )


def gpu_description(name: str) -> str:
    """Text of XLA's description of a GPU: ``h100``, ``h200`` or ``a100``."""
    return (Path(__file__).parent / "gpus" / f"{name}.txtpb").read_text()


def _check_compiler(installed: bool, target: Target, packages: str) -> None:
    if not installed:
        raise ValueError(
            f"target {target.name!r} is compiled for with {packages}, not installed here: "
            f"{_INSTALL}"
        )


@functools.lru_cache(maxsize=8)
def _topology_devices(name: str, **topology: str) -> list[Any]:
    import jax
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(**topology).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"target {name!r}: the compiler refuses it: {reason}") from error
