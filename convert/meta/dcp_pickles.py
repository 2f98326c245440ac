"""PyTorch's pickles, read without PyTorch and without running them.

A pickle is a program that calls what it names; PyTorch's own reader of ``.metadata`` would call
anything. Here a name that checkpoints need stands for an inert record of its arguments, and every
other name is refused.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from convert.names import ConversionError

_DCP = "torch.distributed.checkpoint"
_METADATA_NAMES = {
    (f"{_DCP}.metadata", "Metadata"),
    (f"{_DCP}.metadata", "MetadataIndex"),
    (f"{_DCP}.metadata", "TensorStorageMetadata"),
    (f"{_DCP}.metadata", "BytesStorageMetadata"),
    (f"{_DCP}.metadata", "ChunkStorageMetadata"),
    (f"{_DCP}.metadata", "TensorProperties"),
    (f"{_DCP}.metadata", "StorageMeta"),
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_DCP}.filesystem", "_StorageInfo"),
    # Their places before PyTorch 2.3.
    ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"),
    ("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
}
_PATH_PACKAGES = ("pathlib", "upath")  # where a checkpoint was written: recorded, not used here
_TENSOR_NAMES = {("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict")}
_STORAGES = {
    "FloatStorage": "float32",
    "BFloat16Storage": "bfloat16",
    "HalfStorage": "float16",
    "DoubleStorage": "float64",
}
_DTYPES = {*_STORAGES.values(), "int64", "int32", "int16", "int8", "uint8", "bool"}


class Record:
    """What a pickle would have made by calling ``name``: its arguments and its state."""

    name = ""
    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any) -> Record:
        self = object.__new__(cls)
        self.args = args
        return self

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def field(self, name: str) -> Any:
        """One of a state's named values; None if there is none."""
        return self.state.get(name) if isinstance(self.state, dict) else None

    def sizes(self) -> tuple[int, ...] | None:
        """The numbers in a ``torch.Size``; None if this is not one."""
        return as_sizes(self.args[0]) if self.name == "Size" and len(self.args) == 1 else None


def as_sizes(value: Any) -> tuple[int, ...] | None:
    """A tuple, or record of one, of numbers from 0 on; None if it is anything else."""
    if isinstance(value, Record):
        return value.sizes()
    if isinstance(value, tuple) and all(type(v) is int and v >= 0 for v in value):
        return value
    return None


def read_metadata(file: Path) -> Record:
    """The ``Metadata`` in a checkpoint's ``.metadata``.

    Raises:
        ConversionError: not such a pickle, or one that names something else.
    """
    value = _load(_MetadataUnpickler(io.BytesIO(file.read_bytes())), str(file))
    if not isinstance(value, Record) or value.name != "Metadata":
        raise ConversionError(f"{file} holds no metadata of a distributed checkpoint")
    return value


def read_tensor(data: bytes, where: str) -> tuple[Any, ...]:
    """(storage, offset, size, stride, ...) of a tensor's ``data.pkl``; see ``Storage``.

    Raises:
        ConversionError: not the pickle of one plain tensor.
    """
    value = _load(_TensorUnpickler(io.BytesIO(data)), where)
    if not isinstance(value, Record) or value.name != "_rebuild_tensor_v2" or len(value.args) < 4:
        raise ConversionError(f"{where}: not a plain tensor")
    return value.args


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) in _METADATA_NAMES or module.split(".")[0] in _PATH_PACKAGES:
            return _record_type(name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs")


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) in _TENSOR_NAMES:
            return _record_type(name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no plain tensor needs")

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _record_type(name: str) -> type[Record]:
    return type("Record", (Record,), {"name": name})  # its own: a pickle can change a class


def _load(unpickler: pickle.Unpickler, where: str) -> Any:
    try:
        return unpickler.load()
    except Exception as error:  # a hostile or damaged pickle raises anything
        raise ConversionError(f"{where}: refused or damaged pickle: {error}") from error
