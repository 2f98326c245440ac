"""Weights wherever they are, read in Hugging Face's layout, a block of rows at a time.

Every conversion is a loop over ``row_blocks`` from a source to a sink, so that its memory does not
depend on the model. Sources: safetensors files, Meta's files, checkpoints, and arrays in memory
(below).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from convert.names import ConversionError, Weight, array_shapes, check_names, weights
from cwm_jax.config import ModelConfig

BLOCK_BYTES = 32 << 20  # of a read and a write; also the size of a checkpoint's chunks
# A source whose chunks reach across more rows (a vocabulary cut along D) is read several times.
_MAX_UNIT_BLOCKS = 8
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


class Source(Protocol):
    """Where weights come from.

    Attributes:
        model_config: the architecture, which says what tensors there are.
        dtypes: name of each tensor's stored dtype, by Hugging Face's name.
    """

    model_config: ModelConfig
    dtypes: dict[str, str]

    def read(self, weight: Weight, start: int, stop: int) -> np.ndarray:
        """Rows start to stop, in Hugging Face's layout and the stored dtype."""
        ...

    def unit_rows(self, weight: Weight) -> int:
        """Reads of multiples of this many rows are cheap."""
        ...


class FileSource(Source, Protocol):
    """A source of files in a folder, which several threads may read at once."""

    folder: Path

    def identity_files(self) -> list[Path]:
        """Files that are not all the same in two different sources, nor after a change of one."""
        ...


def row_blocks(weight: Weight, itemsize: int, unit_rows: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges of Hugging Face's rows, about BLOCK_BYTES each: whole units, whole entries of ours.

    A unit of more than ``_MAX_UNIT_BLOCKS`` blocks is divided.
    """
    num_rows = weight.hf_shape[0]
    row_bytes = math.prod(weight.hf_shape[1:]) * itemsize

    def whole(rows: int, unit: int) -> int:
        return max(unit, rows // unit * unit)

    largest = whole(_MAX_UNIT_BLOCKS * BLOCK_BYTES // row_bytes, weight.unit_rows)
    unit = min(math.lcm(weight.unit_rows, min(unit_rows, num_rows)), largest)
    step = whole(BLOCK_BYTES // row_bytes, unit)
    for start in range(0, num_rows, step):
        yield start, min(start + step, num_rows)


def largest_block_bytes(source: Source) -> int:
    """Bytes of the largest block that is read from a source, in float32."""
    return max(
        4 * math.prod(weight.hf_shape[1:]) * (stop - start)
        for weight in weights(source.model_config)
        for start, stop in [next(row_blocks(weight, 4, source.unit_rows(weight)))]
    )


def array_dtypes(source: Source, dtype: str | None) -> dict[str, str]:
    """Dtype of each of our arrays: the one asked for, or the stored one.

    Raises:
        ConversionError: ``dtype`` is not supported, or a stacked array would mix dtypes.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConversionError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    if dtype is not None:
        return dict.fromkeys(array_shapes(source.model_config), dtype)
    chosen: dict[str, str] = {}
    for weight in weights(source.model_config):
        stored = source.dtypes[weight.hf_name]
        if chosen.setdefault(weight.path, stored) != stored:
            raise ConversionError(
                f"{weight.hf_name} is {stored}, the same weight of other layers "
                f"{chosen[weight.path]}; layers are stacked in one array: choose a dtype"
            )
    return chosen


def params_from(source: Source, dtype: str | None = None) -> dict[str, Any]:
    """The parameter tree in memory, as JAX arrays."""
    import jax.numpy as jnp

    dtypes = array_dtypes(source, dtype)
    shapes = array_shapes(source.model_config)
    arrays = {path: np.empty(shapes[path], DTYPES[dtypes[path]]) for path in shapes}
    for weight in weights(source.model_config):
        itemsize = DTYPES[source.dtypes[weight.hf_name]].itemsize
        for start, stop in row_blocks(weight, itemsize, source.unit_rows(weight)):
            rows = weight.ours_from_hf(source.read(weight, start, stop))
            arrays[weight.path][weight.region(start, stop)] = rows
    params: dict[str, Any] = {}
    for path in list(arrays):  # one array at a time exists twice
        insert(params, path.split("."), jnp.asarray(arrays.pop(path)))
    return params


class ParamsSource:
    """A parameter tree in memory as a source, for one thread."""

    def __init__(self, model_config: ModelConfig, params: Mapping[str, Any]) -> None:
        """Raises ConversionError where the tree is not that of the architecture."""
        self.model_config = model_config
        self._arrays = dict(_flatten(params))
        stacked = "layers" in params or "tail" not in params
        shapes = array_shapes(model_config, stacked=stacked)
        check_names(set(self._arrays), set(shapes), "params")
        for path, array in self._arrays.items():
            if hasattr(array, "scales"):
                raise ConversionError(
                    f"params: {path} is quantized; expected arrays: give "
                    "cwm_jax.inference.quantization.dequantize_params(params), or let `python -m "
                    "convert quantize` make a folder of quantized weights from the model's"
                )
            if tuple(array.shape) != shapes[path]:
                raise ConversionError(
                    f"params: {path} has shape {tuple(array.shape)}; expected {shapes[path]}"
                )
            if str(array.dtype) not in DTYPES:
                raise ConversionError(
                    f"params: {path} is {array.dtype}; expected one of {', '.join(DTYPES)}"
                )
        self._weights = {w.hf_name: w for w in weights(model_config, stacked=stacked)}
        self.dtypes = {name: str(self._arrays[w.path].dtype) for name, w in self._weights.items()}
        self._held: tuple[str, np.ndarray] | None = None

    def read(self, weight: Weight, start: int, stop: int) -> np.ndarray:
        weight = self._weights[weight.hf_name]
        if self._held is None or self._held[0] != weight.hf_name:  # one transfer from the device
            array = self._arrays[weight.path]
            part = array if weight.repeat is None else array[weight.repeat]
            self._held = weight.hf_name, np.asarray(part)
        region = weight.region(start, stop)
        return weight.hf_from_ours(self._held[1][region if weight.repeat is None else region[1:]])

    def unit_rows(self, weight: Weight) -> int:
        return weight.unit_rows


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def insert(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Puts a value into nested dicts, made where they are missing."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
