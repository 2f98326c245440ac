"""Weights of linear maps in int8, int4 or fp8: a tree that every pure function takes for params.

int8 and fp8 have a float32 scale for each output of a map; int4 a bfloat16 scale for each group of
inputs besides. Values are rounded to nearest, scales come from the largest weight. Embedding and
norms stay: one row of the table is read for a token, and it is 2 % of the 32B's weights.

qwix has the same formats, and its int8 values and scales are these (a test compares). Its product
dequantizes a kernel before it multiplies, which writes each layer's weights out in bfloat16 on a
GPU, and for int4 copies those of all layers (docs/LOG.md); hence `QuantizedKernel.product`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from cwm_jax.config import ModelConfig
from cwm_jax.model.quantized import QuantizedKernel, dequantize
from cwm_jax.model.transformer import Params, abstract_params, logical_axes

GROUP_SIZE = 128  # as published 4-bit models have it
_FP8_CAPABILITY = (8, 9)  # NVIDIA's data sheets: Ada and Hopper
_TINY = np.float32(2.0**-100)
_UP = np.float32(1 + 2**-8)  # no bfloat16 of a scale times it is below the scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """How weights are rounded.

    Attributes:
        name: int8, int4 or fp8.
        bits: of a value.
        largest: value that the largest weight is scaled to; half a step past the last integer, so
            that no weight is off by more than half a step.
        limits: of the values.
        grouped: scales are for groups of inputs.
    """

    name: str
    bits: int
    largest: float
    limits: tuple[float, float]
    grouped: bool = False

    @property
    def dtype(self) -> np.dtype:
        """Of rounded values, before two int4 are packed in a byte."""
        return np.dtype(ml_dtypes.float8_e4m3fn if self.name == "fp8" else np.int8)

    @property
    def scale_dtype(self) -> np.dtype:
        return np.dtype(ml_dtypes.bfloat16 if self.grouped else np.float32)


FORMATS = {
    row.name: row
    for row in (
        WeightFormat(name="int8", bits=8, largest=127.5, limits=(-128, 127)),
        WeightFormat(name="int4", bits=4, largest=7.5, limits=(-8, 7), grouped=True),
        WeightFormat(name="fp8", bits=8, largest=448.0, limits=(-448, 448)),
    )
}


def quantize(
    params: Params, model_config: ModelConfig, name: str, *, group_size: int | None = None
) -> Params:
    """Parameters with quantized kernels; the others are the same arrays.

    Args:
        params: as from ``init`` or ``convert.load_hf``, of any floating dtype.
        model_config: the architecture.
        name: int8, int4 or fp8.
        group_size: inputs that share a scale, int4 alone; None is the most up to 128 that fits.

    Raises:
        ValueError: an unknown format, a group size that does not fit, or kernels that are quantized
            already.
    """
    weight_format = weight_format_of(name)
    group_size = check_group_size(model_config, weight_format, group_size)
    if is_quantized(params):
        raise ValueError(
            f"params are {describe(params)} already; expected floating kernels: quantize what they "
            "were made from, or dequantize them"
        )

    def quantize_leaf(path, leaf):
        if path[-1].key != "kernel":
            return leaf
        num_in, first = num_inputs(path[-2].key), int(path[0].key == "layers")
        return _quantize_kernel(leaf, first, num_in, weight_format.name, group_size)

    return jax.tree_util.tree_map_with_path(quantize_leaf, params)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _quantize_kernel(
    kernel: jax.Array, first: int, num_in: int, name: str, group_size: int | None
) -> QuantizedKernel:
    """Inputs are ``num_in`` dimensions from ``first`` on."""
    stack, ins = kernel.shape[:first], kernel.shape[first : first + num_in]
    outs, groups = kernel.shape[first + num_in :], group_counts(ins, group_size)
    flat = (*stack, math.prod(groups), -1, math.prod(outs))
    values, scales = round_to(
        FORMATS[name], kernel.astype(jnp.float32).reshape(flat), first + 1, jnp
    )
    if FORMATS[name].bits == 4:
        values = pack_halves(values, first + 1, jnp)
    packed_ins = (*ins[:-1], ins[-1] * FORMATS[name].bits // 8)
    return QuantizedKernel(
        values.reshape(*stack, *packed_ins, *outs), scales.reshape(*stack, *groups, *outs)
    )


def round_to(weight_format: WeightFormat, wide: Any, axis: int, xp: Any = np) -> tuple[Any, Any]:
    """Values and scales of float32 weights; one scale for what lies along an axis, kept as 1.

    ``xp`` is NumPy or jax.numpy: both give the same bits on a CPU, as XLA would divide by
    multiplying with the reciprocal.
    """
    step = np.float32(1 / weight_format.largest)
    scales = xp.max(xp.abs(wide), axis=axis, keepdims=True) * step
    scales = xp.where(scales > _TINY, scales, np.float32(1))
    if weight_format.grouped:
        scales = scales * _UP
    scales = scales.astype(weight_format.scale_dtype)
    values = wide * (1 / scales.astype(np.float32))
    if weight_format.dtype == np.int8:
        values = xp.round(values)
    return xp.clip(values, *weight_format.limits).astype(weight_format.dtype), scales


def pack_halves(values: Any, axis: int, xp: Any = np) -> Any:
    """uint8 of 4-bit integers: the first half along an axis in the low bits, the second above."""
    low, high = xp.split((values + 8).astype(np.uint8), 2, axis=axis)
    return low | (high << 4)


def dequantize_params(params: Params, dtype: str | None = None) -> Params:
    """Parameters with floating kernels again, of ``dtype`` (None: of the embedding's)."""
    target = dtype or params["embed_tokens"]["embedding"].dtype

    def dequantize_leaf(path, leaf):
        if not _is_kernel(leaf):
            return leaf
        return _dequantize_kernel(
            leaf, num_inputs(path[-2].key), path[0].key == "layers", jnp.dtype(target)
        )

    return jax.tree_util.tree_map_with_path(dequantize_leaf, params, is_leaf=_is_kernel)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _dequantize_kernel(kernel: QuantizedKernel, num_in: int, stacked: bool, dtype) -> jax.Array:
    def one(kernel: QuantizedKernel):
        *ins, last = kernel.values.shape[:num_in]
        last *= 8 // (4 if kernel.values.dtype == jnp.uint8 else 8)
        shape = (*ins, last, *kernel.values.shape[num_in:])
        return dequantize(*kernel.flat(num_in), dtype).reshape(shape)

    return jax.vmap(one)(kernel) if stacked else one(kernel)


def cast(params: Params, dtype: str) -> Params:
    """Parameters in the dtype that they are computed in; quantized kernels stay as they are."""
    return jax.tree.map(
        lambda leaf: leaf if _is_kernel(leaf) else leaf.astype(dtype), params, is_leaf=_is_kernel
    )


def is_quantized(params: Params) -> bool:
    """True if a kernel is."""
    return any(isinstance(leaf, QuantizedKernel) for leaf in _leaves(params))


def describe(params: Params) -> str:
    """Of the kernels in a word: ``int8``, ``int4``, ``fp8``, or the dtype of plain ones."""
    layers = params["layers"] if "layers" in params else params["tail"]
    kernel = layers["0"]["self_attn"]["q_proj"]["kernel"]  # the head may be plain
    if not _is_kernel(kernel):
        return str(kernel.dtype)
    return {"int8": "int8", "uint8": "int4", "float8_e4m3fn": "fp8"}[str(kernel.values.dtype)]


def num_bytes(params: Params) -> int:
    """Of all parameters, scales included."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def quantized_axes(params: Params, model_config: ModelConfig) -> Params:
    """Logical axes of each array of quantized params, for ``cwm_jax.sharding.tree_shardings``."""

    def axes_of(leaf, axes):
        if not isinstance(leaf, QuantizedKernel):
            return axes
        scale_axes = (
            None if size == 1 else axis for size, axis in zip(leaf.scales.shape, axes, strict=True)
        )
        return QuantizedKernel(axes, tuple(scale_axes))  # pyright: ignore[reportArgumentType]

    return jax.tree.map(axes_of, params, logical_axes(model_config), is_leaf=_is_kernel)


def check_device(params: Params, device: Any = None) -> None:
    """Raises ValueError if the weights are fp8 and the device computes none.

    Args:
        params: as from ``quantize``.
        device: None is jax's first.
    """
    if describe(params) != "fp8":
        return
    device = jax.devices()[0] if device is None else device
    capability = getattr(device, "compute_capability", None)
    if capability and tuple(map(int, str(capability).split("."))) >= _FP8_CAPABILITY:
        return
    raise ValueError(
        f"the weights are fp8 and the device is {device.device_kind} ({device.platform}); expected "
        f"an NVIDIA GPU of compute capability {'.'.join(map(str, _FP8_CAPABILITY))} or more: "
        "quantize to int8 instead (`python -m convert quantize --dtype int8`)"
    )


# ---------------------------------------------------------------- formats and groups


def weight_format_of(name: str) -> WeightFormat:
    """By name; ValueError for an unknown one."""
    if name not in FORMATS:
        raise ValueError(f"weights' format is {name!r}; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def num_inputs(linear: str) -> int:
    """Dimensions of a kernel that are contracted, by the name of the map."""
    return 2 if linear == "o_proj" else 1


def check_group_size(
    model_config: ModelConfig, weight_format: WeightFormat, group_size: int | None
) -> int | None:
    """The size of groups; None where a scale serves all inputs.

    Raises:
        ValueError: given for a format without groups, or it does not divide the inputs of the maps.
    """
    if not weight_format.grouped:
        if group_size is not None:
            raise ValueError(
                f"group_size is {group_size} and the format {weight_format.name}, whose scales "
                "serve all inputs of an output; leave it away, or take int4"
            )
        return None
    N, H = model_config.num_attention_heads, model_config.head_dim
    widths = (model_config.hidden_size, model_config.intermediate_size, N * H)
    # even: two values of a group share a byte
    fits = [g for g in range(2, math.gcd(*widths) + 1, 2) if _divides(g, widths, N, H)]
    if group_size is None and fits:
        return max(g for g in fits if g <= GROUP_SIZE)
    if group_size not in fits:
        raise ValueError(
            f"group_size is {group_size}; expected an even divisor of the maps' inputs "
            f"{', '.join(map(str, widths))}: one of {', '.join(map(str, fits)) or 'none (int8)'}"
        )
    return group_size


def _divides(group: int, widths: tuple[int, ...], N: int, H: int) -> bool:
    of_heads = H % group == 0 or (group % H == 0 and N % (group // H) == 0)
    return of_heads and all(width % group == 0 for width in widths)


def group_counts(ins: tuple[int, ...], group_size: int | None) -> tuple[int, ...]:
    """Into how many groups each dimension of the inputs is cut; all 1 without a size."""
    if group_size is None:
        return (1,) * len(ins)
    counts = []
    for size in reversed(ins):  # the last dimension's neighbours first
        counts.append(max(1, size // group_size))
        group_size = max(1, group_size // size)
    return tuple(reversed(counts))


def abstract_quantized(
    model_config: ModelConfig, name: str, *, group_size: int | None = None, dtype: str = "bfloat16"
) -> Params:
    """Shapes and dtypes of ``quantize``'s result, without computing it; ``dtype`` of the rest."""
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), abstract_params(model_config)
    )
    return jax.eval_shape(lambda p: quantize(p, model_config, name, group_size=group_size), params)


def _leaves(params: Params) -> list[Any]:
    return jax.tree.leaves(params, is_leaf=_is_kernel)


def _is_kernel(leaf: Any) -> bool:
    return isinstance(leaf, QuantizedKernel)
