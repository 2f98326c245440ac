"""A model's linear maps in int8, int4 or fp8, folder to folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from convert.checkpoint_files import CheckpointSource, open_checkpoint
from convert.exports import MAX_SHARD_BYTES
from convert.folders import check_vacant
from convert.kinds import check_kind
from convert.names import ConversionError, weights
from convert.quantized import (
    check_packable,
    config_of,
    is_linear,
    module_of,
    pack_words,
    parts_of,
)
from convert.safetensors_files import HfSource, Tensor, group_tensors, is_hf_folder, name_shards
from convert.sources import Source, row_blocks
from convert.to_hf import shard_unit, write_beside
from convert.tokenizers import read_tokenizer
from convert.work import choose_workers, job_of, resumable_folder
from cwm_jax.inference.quantization import (
    WeightFormat,
    check_group_size,
    round_to,
    weight_format_of,
)

# Bytes that a block is counted with for each value: it exists in float32 three to five times.
_BLOCK_ITEMSIZE = 16


def quantize(
    source_folder: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: str,
    group_size: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    workers: int | None = None,
    restart: bool = False,
) -> str:
    """Writes a folder of quantized weights, which ``convert.load_hf`` opens; returns one line.

    Values and scales are those of ``cwm_jax.inference.quantization.quantize``. Embedding and norms
    keep their dtype. Memory is bounded as in the other conversions, and a call that was killed is
    continued by the same call.

    Args:
        source_folder: Hugging Face's layout, a checkpoint, or a run (its newest checkpoint).
        destination: absent or an empty folder; it appears whole or not at all.
        dtype: int8, int4 or fp8.
        group_size: inputs that share a scale, int4 alone; None is the most up to 128 that fits.
        max_shard_bytes, workers, restart: as for ``convert.to_hf.to_hf``.

    Raises:
        ConversionError: a source that is none or is quantized already, a group size that does not
            fit, or ``destination`` exists.
    """
    destination = Path(destination)
    check_vacant(destination)
    weight_format = _checked(weight_format_of, dtype)
    source, tokenizer_folder = _open(Path(source_folder))
    config = source.model_config
    group_size = _checked(check_group_size, config, weight_format, group_size)
    check_packable(config, weight_format)
    tokenizer = read_tokenizer(tokenizer_folder, config)
    export = _QuantizedExport(source, weight_format, group_size)
    shards = name_shards(group_tensors(export.tensors, max_shard_bytes))
    workers = choose_workers(workers, source)
    options = {"dtype": dtype, "group_size": group_size, "max_shard_bytes": max_shard_bytes}
    with resumable_folder(destination, job_of("quantize", source, **options), restart=restart) as w:
        w.run([shard_unit(w, shard, export.blocks) for shard in shards], workers)
        write_beside(
            w.folder,
            config,
            shards,
            tokenizer,
            dtype=source.dtypes["model.embed_tokens.weight"],
            quantization=config_of(weight_format, group_size),
        )
    before, after = export.num_bytes
    kept = "with" if tokenizer else "without"
    groups = f" in groups of {group_size}" if group_size else ""
    return (
        f"{destination}: {dtype}{groups}, {after:,} bytes of {before:,} ({after / before:.0%}), in "
        f"{len(shards)} files, {kept} tokenizer, from {source.folder}"
    )


class _QuantizedExport:
    """The tensors of a quantized folder, and their rows."""

    def __init__(self, source: Source, weight_format: WeightFormat, group_size: int | None) -> None:
        self._source, self._format, self._group_size = source, weight_format, group_size
        self._parts = {}
        self.tensors: list[Tensor] = []
        for weight in weights(source.model_config):
            if not is_linear(weight):
                self._parts[weight.hf_name] = (weight, "weight")
                dtype = source.dtypes[weight.hf_name]
                self.tensors.append(Tensor(weight.hf_name, dtype, weight.hf_shape))
                continue
            for part in parts_of(weight, weight_format, group_size, weight_format.scale_dtype.name):
                name = module_of(weight) + part.suffix
                self._parts[name] = (weight, part.suffix)
                self.tensors.append(Tensor(name, part.dtype, part.shape))

    @property
    def num_bytes(self) -> tuple[int, int]:
        """Of the source's tensors, and of these."""
        config, dtypes = self._source.model_config, self._source.dtypes
        stored = (Tensor(w.hf_name, dtypes[w.hf_name], w.hf_shape) for w in weights(config))
        return sum(t.num_bytes for t in stored), sum(t.num_bytes for t in self.tensors)

    def blocks(self, name: str, check: Callable[[], None] = lambda: None) -> Iterator[np.ndarray]:
        """A tensor's consecutive rows; a weight is read for its values and for its scales."""
        weight, suffix = self._parts[name]
        if suffix == "weight_shape":
            yield np.array(weight.hf_shape, np.int64)
            return
        unit_rows = self._source.unit_rows(weight)
        for start, stop in row_blocks(weight, _BLOCK_ITEMSIZE, unit_rows):
            check()
            rows = self._source.read(weight, start, stop)
            yield rows if not is_linear(weight) else self._quantized(rows, suffix)

    def _quantized(self, rows: np.ndarray, suffix: str) -> np.ndarray:
        group_size = self._group_size or rows.shape[1]
        wide = rows.astype(np.float32).reshape(len(rows), -1, group_size)
        values, scales = round_to(self._format, wide, 2)
        if suffix == "weight_scale":
            return scales[..., 0]
        values = values.reshape(rows.shape)
        return pack_words(values, self._format.bits) if suffix == "weight_packed" else values


def _open(path: Path) -> tuple[HfSource | CheckpointSource, Path]:
    """The weights, and the folder of their tokenizer."""
    expected = "a Hugging Face folder, a checkpoint or a run"
    check_kind(path, expected=expected, otherwise=("from-meta",))
    if is_hf_folder(path):
        return HfSource(path), path
    source = open_checkpoint(path)
    return source, source.folder / "tokenizer"


def _checked(function: Callable, *arguments):
    try:
        return function(*arguments)
    except ValueError as error:
        raise ConversionError(str(error)) from error
