"""The parameters of a checkpoint folder, in chunks, through tensorstore; Orbax reads them too.

FOLDER/state/params.layers.0.mlp.up_proj.kernel/.zarray    plain zarr arrays, one folder each
FOLDER/state/_METADATA                                     Orbax's description of the tree
FOLDER/config.json  FOLDER/tokenizer/  FOLDER/checksums.json
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from convert.folders import read_json, read_model_config, write_json
from convert.names import ConversionError, Weight, array_shapes, check_names, weights
from convert.sources import DTYPES, Source, array_dtypes, row_blocks
from cwm_jax.training.checksums import STATE_FOLDER, damage

_PREFIX = "params."
# No cache, and few chunks in flight: a conversion's memory is that of the blocks in its hands.
_CONTEXT = {
    "cache_pool": {"total_bytes_limit": 0},
    "data_copy_concurrency": {"limit": 2},
    "file_io_concurrency": {"limit": 4},
    "file_io_sync": False,  # write_checksums flushes every file
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
        array = self._arrays[weight.path]
        part = array[weight.region(start, stop)].read().result()
        return weight.hf_from_ours(part)

    def unit_rows(self, weight: Weight) -> int:
        chunks = self._arrays[weight.path].chunk_layout.read_chunk.shape
        assert chunks is not None, "zarr has a chunk grid"
        length = chunks[weight.split_axis + (weight.repeat is not None)]
        assert length is not None, "zarr's chunks have a size"
        return length * weight.unit_rows


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


def write_state(
    folder: Path,
    source: Source,
    dtype: str | None,
    progress: Callable[[list[Weight]], Iterable[Weight]],
) -> None:
    """Writes ``state/`` with every parameter, a block at a time, and Orbax's description of it."""
    state = folder / STATE_FOLDER
    state.mkdir()
    model_config = source.model_config
    dtypes, shapes = array_dtypes(source, dtype), array_shapes(model_config)
    arrays: dict[str, Any] = {}
    for weight in progress(weights(model_config)):
        target = DTYPES[dtypes[weight.path]]
        if weight.path not in arrays:
            shape = shapes[weight.path]
            arrays[weight.path] = _create_array(
                state, weight, shape, dtypes[weight.path], _chunks(weight, shape, target.itemsize)
            )
        for start, stop in row_blocks(weight, target.itemsize, source.unit_rows(weight)):
            rows = source.read(weight, start, stop).astype(target, copy=False)
            part = arrays[weight.path][weight.region(start, stop)]
            part.write(
                weight.ours_from_hf(rows), can_reference_source_data_indefinitely=True
            ).result()
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
    return ts.open(spec, context=ts.Context(_CONTEXT), create=True, open=False).result()


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
