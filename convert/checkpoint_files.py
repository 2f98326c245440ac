"""The parameters of a checkpoint folder, in chunks, through tensorstore; Orbax reads them too.

FOLDER/state/params.layers.0.mlp.up_proj.kernel/.zarray    plain zarr arrays, one folder each
FOLDER/state/_METADATA                                     Orbax's description of the tree
FOLDER/config.json  FOLDER/tokenizer/  FOLDER/checksums.json
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from convert.folders import read_json, read_model_config, write_json
from convert.names import ConversionError, Weight, array_shapes, check_names, weights
from convert.sources import DTYPES, FileSource, array_dtypes, row_blocks
from convert.tokenizers import read_tokenizer
from convert.work import Unit, Work, choose_workers, job_of, resumable_folder
from cwm_jax.training.checksums import CHECKSUMS_FILE, STATE_FOLDER, damage, write_checksums

_PREFIX = "params."
# No cache, and few chunks in flight: a conversion's memory is that of the blocks in its hands.
_CONTEXT = {
    "cache_pool": {"total_bytes_limit": 0},
    "data_copy_concurrency": {"limit": max(2, len(os.sched_getaffinity(0)))},
    "file_io_concurrency": {"limit": max(4, len(os.sched_getaffinity(0)))},
    "file_io_sync": False,  # Work flushes the files of a unit together
}


class CheckpointSource:
    """The weights of a checkpoint folder (see ``open_checkpoint``), names and shapes checked."""

    def __init__(self, folder: Path) -> None:
        """Raises ConversionError naming the first thing that is not as it should be."""
        self.folder = folder
        self.model_config = read_model_config(folder)
        self._arrays = _open_arrays(folder / STATE_FOLDER)
        shapes = array_shapes(self.model_config)
        check_names(set(self._arrays), set(shapes), str(folder))
        for path, array in self._arrays.items():
            if tuple(array.shape) != shapes[path]:
                raise ConversionError(
                    f"{folder}: {path} has shape {tuple(array.shape)}; config.json makes it "
                    f"{shapes[path]}"
                )
            if array.dtype.name not in DTYPES:
                raise ConversionError(
                    f"{folder}: {path} has unsupported dtype {array.dtype.name}; expected one of "
                    f"{', '.join(DTYPES)}"
                )
        self.dtypes = {
            weight.hf_name: self._arrays[weight.path].dtype.name
            for weight in weights(self.model_config)
        }

    def read(self, weight: Weight, start: int, stop: int) -> np.ndarray:
        shape = list(weight.shape)
        shape[weight.split_axis] = (stop - start) // weight.unit_rows
        part = np.empty(shape, DTYPES[self.dtypes[weight.hf_name]])
        region = list(weight.region(start, stop))
        axis, step = self._other_axis(weight)
        # One chunk's width at a time: tensorstore reads files faster than it decodes, all at once.
        for first in range(0, shape[axis], step):
            cut = slice(first, min(first + step, shape[axis]))
            if axis != weight.split_axis:
                region[axis - len(shape)] = cut
            place = (*[slice(None)] * axis, cut)
            part[place] = self._arrays[weight.path][tuple(region)].read().result()
        return weight.hf_from_ours(part)

    def unit_rows(self, weight: Weight) -> int:
        return self._chunk_shape(weight)[weight.split_axis] * weight.unit_rows

    def _other_axis(self, weight: Weight) -> tuple[int, int]:
        """The axis with most chunks, but for the rows' own, and their length; all of a vector."""
        chunk, split = self._chunk_shape(weight), weight.split_axis
        if len(chunk) == 1:
            return split, weight.shape[split]
        axis = max(
            (axis for axis in range(len(chunk)) if axis != split),
            key=lambda axis: weight.shape[axis] / chunk[axis],
        )
        return axis, chunk[axis]

    def _chunk_shape(self, weight: Weight) -> tuple[int, ...]:
        """Of the part of our array that is one layer's."""
        shape = self._arrays[weight.path].chunk_layout.read_chunk.shape
        assert shape is not None and None not in shape, "zarr has a chunk grid"
        return tuple(int(size or 1) for size in shape)[-len(weight.shape) :]

    def identity_files(self) -> list[Path]:
        return [self.folder / "config.json", self.folder / CHECKSUMS_FILE]


def is_checkpoint_folder(folder: Path) -> bool:
    """True if it holds a checkpoint's state."""
    return (folder / STATE_FOLDER).is_dir()


def open_checkpoint(path: Path) -> CheckpointSource:
    """A checkpoint folder, or the newest whole checkpoint of a run's folder; checksums verified.

    Raises:
        ConversionError: no checkpoint there, a damaged one (its files named), or not this model's.
        ValueError: a run without a whole checkpoint.
    """
    if not path.is_dir():
        raise ConversionError(f"{path} is not a folder; expected a checkpoint or a run")
    if not is_checkpoint_folder(path):
        from cwm_jax.training.checkpoint import resolve_checkpoint  # imports jax and orbax

        return CheckpointSource(resolve_checkpoint(path))
    if damaged := damage(path):
        raise ConversionError(f"{path} is damaged: {'; '.join(damaged)}")
    return CheckpointSource(path)


