"""Mesh axes, logical axes and the rules between them: the only place that names mesh axes.

Model code speaks of logical axes alone; a different layout on devices is a different rule here. The
mesh has automatic axes: XLA's partitioner completes the layout from the constraints that ``shard``
states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cwm_jax.config import MeshConfig

MESH_AXES = ("data", "fsdp", "tensor")

_RULES: dict[str, str | tuple[str, ...] | None] = {
    # weights
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "layers": None,
    "norm": None,
    # activations
    "batch": ("data", "fsdp"),
    "seq": None,
    "kv_seq": None,
    "act_embed": None,
    "act_heads": "tensor",
    "act_kv_heads": "tensor",
    "act_mlp": "tensor",
    "act_vocab": "tensor",
}
BATCH_AXES = ("batch", "seq")

Axes = Sequence[str | None]


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges the devices along ``MESH_AXES``.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_shape(config, len(devices))
    return jax.make_mesh(sizes, MESH_AXES, (AxisType.Auto,) * len(MESH_AXES), devices=devices)


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, ...]:
    """Sizes of ``MESH_AXES``, the -1 resolved.

    Raises:
        ValueError: the sizes do not multiply to ``num_devices``.
    """
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, num_devices // fixed)
    if math.prod(sizes) != num_devices:
        raise ValueError(
            f"mesh {dict(zip(MESH_AXES, sizes, strict=True))} takes {math.prod(sizes)} devices; "
            f"got {num_devices}: change mesh.data, mesh.fsdp or mesh.tensor"
        )
    return tuple(sizes)


def partition_spec(axes: Axes) -> PartitionSpec:
    """Mesh axes of each dimension of an array with these logical axes.

    Raises:
        ValueError: a name that is no logical axis, or a mesh axis used for two dimensions.
    """
    unknown = [axis for axis in axes if axis is not None and axis not in _RULES]
    if unknown:
        raise ValueError(f"unknown logical axis {unknown[0]!r}; known: {', '.join(_RULES)}")
    entries = [None if axis is None else _RULES[axis] for axis in axes]
    used = [name for entry in entries for name in _names(entry)]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {tuple(axes)} use a mesh axis twice: {entries}")
    return PartitionSpec(*entries)


def named_sharding(mesh: Any, axes: Axes, shape: Sequence[int]) -> NamedSharding:
    """The sharding of an array of this shape.

    Raises:
        ValueError: a dimension is not a multiple of its mesh axes (JAX would replicate it
            silently).
    """
    spec = partition_spec(axes)
    _check_divisible(axes, shape, mesh.shape)
    return NamedSharding(mesh, spec)


def tree_shardings(mesh: Any, axes_tree: Any, shape_tree: Any) -> Any:
    """Shardings of a tree of arrays, from trees of logical axes and of things with a shape."""
    return jax.tree.map(
        lambda leaf, axes: named_sharding(mesh, axes, leaf.shape), shape_tree, axes_tree
    )


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """States the layout of an activation; without a mesh (one device), the array itself.

    Raises:
        ValueError: see ``partition_spec`` and ``named_sharding``.
    """
    spec = partition_spec(axes)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind == AxisType.Manual for kind in mesh.axis_types):
        return x
    _check_divisible(axes, x.shape, mesh.shape)
    return jax.lax.with_sharding_constraint(x, spec)


def map_over_shards(
    fun: Callable[..., Any], *, in_axes: Sequence[Axes], out_axes: Axes
) -> Callable[..., Any]:
    """Makes ``fun`` see each device's own block: for what XLA cannot partition (kernels, loops)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind == AxisType.Manual for kind in mesh.axis_types):
        return fun
    return jax.shard_map(
        fun,
        in_specs=tuple(partition_spec(axes) for axes in in_axes),
        out_specs=partition_spec(out_axes),
        check_vma=False,
    )


def num_shards(sizes: Mapping[str, int], axis: str | None) -> int:
    """Into how many parts meshes of these sizes cut a dimension with that logical axis."""
    return math.prod(sizes[name] for name in _names(partition_spec((axis,))[0]))


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Sharding of ``[B, T]`` arrays of a batch, after ``leading`` unsharded dimensions."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, *partition_spec(BATCH_AXES)))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Places host arrays ``[..., B, T]`` (this process's rows) on the mesh's devices."""
    sharding = {key: batch_sharding(mesh, leading=value.ndim - 2) for key, value in batch.items()}
    return {
        key: jax.make_array_from_process_local_data(sharding[key], value)
        for key, value in batch.items()
    }


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _check_divisible(axes: Axes, shape: Sequence[int], sizes: Any) -> None:
    for axis, size in zip(axes, shape, strict=True):
        shards = num_shards(sizes, axis)
        if size % shards:
            raise ValueError(
                f"logical axis {axis!r} of size {size} does not divide into {shards} shards (mesh "
                f"axes {partition_spec((axis,))[0]}); change the mesh or the size"
            )
