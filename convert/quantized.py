"""Quantized weights in folders that transformers and vLLM open too, in compressed-tensors' formats.

    NAME.weight_packed   int8 and int4: int32 [O, I * bits / 32], each of 32 / bits neighbours of a
                         row plus 2 ** (bits - 1), the first in the lowest bits ("pack-quantized")
    NAME.weight_shape    int64 [2]: O, I
    NAME.weight          fp8: float8_e4m3fn [O, I] ("float-quantized")
    NAME.weight_scale    [O, groups of I]

Source: compressed-tensors 0.20 (compressors/pack_quantized, config/base).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convert.folders import read_json
from convert.names import ConversionError, Weight, check_names, weights
from convert.safetensors_files import (
    QUANTIZATION_KEY,
    quantization_of,
    read_rows,
    records_of_folder,
)
from convert.sources import DTYPES, insert, row_blocks
from cwm_jax.config import ModelConfig
from cwm_jax.inference.quantization import (
    FORMATS,
    WeightFormat,
    check_group_size,
    group_counts,
    pack_halves,
)

_METHOD = "compressed-tensors"
_LAYOUTS = {"int8": "pack-quantized", "int4": "pack-quantized", "fp8": "float-quantized"}
_VALUES_BLOCK = 4  # bytes of a value while a block is unpacked, at most


class Part(NamedTuple):
    """A tensor that holds something of a quantized weight."""

    suffix: str
    dtype: str
    shape: tuple[int, ...]


def parts_of(
    weight: Weight, weight_format: WeightFormat, group_size: int | None, scale_dtype: str
) -> list[Part]:
    """The tensors of a linear map's weight; names are that of its module and a suffix."""
    num_out, num_in = weight.hf_shape
    groups = 1 if group_size is None else num_in // group_size
    scale = Part("weight_scale", scale_dtype, (num_out, groups))
    if _LAYOUTS[weight_format.name] == "float-quantized":
        return [Part("weight", "float8_e4m3fn", weight.hf_shape), scale]
    packed = Part("weight_packed", "int32", (num_out, num_in * weight_format.bits // 32))
    return [packed, scale, Part("weight_shape", "int64", (2,))]


def module_of(weight: Weight) -> str:
    """``model.layers.0.mlp.up_proj.`` of that map's weight."""
    return weight.hf_name.removesuffix("weight")


def is_linear(weight: Weight) -> bool:
    """Whether it is the kernel of a linear map."""
    return weight.path.endswith(".kernel")


def check_packable(model_config: ModelConfig, weight_format: WeightFormat) -> None:
    """Raises ConversionError where rows are no whole numbers of int32."""
    per_word = 32 // weight_format.bits
    for weight in weights(model_config):
        if is_linear(weight) and weight.hf_shape[1] % per_word:
            raise ConversionError(
                f"{weight.hf_name} has {weight.hf_shape[1]} inputs; {weight_format.name} is stored "
                f"for multiples of {per_word} alone"
            )


def pack_words(values: np.ndarray, bits: int) -> np.ndarray:
    """int32 of signed values, along the last axis."""
    shifted = (values.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    if bits == 4:
        shifted = shifted[..., ::2] | (shifted[..., 1::2] << 4)
    return np.ascontiguousarray(shifted).view("<i4")


def unpack_words(words: np.ndarray, bits: int) -> np.ndarray:
    """int8; inverse of ``pack_words``."""
    shifted = np.ascontiguousarray(words).view(np.uint8)
    if bits == 4:
        shifted = np.stack([shifted & 15, shifted >> 4], axis=-1).reshape(*words.shape[:-1], -1)
    return (shifted.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)


def config_of(weight_format: WeightFormat, group_size: int | None) -> dict[str, Any]:
    """config.json's ``quantization_config``."""
    layout = _LAYOUTS[weight_format.name]
    scheme = {
        "num_bits": weight_format.bits,
        "type": "float" if weight_format.name == "fp8" else "int",
        "symmetric": True,
        "strategy": "channel" if group_size is None else "group",
        "group_size": group_size,
        "dynamic": False,
    }
    group = {"targets": ["Linear"], "weights": scheme, "format": layout}
    group |= {"input_activations": None, "output_activations": None}
    return {
        "quant_method": _METHOD,
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [],
        "kv_cache_scheme": None,
    }


def load_quantized(folder: Path, dtype: str | None) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads a folder of quantized weights: ``convert.load_hf`` calls it where config.json says so.

    Args:
        folder: as ``python -m convert quantize`` writes it.
        dtype: of embedding and norms; None keeps theirs.

    Raises:
        ConversionError: names what is unknown, missing, misshapen or damaged.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConversionError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    source = _QuantizedFolder(folder)
    return source.model_config, source.params(dtype)


class _QuantizedFolder:
    """Headers checked against config.json."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "config.json"
        found = quantization_of(folder)
        assert found is not None, "the caller has looked"
        self._format, self._group_size = self._scheme(found)
        config = {k: v for k, v in read_json(self._file).items() if k != QUANTIZATION_KEY}
        try:
            self.model_config = ModelConfig.from_hf(config)
            self._group_size = check_group_size(self.model_config, self._format, self._group_size)
        except ValueError as error:
            raise ConversionError(f"{self._file}: {error}") from error
        check_packable(self.model_config, self._format)
        self._records = records_of_folder(folder, packed=True)
        self._plain = set(found.get("ignore") or [])
        self._check_tensors()

    def _scheme(self, found: dict[str, Any]) -> tuple[WeightFormat, int | None]:
        groups = found.get("config_groups")
        first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
        scheme = first.get("weights") if isinstance(first, dict) else None
        if isinstance(scheme, dict) and len(groups or ()) == 1:
            group_size = scheme.get("group_size") if scheme.get("strategy") == "group" else None
            for row in FORMATS.values():
                expected = config_of(row, group_size if row.grouped else None)
                theirs = {"dynamic": False, "symmetric": True} | scheme
                ours = expected["config_groups"]["group_0"]["weights"]
                if (
                    found.get("quant_method") == _METHOD
                    and found.get("format") == expected["format"]
                    and first is not None
                    and first.get("input_activations") is None
                    and all(theirs.get(k) == v for k, v in ours.items() if k != "group_size")
                ):
                    return row, group_size
        raise ConversionError(
            f"{self._file}: {QUANTIZATION_KEY} is {found!r}; expected weights alone in int8 or fp8 "
            f"by channel or int4 by group, quant_method {_METHOD!r}: quantize the model with "
            "`python -m convert quantize`"
        )

    def _is_plain(self, weight: Weight) -> bool:
        return not is_linear(weight) or module_of(weight).removesuffix(".") in self._plain

    def _parts(self, weight: Weight) -> list[Part]:
        scale = self._records.get(module_of(weight) + "weight_scale")
        dtype = scale.dtype if scale and scale.dtype in DTYPES else "float32"
        return parts_of(weight, self._format, self._group_size, dtype)

    def _check_tensors(self) -> None:
        expected: dict[str, tuple[str | None, tuple[int, ...]]] = {}
        for weight in weights(self.model_config):
            if self._is_plain(weight):
                expected[weight.hf_name] = (None, weight.hf_shape)
            else:
                for part in self._parts(weight):
                    expected[module_of(weight) + part.suffix] = (part.dtype, part.shape)
        check_names(set(self._records), set(expected), str(self._folder))
        for name, (dtype, shape) in expected.items():
            record = self._records[name]
            if record.shape != shape or (
                record.dtype != dtype if dtype else record.dtype not in DTYPES
            ):
                raise ConversionError(
                    f"{record.file}: {name} is {record.dtype}{list(record.shape)}; config.json "
                    f"makes it {dtype or 'a float'}{list(shape)}"
                )

    def params(self, dtype: str | None) -> dict[str, Any]:
        """The tree, one of our arrays at a time."""
        import jax.numpy as jnp

        from cwm_jax.model.quantized import QuantizedKernel

        params: dict[str, Any] = {}
        by_path: dict[str, list[Weight]] = {}
        for weight in weights(self.model_config):
            by_path.setdefault(weight.path, []).append(weight)
        for path, layers in by_path.items():
            if len({self._is_plain(weight) for weight in layers}) > 1:
                raise ConversionError(
                    f"{self._file}: ignore names some layers' {path} and not others'; they are "
                    "stacked in one array: quantize all or none"
                )
            if self._is_plain(layers[0]):
                value = jnp.asarray(self._stack(layers, "weight", dtype))
            else:
                suffix = self._parts(layers[0])[0].suffix
                values = jnp.asarray(self._stack([self._values(w) for w in layers], suffix))
                scales = self._stack([self._scales(w) for w in layers], "weight_scale")
                value = QuantizedKernel(values, jnp.asarray(scales))
            insert(params, path.split("."), value)
        return params

    def _values(self, weight: Weight) -> Weight:
        """As ours are, the last of the inputs halved where a byte holds two."""
        last = weight.hf_axes.split()[1][-1]
        halved = {last: weight.sizes[last] * self._format.bits // 8}
        return dataclasses.replace(weight, sizes=weight.sizes | halved)

    def _scales(self, weight: Weight) -> Weight:
        """Groups in the place of inputs."""
        letters = weight.hf_axes.split()[1]
        counts = group_counts(tuple(weight.sizes[x] for x in letters), self._group_size)
        sizes = weight.sizes | dict(zip(letters, counts, strict=True))
        return dataclasses.replace(weight, sizes=sizes)

    def _stack(self, layers: list[Weight], suffix: str, dtype: str | None = None) -> np.ndarray:
        """Our array of one tensor of each of the layers, whose shapes are as stored with us."""
        first, kinds = layers[0], set()
        repeats = () if first.repeat is None else (len(layers),)
        array = None
        for weight in layers:
            record = self._records[module_of(weight) + suffix]
            kinds.add(record.dtype)
            for start, stop in row_blocks(weight, _VALUES_BLOCK):
                rows = self._decode(read_rows(record, start, stop), suffix)
                if array is None:
                    target = DTYPES[dtype] if dtype else rows.dtype
                    array = np.empty((*repeats, *first.shape), target)
                array[weight.region(start, stop)] = weight.ours_from_hf(rows)
        if len(kinds) > 1:
            raise ConversionError(f"{self._folder}: {first.path}: layers are {sorted(kinds)}")
        assert array is not None
        return array

    def _decode(self, rows: np.ndarray, suffix: str) -> np.ndarray:
        if suffix != "weight_packed":
            return rows
        values = unpack_words(rows, self._format.bits)
        if self._format.bits == 8:
            return values
        group_size = self._group_size or values.shape[1]
        grouped = values.reshape(len(values), -1, group_size)
        return pack_halves(grouped, axis=2).reshape(len(values), -1)
