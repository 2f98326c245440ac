"""Distributed checkpoints of PyTorch, read a range of rows at a time without PyTorch.

FOLDER/.metadata              a pickle: each tensor's dtype, shape and chunks, and where these lie
FOLDER/__{rank}_{i}.distcp    the chunks one after the other, each a file of ``torch.save``: a ZIP
                              archive, not compressed, of a small pickle and the data

PyTorch's reader would load whole chunks, which may be a whole tensor of 3 GB, for every range.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convert.meta.dcp_pickles import Record, as_sizes, read_metadata, read_tensor
from convert.names import ConversionError
from convert.safetensors_files import read_into
from convert.sources import DTYPES

METADATA_FILE = ".metadata"
_MAX_PICKLE_BYTES = 1 << 16  # of one tensor: about 150
_LOCAL_HEADER_BYTES = 30  # of a ZIP member, before its name and its extra field


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A box of a tensor; its data lies in C order from byte ``data_start`` of a file on."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: Path
    data_start: int


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of a distributed checkpoint, cut into boxes without gap or overlap."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: list[Chunk]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop."""
        rows = np.empty((stop - start, *self.shape[1:]), DTYPES[self.dtype])
        for chunk in self.chunks:
            low = max(start, chunk.offsets[0])
            high = min(stop, chunk.offsets[0] + chunk.sizes[0])
            if low < high:
                box = tuple(
                    slice(o, o + s) for o, s in zip(chunk.offsets[1:], chunk.sizes[1:], strict=True)
                )
                target = rows[(slice(low - start, high - start), *box)]
                _read_chunk(chunk, low - chunk.offsets[0], target)
        return rows


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a distributed checkpoint, by flat name; every archive's header is checked.

    Raises:
        ConversionError: anything but whole tensors of supported dtypes, in files of the folder.
    """
    file = folder / METADATA_FILE
    if not file.is_file():
        raise ConversionError(f"{folder} has no {METADATA_FILE}; expected PyTorch's DCP format")
    metadata = read_metadata(file)
    described, stored = metadata.field("state_dict_metadata"), metadata.field("storage_data")
    if not isinstance(described, dict) or not isinstance(stored, dict):
        raise ConversionError(f"{file}: no state_dict_metadata or no storage_data")
    places = dict(_places(folder, stored))
    tensors = {name: _tensor(file, name, entry, places) for name, entry in described.items()}
    for tensor in tensors.values():
        _check_tiling(file, tensor)
    return tensors


def _read_chunk(chunk: Chunk, first_row: int, target: np.ndarray) -> None:
    """Fills a target, which may lie between other columns, from the rows at ``first_row``."""
    part = target if target.flags.c_contiguous else np.empty_like(target, order="C")
    row_bytes = math.prod(chunk.sizes[1:]) * target.itemsize
    with open(chunk.file, "rb", buffering=0) as file:
        file.seek(chunk.data_start + first_row * row_bytes)
        read_into(file, memoryview(part.reshape(-1).view(np.uint8).data), chunk.file)
    if part is not target:
        target[...] = part


# ---------------------------------------------------------------- what .metadata says


class _Place(NamedTuple):
    file: Path
    start: int
    length: int


def _places(folder: Path, stored: dict[Any, Any]) -> Iterator[tuple[Any, _Place]]:
    """(tensor's name, chunk's offsets) and the place of each archive."""
    for index, info in stored.items():
        if not isinstance(index, Record) or not isinstance(info, Record):
            raise ConversionError(f"{folder / METADATA_FILE}: storage_data has an odd entry")
        name, start, length = (info.field(k) for k in ("relative_path", "offset", "length"))
        if not isinstance(name, str) or as_sizes((start, length)) is None:
            raise ConversionError(f"{folder / METADATA_FILE}: storage_data has an odd entry")
        if info.field("transform_descriptors"):
            raise ConversionError(f"{folder / name} was transformed on writing; expected plain")
        if Path(name).name != name or not (folder / name).is_file():
            raise ConversionError(
                f"{folder / METADATA_FILE} names {name!r}, which is not in {folder}"
            )
        key = index.field("fqn"), as_sizes(index.field("offset"))
        yield key, _Place(folder / name, start, length)


def _tensor(file: Path, name: Any, entry: Any, places: dict[Any, _Place]) -> StoredTensor:
    if not isinstance(entry, Record) or entry.name != "TensorStorageMetadata":
        raise ConversionError(f"{file}: {name} is not a tensor; expected a model's weights alone")
    properties, shape = entry.field("properties"), as_sizes(entry.field("size"))
    state = properties.state if isinstance(properties, Record) else None
    dtype = state[0] if isinstance(state, tuple) and state else None
    if dtype not in DTYPES:
        raise ConversionError(
            f"{file}: {name} has unsupported dtype {dtype}; expected one of {', '.join(DTYPES)}"
        )
    chunks = entry.field("chunks")
    if not shape or not isinstance(chunks, list):
        raise ConversionError(f"{file}: {name} has no shape or no chunks")
    boxes = [_box(file, name, chunk, len(shape)) for chunk in chunks]
    boxes = [(offsets, sizes) for offsets, sizes in boxes if math.prod(sizes)]
    for offsets, _ in boxes:
        if (name, offsets) not in places:
            raise ConversionError(f"{file}: the chunk of {name} at {offsets} is stored nowhere")
    return StoredTensor(
        name, dtype, shape, [_chunk(name, dtype, *box, places[name, box[0]]) for box in boxes]
    )


def _box(file: Path, name: str, entry: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    is_record = isinstance(entry, Record)
    offsets = as_sizes(entry.field("offsets")) if is_record else None
    sizes = as_sizes(entry.field("sizes")) if is_record else None
    if offsets is None or sizes is None or len(offsets) != rank or len(sizes) != rank:
        raise ConversionError(f"{file}: {name} has an odd chunk")
    return offsets, sizes


def _check_tiling(file: Path, tensor: StoredTensor) -> None:
    """Boxes within the tensor that do not overlap and have its volume fill it."""
    boxes = tensor.chunks
    ends = [tuple(map(sum, zip(c.offsets, c.sizes, strict=True))) for c in boxes]
    outside = any(end > size for e in ends for end, size in zip(e, tensor.shape, strict=True))
    overlap = any(
        all(max(a, b) < min(c, d) for a, b, c, d in zip(x.offsets, y.offsets, p, q, strict=True))
        for (x, p), (y, q) in itertools.combinations(zip(boxes, ends, strict=True), 2)
    )
    if outside or overlap or sum(math.prod(c.sizes) for c in boxes) != math.prod(tensor.shape):
        raise ConversionError(
            f"{file}: the chunks of {tensor.name} do not make up its shape {tensor.shape}"
        )


# ---------------------------------------------------------------- the archive of a chunk


def _chunk(
    name: str, dtype: str, offsets: tuple[int, ...], sizes: tuple[int, ...], place: _Place
) -> Chunk:
    where = f"{place.file}: {name} at {offsets}"
    try:
        with (
            open(place.file, "rb") as file,
            zipfile.ZipFile(_Section(file, place)) as archive,
        ):
            start = place.start + _locate(archive, sizes, dtype, where)
    except ConversionError:
        raise
    except _ZIP_ERRORS as error:
        raise ConversionError(f"{where}: truncated, or no file of torch.save ({error})") from error
    return Chunk(offsets, sizes, place.file, start)


# What zipfile raises on damaged archives.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    KeyError,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
    struct.error,
)


def _locate(archive: zipfile.ZipFile, sizes: tuple[int, ...], dtype: str, where: str) -> int:
    pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ConversionError(f"{where}: no file of torch.save")
    root = pickles[0].removesuffix("data.pkl")
    storage, offset, size, stride = read_tensor(_small(archive, pickles[0]), where)[:4]
    if not isinstance(storage, tuple) or len(storage) != 5 or storage[:2] != ("storage", dtype):
        raise ConversionError(f"{where}: its storage is not of {dtype}, as its metadata says")
    if (
        f"{root}byteorder" in archive.namelist()
        and _small(archive, f"{root}byteorder") != b"little"
    ):
        raise ConversionError(f"{where}: not in little-endian byte order")
    if as_sizes(size) != sizes or not _is_contiguous(sizes, stride):
        raise ConversionError(
            f"{where}: size {size}, stride {stride}; expected {sizes}, contiguous"
        )
    member = archive.getinfo(f"{root}data/{storage[2]}")
    itemsize = DTYPES[dtype].itemsize
    inside = type(offset) is int and 0 <= offset <= member.file_size // itemsize - math.prod(sizes)
    if member.compress_type != zipfile.ZIP_STORED or not inside:
        raise ConversionError(f"{where}: its data is compressed or too short")
    return _member_start(archive, member) + offset * itemsize


def _small(archive: zipfile.ZipFile, name: str) -> bytes:
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > _MAX_PICKLE_BYTES:
        raise zipfile.BadZipFile(f"{name} is compressed or large")
    return archive.read(name)


def _member_start(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Where a member's data begins: its local header has an extra field of its own length."""
    file: Any = archive.fp
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    if len(header) < _LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("no local header")
    lengths = [int.from_bytes(header[i : i + 2], "little") for i in (26, 28)]
    return member.header_offset + _LOCAL_HEADER_BYTES + sum(lengths)


def _is_contiguous(sizes: tuple[int, ...], stride: Any) -> bool:
    expected = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    if not isinstance(stride, tuple) or len(stride) != len(sizes):
        return False
    return all(n <= 1 or s == e for n, s, e in zip(sizes, stride, expected, strict=True))


class _Section(io.RawIOBase):
    """A range of a file as a file."""

    def __init__(self, file: Any, place: _Place) -> None:
        self._file, self._start, self._length = file, place.start, place.length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError("before the start")  # what zipfile expects of a short file
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._length - self._position))
        self._file.seek(self._start + self._position)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
