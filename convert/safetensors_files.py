"""Safetensors files: strict reading by offset, and writing a tensor's block at a time.

A file is the header's length (8 bytes, little endian), the header (JSON: name -> dtype, shape,
data_offsets) and the data, which the offsets must cover without gap or overlap. Source: the
format's specification.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from convert.folders import json_object, read_json, read_model_config, write_json
from convert.names import ConversionError, Weight, check_names, weights
from convert.sources import DTYPES

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
_TAGS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_PACKED_TAGS = {"I32": "int32", "I64": "int64", "F8_E4M3": "float8_e4m3fn"}  # of quantized weights
_DTYPES = DTYPES | {name: np.dtype(name) for name in ("int32", "int64")}
_DTYPES["float8_e4m3fn"] = np.dtype(ml_dtypes.float8_e4m3fn)
QUANTIZATION_KEY = "quantization_config"  # of config.json


class Tensor(NamedTuple):
    """A tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize


@dataclasses.dataclass(frozen=True)
class Record:
    """A tensor in a file: where its bytes lie and what they mean."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class HfSource:
    """The weights of a Hugging Face folder; making one checks every header against config.json."""

    def __init__(self, folder: Path) -> None:
        """Raises ConversionError naming the first thing that is not as it should be."""
        self.folder = folder
        _check_not_quantized(folder)
        self.model_config = read_model_config(folder)
        self._records = records_of_folder(folder)
        expected = {weight.hf_name: weight.hf_shape for weight in weights(self.model_config)}
        check_names(set(self._records), set(expected), str(folder))
        for name, shape in expected.items():
            record = self._records[name]
            if record.shape != shape:
                raise ConversionError(
                    f"{record.file}: {name} has shape {record.shape}; config.json makes it {shape}"
                )
        self.dtypes = {name: record.dtype for name, record in self._records.items()}

    def read(self, weight: Weight, start: int, stop: int) -> np.ndarray:
        return read_rows(self._records[weight.hf_name], start, stop)

    def unit_rows(self, weight: Weight) -> int:
        return 1

    def identity_files(self) -> list[Path]:
        files = {record.file for record in self._records.values()}
        return [self.folder / "config.json", *files]


def read_rows(record: Record, start: int, stop: int) -> np.ndarray:
    """Rows start to stop of a tensor."""
    rows = np.empty((stop - start, *record.shape[1:]), _DTYPES[record.dtype])
    with open(record.file, "rb", buffering=0) as file:
        file.seek(record.start + start * (rows.nbytes // len(rows)))
        read_into(file, memoryview(rows.reshape(-1).view(np.uint8).data), record.file)
    return rows


def is_hf_folder(folder: Path) -> bool:
    """True if it holds a model in safetensors files."""
    return (folder / SINGLE_FILE).exists() or (folder / INDEX_FILE).exists()


def quantization_of(folder: Path) -> dict[str, Any] | None:
    """What config.json says of quantized weights; None if there are none."""
    file = folder / "config.json"
    found = read_json(file).get(QUANTIZATION_KEY) if file.is_file() else None
    if found is None or isinstance(found, dict):
        return found
    raise ConversionError(f"{file}: {QUANTIZATION_KEY} is {found!r}; expected an object")


def _check_not_quantized(folder: Path) -> None:
    found = quantization_of(folder)
    if found is not None:
        raise ConversionError(
            f"{folder} holds weights quantized already (quant_method "
            f"{found.get('quant_method')!r}); expected floating ones: take the model that it was "
            "made from; convert.load_hf opens it to compute with"
        )


def read_header(file: Path, *, packed: bool = False) -> dict[str, Record]:
    """The tensors of one file; with ``packed`` also those of quantized weights.

    Raises:
        ConversionError: anything but a whole, well-formed file of supported dtypes.
    """
    num_bytes = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if num_bytes < 8 or length > min(num_bytes - 8, _MAX_HEADER_BYTES):
            raise ConversionError(
                f"{file}: header of {length} bytes in a file of {num_bytes}; truncated or not a "
                "safetensors file"
            )
        try:
            header = json_object(stream.read(length))
        except ValueError as error:
            raise ConversionError(f"{file}: header: {error}") from error
    header.pop("__metadata__", None)
    data_start = 8 + length
    records = {
        name: _record(file, name, entry, data_start, packed) for name, entry in header.items()
    }
    _check_coverage(file, records, data_start, num_bytes)
    return records


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file to be written, and the tensors that it holds."""

    name: str
    tensors: list[Tensor]


def group_tensors(tensors: Iterable[Tensor], max_bytes: int) -> list[list[Tensor]]:
    """Consecutive tensors of at most so many bytes; a larger one is alone in its group.

    Raises:
        ConversionError: fewer than one byte.
    """
    if max_bytes < 1:
        raise ConversionError(f"max_shard_bytes is {max_bytes}; expected 1 or more")
    groups: list[list[Tensor]] = [[]]
    used = 0
    for tensor in tensors:
        if groups[-1] and used + tensor.num_bytes > max_bytes:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += tensor.num_bytes
    return groups


