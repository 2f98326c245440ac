"""Meta's native layout to a checkpoint folder; PyTorch is not needed."""

from __future__ import annotations

import os
from pathlib import Path

from convert.checkpoint_files import write_checkpoint
from convert.folders import check_vacant
from convert.kinds import check_kind
from convert.meta.files import MetaSource


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
    expected = "a model in Meta's layout"
    check_kind(folder, expected=expected, otherwise=("to-meta", "from-hf"))
    check_vacant(Path(destination))
    return write_checkpoint(
        MetaSource(folder),
        Path(destination),
        "from-meta",
        dtype=dtype,
        workers=workers,
        restart=restart,
    )