def write_checkpoint(
    source: FileSource,
    destination: Path,
    command: str,
    *,
    dtype: str | None,
    workers: int | None,
    restart: bool,
) -> str:
    """Writes a checkpoint folder, a weight at a time on every worker; returns one line about it.

    Raises:
        ConversionError: mixed dtypes, a tokenizer that is not the model's, or see
            ``resumable_folder``.
    """
    dtypes = array_dtypes(source, dtype)
    workers = choose_workers(workers, source)
    tokenizer = read_tokenizer(source.folder, source.model_config)
    with resumable_folder(destination, job_of(command, source, dtype=dtype), restart=restart) as w:
        _write_state(w, source, dtypes, workers)
        write_json(w.folder / "config.json", source.model_config.to_hf())
        if tokenizer is not None:
            tokenizer.save(
                w.folder / "tokenizer",
                model_max_length=source.model_config.max_position_embeddings,
            )
        write_checksums(w.folder)
    kept = "with" if tokenizer else "without"
    return f"{destination}: checkpoint of {len(source.dtypes)} tensors, {kept} tokenizer"


def _write_state(work: Work, source: FileSource, dtypes: dict[str, str], workers: int) -> None:
    """Writes ``state/`` with every parameter, and Orbax's description of it."""
    state = work.folder / STATE_FOLDER
    state.mkdir(exist_ok=True)
    shapes = array_shapes(source.model_config)
    arrays: dict[str, ts.TensorStore] = {}
    for weight in weights(source.model_config):
        if weight.path not in arrays:
            shape, dtype = shapes[weight.path], dtypes[weight.path]
            chunks = _chunks(weight, shape, DTYPES[dtype].itemsize)
            arrays[weight.path] = _create_array(state, weight, shape, dtype, chunks)

    def unit(weight: Weight) -> Unit:
        array, target = arrays[weight.path], DTYPES[dtypes[weight.path]]

        def write() -> tuple[list[Path], None]:
            for start, stop in row_blocks(weight, target.itemsize, source.unit_rows(weight)):
                work.check_stop()
                rows = source.read(weight, start, stop).astype(target, copy=False)
                part = array[weight.region(start, stop)]
                part.write(
                    weight.ours_from_hf(rows), can_reference_source_data_indefinitely=True
                ).result()
            folder = state / (_PREFIX + weight.path)
            pattern = "[0-9]*" if weight.repeat is None else f"{weight.repeat}.*"
            return [folder / ".zarray", *sorted(folder.glob(pattern))], None

        return Unit(weight.hf_name, 1, write)

    work.run([unit(weight) for weight in weights(source.model_config)], workers)
    write_json(state / "_METADATA", _tree_metadata(shapes))
    now_ns = time.time_ns()
    write_json(
        state / "_CHECKPOINT_METADATA",
        {
            "item_handlers": "orbax.checkpoint._src.handlers.pytree_checkpoint_handler."
            "PyTreeCheckpointHandler",
            "metrics": {},
            "performance_metrics": {},
            "init_timestamp_nsecs": now_ns,
            "commit_timestamp_nsecs": now_ns,
            "custom_metadata": {},
        },
    )


def _open_arrays(state: Path) -> dict[str, ts.TensorStore]:
    metadata = read_json(state / "_METADATA") if (state / "_METADATA").is_file() else {}
    if metadata.get("use_ocdbt") or metadata.get("use_zarr3"):
        raise ConversionError(
            f"{state} is in Orbax's OCDBT or zarr3 layout; expected plain zarr (use_ocdbt=False)"
        )
    context = ts.Context(_CONTEXT)
    arrays = {}
    for folder in sorted(state.glob(f"{_PREFIX}*")):
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder}/"}}
        try:
            opened = ts.open(spec, context=context, open=True, read=True).result()
        except (ValueError, OSError) as error:
            raise ConversionError(f"{folder}: not a readable zarr array ({error})") from error
        arrays[folder.name.removeprefix(_PREFIX)] = opened
    return arrays


def _create_array(
    state: Path, weight: Weight, shape: tuple[int, ...], dtype: str, chunks: list[int]
) -> ts.TensorStore:
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{state / (_PREFIX + weight.path)}/"},
        "metadata": {
            "shape": list(shape),
            "chunks": chunks,
            "dtype": "bfloat16" if dtype == "bfloat16" else DTYPES[dtype].str,
            "compressor": {"id": "zstd", "level": 1},  # Orbax's default
            "fill_value": None,
            "order": "C",
            "dimension_separator": ".",
        },
        "store_data_equal_to_fill_value": True,  # else a chunk of zeros would have no file
    }
    # Open: a conversion that goes on has some already.
    return ts.open(spec, context=ts.Context(_CONTEXT), create=True, open=True).result()


def _chunks(weight: Weight, shape: tuple[int, ...], itemsize: int) -> list[int]:
    """One layer, cut along Hugging Face's rows where it exceeds BLOCK_BYTES."""
    start, stop = next(row_blocks(weight, itemsize))
    part = list(weight.shape)
    part[weight.split_axis] = (stop - start) // weight.unit_rows
    return [1, *part] if len(shape) > len(part) else part


def _tree_metadata(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Orbax's ``_METADATA``; no sharding is recorded: arrays are NumPy's unless asked otherwise."""
    tree = {}
    for path, shape in shapes.items():
        keys = ("params", *path.split("."))
        tree[str(keys)] = {
            "key_metadata": [{"key": key, "key_type": 2} for key in keys],  # 2: a dict's key
            "value_metadata": {
                "value_type": "np.ndarray",
                "skip_deserialize": False,
                "write_shape": list(shape),
            },
        }
    return {
        "tree_metadata": tree,
        "use_ocdbt": False,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
