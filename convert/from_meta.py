"""Meta's native layout to a checkpoint folder; PyTorch is not needed."""

from __future__ import annotations

import os
from pathlib import Path

from convert.checkpoint_files import is_checkpoint_folder, write_checkpoint
from convert.folders import check_vacant
from convert.meta.files import MetaSource
from convert.names import ConversionError
from convert.safetensors_files import is_hf_folder


def from_meta(
    source_folder: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    workers: int | None = None,
    restart: bool = False,
) -> str:
    """Writes a checkpoint folder from a folder in Meta's layout; returns one line about it.

    Arguments, memory and continuation as ``from_hf``. Which layers are global, the window and RoPE
    come from ``params.json``; a ``checklist.chk`` is verified first.

    Raises:
        ConversionError: names what is unknown, missing, misshapen, damaged or not supported.
    """
    folder = Path(source_folder)
    if not folder.is_dir():
        raise ConversionError(f"{folder} is not a folder; expected a model in Meta's layout")
    for test, kind, command in (
        (is_checkpoint_folder, "a checkpoint of cwm_jax", "to-meta"),
        (is_hf_folder, "a Hugging Face folder", "from-hf"),
    ):
        if test(folder):
            raise ConversionError(f"{folder} is {kind}; use `python -m convert {command}`")
    check_vacant(Path(destination))
    return write_checkpoint(
        MetaSource(folder),
        Path(destination),
        "from-meta",
        dtype=dtype,
        workers=workers,
        restart=restart,
    )
