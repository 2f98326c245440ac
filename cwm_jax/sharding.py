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
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from cwm_jax.config import MeshConfig

MESH_AXES = ("data", "fsdp", "context", "tensor")  # neighbours along the last are nearest
_DCN_AXES = ("dcn_data", "dcn_fsdp")

_RULES: dict[str, str | tuple[str, ...] | None] = {
    # weights
    "vocab": "tensor",
    "embed": ("fsdp", "context"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "layers": None,
    "norm": None,
    # activations
    "batch": ("data", "fsdp"),
    "seq": "context",
    "kv_seq": "context",
    "residual_seq": ("context", "tensor"),  # sequence parallel: between the tensor-parallel parts
    "act_embed": None,
    "act_heads": "tensor",
    "act_kv_heads": "tensor",
    "act_mlp": "tensor",
    "act_vocab": "tensor",
}
BATCH_AXES = ("batch", "seq")

Axes = Sequence[str | None]


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges the devices along ``MESH_AXES``; slices (or nodes) along ``dcn_data, dcn_fsdp``.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or the slices to theirs.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_shape(config, len(devices))
    across = (config.dcn_data, config.dcn_fsdp, 1, 1)
    if math.prod(across) == 1:
        array = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        array = _arrange_slices(sizes, across, devices)
    return Mesh(array, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def abstract_mesh(sizes: Sequence[int]) -> AbstractMesh:
    """A mesh of these sizes of ``MESH_AXES`` without devices, to lay arrays out on."""
    return AbstractMesh(tuple(sizes), MESH_AXES, (AxisType.Auto,) * len(MESH_AXES))


def _arrange_slices(sizes, across, devices) -> np.ndarray:
    """A slice is what a fast network joins: TPU slices, GPU nodes; processes on other devices."""
    by_process = len({getattr(device, "slice_index", None) for device in devices}) == 1
    key = "process_index" if by_process else "slice_index"
    found = len({getattr(device, key) for device in devices})
    if found != math.prod(across):
        dcn = ", ".join(f"mesh.{name} {n}" for name, n in zip(_DCN_AXES, across, strict=False))
        raise ValueError(
            f"{dcn} describe {math.prod(across)} slices; the devices are in {found} "
            f"(by {key}): let them multiply to {found}, or to 1 to leave the order to JAX"
        )
    within = [size // n for size, n in zip(sizes, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, process_is_granule=by_process, allow_split_physical_axes=True
    )


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, ...]:
    """Sizes of ``MESH_AXES``, the -1 resolved.

    Raises:
        ValueError: the sizes do not multiply to ``num_devices``, or an axis does not divide over
            its slices.
    """
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    for axis, size in sizes.items():
        if size == -1:
            sizes[axis] = max(1, num_devices // fixed)
    if math.prod(sizes.values()) != num_devices:
        names = ", ".join(f"mesh.{axis}" for axis in MESH_AXES[:-1])
        raise ValueError(
            f"mesh {sizes} takes {math.prod(sizes.values())} devices; got {num_devices}: change "
            f"{names} or mesh.{MESH_AXES[-1]}"
        )
    for name in _DCN_AXES:
        axis, slices = name.removeprefix("dcn_"), getattr(config, name)
        if sizes[axis] % slices:
            raise ValueError(
                f"mesh.{axis} is {sizes[axis]} and mesh.{name} {slices}: the second is the part of "
                "the first that runs across slices, and must divide it"
            )
    return tuple(sizes.values())


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


def named_sharding(
    mesh: Any, axes: Axes, shape: Sequence[int], *, name: str = "array"
) -> NamedSharding:
    """The sharding of an array of this shape; errors call it ``name``.

    Raises:
        ValueError: a dimension is not a multiple of its mesh axes (JAX would replicate it
            silently).
    """
    spec = partition_spec(axes)
    _check_divisible(axes, shape, mesh.shape, name)
    return NamedSharding(mesh, spec)


def tree_shardings(mesh: Any, axes_tree: Any, shape_tree: Any) -> Any:
    """Shardings of a tree of arrays, from trees of logical axes and of things with a shape.

    Raises:
        ValueError: as ``named_sharding``, with the array's path.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, axes: named_sharding(
            mesh, axes, leaf.shape, name=f"parameter {_dotted(path)}"
        ),
        shape_tree,
        axes_tree,
    )


def shard_bytes(leaf: Any, sharding: Any = None, *, itemsize: int | None = None) -> int:
    """Bytes of an array's part on a device.

    Args:
        leaf: with shape and dtype.
        sharding: None: the array's own.
        itemsize: bytes of an element; None: those of the dtype.
    """
    part = (leaf.sharding if sharding is None else sharding).shard_shape(leaf.shape)
    return math.prod(part) * (leaf.dtype.itemsize if itemsize is None else itemsize)


def sharding_table(mesh: Any, axes_tree: Any, shape_tree: Any) -> str:
    """A line for each array: path, shape, mesh axes of each dimension, shape and MiB on a device.

    Raises:
        ValueError: as ``tree_shardings``.
    """
    shardings = jax.tree.leaves(tree_shardings(mesh, axes_tree, shape_tree))
    rows = [("parameter", "shape", "mesh axes", "on a device", "MiB")]
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(shape_tree), shardings, strict=True
    ):
        local = sharding.shard_shape(leaf.shape)
        mesh_axes = ", ".join("*".join(_names(entry)) or "-" for entry in sharding.spec)
        mib = shard_bytes(leaf, sharding) / 2**20
        shapes = ("x".join(map(str, shape)) for shape in (leaf.shape, local))
        rows.append((_dotted(path), next(shapes), mesh_axes, next(shapes), f"{mib:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """States the layout of an activation; without a mesh (one device), the array itself.

    Raises:
        ValueError: see ``partition_spec`` and ``named_sharding``.
    """
    spec = partition_spec(axes)
    mesh = _automatic_mesh()
    if mesh is None:
        return x
    _check_divisible(axes, x.shape, mesh.shape, "activation")
    return jax.lax.with_sharding_constraint(x, spec)


def map_over_shards(
    fun: Callable[..., Any], *, in_axes: Sequence[Axes], out_axes: Any
) -> Callable[..., Any]:
    """Makes ``fun`` see each device's own block: for what XLA cannot partition (kernels, loops).

    ``out_axes``: of all results, or a tuple with those of each.
    """
    if _automatic_mesh() is None:
        return fun
    return jax.shard_map(
        fun,
        in_specs=tuple(partition_spec(axes) for axes in in_axes),
        out_specs=jax.tree.map(partition_spec, out_axes, is_leaf=_is_axes),
        check_vma=False,
    )


def mesh_axes(axis: str | None) -> tuple[str, ...]:
    """Mesh axes that cut a dimension with that logical axis, the outermost first."""
    return _names(partition_spec((axis,))[0])


def num_shards(sizes: Mapping[str, int], axis: str | None) -> int:
    """Into how many parts meshes of these sizes cut a dimension with that logical axis."""
    return math.prod(sizes[name] for name in mesh_axes(axis))


def shards_of(axis: str | None) -> int:
    """``num_shards`` of the mesh in use; 1 without one."""
    mesh = _automatic_mesh()
    return 1 if mesh is None else num_shards(mesh.shape, axis)


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Sharding of ``[B, T]`` arrays of a batch, after ``leading`` unsharded dimensions."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, *partition_spec(BATCH_AXES)))


def process_rows(mesh: Mesh, num_rows: int) -> list[int]:
    """Which rows of a batch of ``num_rows`` this process's devices hold a part of, rising."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh_axes("batch")))
    spans = sharding.addressable_devices_indices_map((num_rows,)).values()
    return sorted({row for span in spans if span for row in range(*span[0].indices(num_rows))})


def put_batch(
    batch: dict[str, np.ndarray],
    mesh: Mesh,
    *,
    rows: Sequence[int] | None = None,
    num_rows: int | None = None,
) -> dict[str, jax.Array]:
    """Places host arrays ``[..., B, T]`` on the mesh's devices.

    Args:
        batch: this process's rows of a batch.
        mesh: the mesh.
        rows: the places of those rows, see ``process_rows``; None: all are here.
        num_rows: rows of the batch over all processes; None with ``rows`` None.
    """
    return {name: _put(value, mesh, rows, num_rows) for name, value in batch.items()}


def _put(value: np.ndarray, mesh: Mesh, rows, num_rows: int | None) -> jax.Array:
    shape = (*value.shape[:-2], num_rows or value.shape[-2], value.shape[-1])
    place = {row: at for at, row in enumerate(range(shape[-2]) if rows is None else rows)}

    def part(index):
        start, stop, _ = index[-2].indices(shape[-2])
        at = place[start]  # a device's rows are neighbours here too
        return value[(*index[:-2], slice(at, at + stop - start), index[-1])]

    sharding = batch_sharding(mesh, leading=value.ndim - 2)
    return jax.make_array_from_callback(shape, sharding, part)


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _is_axes(x: Any) -> bool:
    return isinstance(x, tuple) and all(axis is None or isinstance(axis, str) for axis in x)


def _dotted(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _automatic_mesh() -> Any:
    """The mesh in use; None without one, and inside of ``map_over_shards``."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = any(kind == AxisType.Manual for kind in mesh.axis_types)
    return None if mesh.empty or manual else mesh


def _check_divisible(axes: Axes, shape: Sequence[int], sizes: Any, name: str) -> None:
    for axis, size in zip(axes, shape, strict=True):
        shards = num_shards(sizes, axis)
        if size % shards:
            used = mesh_axes(axis)
            divisors = [n for n in range(1, size + 1) if size % n == 0]
            nearest = sorted(sorted(divisors, key=lambda n: abs(n - shards))[:6])
            raise ValueError(
                f"{name} {tuple(shape)}: logical axis {axis!r} of size {size} does not divide into "
                f"{shards} shards ({', '.join(f'mesh.{n} {sizes[n]}' for n in used)}); sizes of "
                f"{' x '.join(f'mesh.{n}' for n in used)} that would work: "
                f"{', '.join(map(str, nearest))}"
            )
