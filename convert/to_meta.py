"""A checkpoint to Meta's native layout; needs PyTorch, whose ``torch.save`` writes the chunks.

Each file is ``__{rank}_0.distcp`` as of one rank, loadable with ``torch.distributed.checkpoint`` on
any number of ranks. A tensor is stored as many chunks of rows, so that none is whole in memory.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from convert.exports import MAX_SHARD_BYTES, Export, open_to_export
from convert.folders import write_json
from convert.meta.dcp_files import METADATA_FILE
from convert.meta.files import write_checklist
from convert.meta.params import PARAMS_FILE, params_from_model
from convert.names import ConversionError
from convert.safetensors_files import Tensor
from convert.tokenizers import read_tokenizer, write_ranks
from convert.work import Unit, Work, choose_workers, job_of, resumable_folder

try:
    import torch
    from torch.distributed.checkpoint import metadata as dcp
    from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
except ImportError as error:
    raise ConversionError(
        f"Meta's layout is written with PyTorch, which cannot be imported ({error}): "
        "pip install torch"
    ) from error

# Name, first row, number of rows, place in the file, bytes there.
_Item = tuple[str, int, int, int, int]


def to_meta(
    source_folder: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    workers: int | None = None,
    restart: bool = False,
) -> str:
    """Exports a checkpoint folder, or the newest checkpoint of a run; returns one line about it.

    Arguments, memory and continuation as ``to_hf``.

    Raises:
        ConversionError: as ``to_hf``; or Meta's ``params.json`` cannot express the architecture.
    """
    source = open_to_export(source_folder, destination)
    model_config = source.model_config
    params = params_from_model(model_config)
    tokenizer = read_tokenizer(source.folder / "tokenizer", model_config)
    export = Export(source, "meta", dtype)
    groups = export.groups(max_shard_bytes)
    names = [f"__{rank}_0.distcp" for rank in range(len(groups))]
    workers = choose_workers(workers, source)
    job = job_of("to-meta", source, dtype=dtype, max_shard_bytes=max_shard_bytes)
    with resumable_folder(Path(destination), job, restart=restart) as work:
        units = [_unit(work, name, g, export) for name, g in zip(names, groups, strict=True)]
        items = work.run(units, workers)
        _write_metadata(work.folder / METADATA_FILE, groups, items)
        write_json(work.folder / PARAMS_FILE, params)
        if tokenizer is not None:
            write_ranks(tokenizer, work.folder / "tokenizer.model")
        write_checklist(work.folder, Path(os.path.abspath(destination)).name)
    kept = "with" if tokenizer else "without"
    return (
        f"{destination}: export in Meta's layout of {len(source.dtypes)} tensors in {len(groups)} "
        f"files, {kept} tokenizer, from {source.folder}"
    )


def _unit(work: Work, file_name: str, tensors: list[Tensor], export: Export) -> Unit:
    def write() -> tuple[list[Path], list[_Item]]:
        items: list[_Item] = []
        with open(work.folder / file_name, "wb") as file:
            for tensor in tensors:
                first_row = 0
                for block in export.blocks(tensor.name, work.check_stop):
                    start = file.tell()
                    torch.save(_torch_from_numpy(block), file)
                    items.append((tensor.name, first_row, len(block), start, file.tell() - start))
                    first_row += len(block)
        return [work.folder / file_name], items

    return Unit(file_name, len(tensors), write)


def _torch_from_numpy(block: np.ndarray) -> torch.Tensor:
    block = np.require(block, requirements=["C", "W"])
    if block.dtype.name == "bfloat16":  # NumPy's own types alone are known to PyTorch
        return torch.from_numpy(block.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(block)


def _write_metadata(path: Path, groups: list[list[Tensor]], items: dict[str, list[_Item]]) -> None:
    """``.metadata`` as PyTorch would pickle it, but for the folder and the random id of a save."""
    entries: dict[str, Any] = {
        tensor.name: dcp.TensorStorageMetadata(
            properties=dcp.TensorProperties(dtype=getattr(torch, tensor.dtype)),
            size=torch.Size(tensor.shape),
            chunks=[],
        )
        for group in groups
        for tensor in group
    }
    # A pickle stores equal strings once only if they are one object; those of a journal are not.
    own_name = {name: name for name in entries}
    places = {}
    for file_name, of_file in items.items():
        for name, first_row, num_rows, start, num_bytes in of_file:
            entry = entries[name]
            offsets = torch.Size((first_row, *[0] * (len(entry.size) - 1)))
            sizes = torch.Size((num_rows, *entry.size[1:]))
            index = dcp.MetadataIndex(own_name[name], offsets, len(entry.chunks))
            places[index] = _StorageInfo(file_name, start, num_bytes)
            entry.chunks.append(dcp.ChunkStorageMetadata(offsets, sizes))
    root = {name: ("model", name.removeprefix("model.")) for name in entries}
    metadata = dcp.Metadata(
        entries, planner_data=root, storage_data=places, version=CURRENT_DCP_VERSION
    )
    with open(path, "wb") as file:
        pickle.dump(metadata, file)