def name_shards(groups: list[list[Tensor]]) -> list[Shard]:
    """One file for each group of tensors, with the names that loaders expect."""
    if len(groups) == 1:
        return [Shard(SINGLE_FILE, groups[0])]
    return [
        Shard(f"model-{i:05}-of-{len(groups):05}.safetensors", group)
        for i, group in enumerate(groups, 1)
    ]


def write_index(folder: Path, shards: list[Shard]) -> None:
    """Writes ``model.safetensors.index.json`` if there are several files."""
    if len(shards) > 1:
        weight_map = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
        total = sum(tensor.num_bytes for shard in shards for tensor in shard.tensors)
        write_json(
            folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def write_shard(folder: Path, shard: Shard, blocks: Callable[[str], Iterable[np.ndarray]]) -> Path:
    """Writes one file of ``blocks``, a tensor's consecutive parts by name; returns its path."""
    # Wider dtypes first: every tensor then starts at a multiple of its item's size.
    ordered = sorted(shard.tensors, key=lambda tensor: -_DTYPES[tensor.dtype].itemsize)
    with open(folder / shard.name, "wb") as file:
        file.write(_header_bytes(ordered))
        for tensor in ordered:
            for block in blocks(tensor.name):
                file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return folder / shard.name


# ---------------------------------------------------------------- reading


def records_of_folder(folder: Path, *, packed: bool = False) -> dict[str, Record]:
    """All tensors of a folder's file or files, by name."""
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.exists() and index.exists():
        raise ConversionError(
            f"{folder} holds both {SINGLE_FILE} and {INDEX_FILE}; remove the one that is not meant"
        )
    if single.exists():
        return read_header(single, packed=packed)
    if not index.exists():
        raise ConversionError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; expected a folder in Hugging "
            "Face's layout"
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ConversionError(f"{index} has no weight_map of tensor names to file names")
    return _records_of_shards(folder, weight_map, packed)


def _records_of_shards(folder: Path, weight_map: dict[str, str], packed: bool) -> dict[str, Record]:
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or not (folder / file).is_file():
            raise ConversionError(f"{folder / INDEX_FILE} names {file!r}, which is not in {folder}")
    stray = {p.name for p in folder.glob("model-*-of-*.safetensors")} - set(weight_map.values())
    if stray:
        raise ConversionError(
            f"{folder / INDEX_FILE} does not name the file {min(stray)}, which may hold other "
            "weights; remove it or mend the index"
        )
    headers = {
        file: read_header(folder / file, packed=packed) for file in sorted(set(weight_map.values()))
    }
    for name, count in Counter(name for header in headers.values() for name in header).items():
        if count > 1:
            files = [file for file, header in headers.items() if name in header]
            raise ConversionError(f"{folder}: duplicate tensor {name} in {' and '.join(files)}")
    for file, header in headers.items():
        indexed = {name for name, where in weight_map.items() if where == file}
        for name in sorted(indexed - set(header)):
            raise ConversionError(f"{folder / file} lacks {name}, which the index places there")
        for name in sorted(set(header) - indexed):
            raise ConversionError(f"{folder / file} holds {name}, which is not in the index")
    return {name: record for header in headers.values() for name, record in header.items()}


def _record(file: Path, name: str, entry: Any, data_start: int, packed: bool) -> Record:
    where = f"{file}: tensor {name}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ConversionError(f"{where} is described by {entry!r}; expected dtype, shape, offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ConversionError(f"{where} has shape {shape!r} and data_offsets {offsets!r}")
    tags = _TAGS | _PACKED_TAGS if packed else _TAGS
    dtype = tags.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise ConversionError(
            f"{where} has unsupported dtype {entry['dtype']!r}; expected one of {', '.join(tags)}"
        )
    expected = math.prod(shape) * _DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != expected:
        raise ConversionError(
            f"{where} spans data_offsets {offsets}; shape {shape} in {dtype} takes {expected} bytes"
        )
    return Record(file, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_coverage(file: Path, records: dict[str, Record], start: int, num_bytes: int) -> None:
    end = start
    for name, record in sorted(records.items(), key=lambda item: (item[1].start, item[1].stop)):
        if record.start != end:
            fault = (
                "overlaps the tensor before it" if record.start < end else "leaves a gap before it"
            )
            raise ConversionError(f"{file}: tensor {name} {fault}, at data byte {end - start}")
        end = record.stop
        if end > num_bytes:
            raise ConversionError(
                f"{file}: truncated: tensor {name} ends at byte {end} of a file of {num_bytes}"
            )
    if end != num_bytes:
        raise ConversionError(f"{file}: {num_bytes - end} bytes after the last tensor")


def read_into(file: Any, buffer: memoryview, path: Path) -> None:
    """Fills a buffer from an unbuffered file; ConversionError if it ends before."""
    while buffer:
        count = file.readinto(buffer)
        if not count:
            raise ConversionError(f"{path}: truncated while it was read")
        buffer = buffer[count:]


# ---------------------------------------------------------------- writing


def _header_bytes(tensors: list[Tensor]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    header |= dict(_header_entries(tensors))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _header_entries(tensors: list[Tensor]) -> Iterator[tuple[str, dict[str, Any]]]:
    tags = {dtype: tag for tag, dtype in (_TAGS | _PACKED_TAGS).items()}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_bytes
        yield (
            tensor.name,
            {
                "dtype": tags[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, end],
            },
        )
        offset = end
