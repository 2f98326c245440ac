"""The tensors of an export: names, shapes, dtypes and blocks, as Hugging Face or Meta has them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from convert.checkpoint_files import CheckpointSource, open_checkpoint
from convert.folders import check_vacant
from convert.kinds import check_kind
from convert.names import weights
from convert.safetensors_files import Tensor, group_tensors
from convert.sources import DTYPES, Source, array_dtypes, row_blocks

MAX_SHARD_BYTES = 5_000_000_000


class Export:
    """A source's tensors, cast, and named and ordered by rows as a layout wants them."""

    def __init__(self, source: Source, layout: Literal["hf", "meta"], dtype: str | None) -> None:
        """Raises ConversionError for an unsupported dtype; None keeps the stored ones."""
        if dtype is not None:
            array_dtypes(source, dtype)
        self._source = source
        self._permuted = layout == "meta"
        self._weights = {
            weight.meta_name if self._permuted else weight.hf_name: weight
            for weight in weights(source.model_config)
        }
        self.dtypes = {
            name: dtype or source.dtypes[weight.hf_name] for name, weight in self._weights.items()
        }

    def groups(self, max_bytes: int) -> list[list[Tensor]]:
        """See ``group_tensors``."""
        tensors = (
            Tensor(name, self.dtypes[name], weight.hf_shape)
            for name, weight in self._weights.items()
        )
        return group_tensors(tensors, max_bytes)

    def blocks(self, name: str, check: Callable[[], None] = lambda: None) -> Iterator[np.ndarray]:
        """A tensor's consecutive rows; ``check`` is called before each read."""
        weight = self._weights[name]
        target, stored = DTYPES[self.dtypes[name]], DTYPES[self._source.dtypes[weight.hf_name]]
        itemsize = max(target.itemsize, stored.itemsize)
        for start, stop in row_blocks(weight, itemsize, self._source.unit_rows(weight)):
            check()
            rows = self._source.read(weight, start, stop).astype(target, copy=False)
            yield weight.meta_from_hf(rows) if self._permuted else rows


def open_to_export(
    source_folder: str | os.PathLike[str], destination: str | os.PathLike[str]
) -> CheckpointSource:
    """The checkpoint, after the destination has been looked at: verifying takes a while.

    Raises:
        ConversionError: not a checkpoint, a damaged one (files named), or ``destination`` exists.
    """
    check_vacant(Path(destination))
    folder, expected = Path(source_folder), "a checkpoint or a run"
    check_kind(folder, expected=expected, otherwise=("from-hf", "from-meta"))
    return open_checkpoint(folder)
