"""Hugging Face's safetensors to our parameters, in memory or folder to folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from convert.checkpoint_files import write_checkpoint
from convert.kinds import check_kind
from convert.safetensors_files import HfSource, quantization_of
from convert.sources import params_from
from cwm_jax.config import ModelConfig


def load_hf(
    path: str | os.PathLike[str], dtype: str | None = None
) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads a Hugging Face folder into memory.

    Args:
        path: folder with config.json and model.safetensors, or shards with their index. That of
            ``python -m convert quantize`` gives quantized kernels, which every pure function takes.
        dtype: float32, bfloat16 or float16 for every parameter; None keeps the stored dtypes.
            Quantized kernels keep theirs.

    Raises:
        ConversionError: names what is unknown, missing, duplicate, misshapen or damaged.
    """
    if quantization_of(Path(path)) is not None:
        from convert.quantized import load_quantized  # imports jax

        return load_quantized(Path(path), dtype)
    source = _open(Path(path))
    return source.model_config, params_from(source, dtype)


def from_hf(
    source_folder: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    workers: int | None = None,
    restart: bool = False,
) -> str:
    """Writes a checkpoint folder from a Hugging Face folder; returns one line about it.

    Memory is bounded by a few blocks (``convert.sources.BLOCK_BYTES``) for each worker, whatever
    the model. Nothing is written before every header has been checked. A call that was killed is
    continued by the same call.

    Args:
        source_folder: in Hugging Face's layout.
        destination: absent or an empty folder; it appears whole or not at all.
        dtype: float32, bfloat16 or float16 for every tensor; None keeps the stored ones.
        workers: threads; None takes the cores, as far as memory allows.
        restart: discard what a killed call has left.

    Raises:
        ConversionError: as ``load_hf``; ``destination`` exists; the tokenizer is not the model's.
    """
    source, destination = _open(Path(source_folder)), Path(destination)
    return write_checkpoint(
        source, destination, "from-hf", dtype=dtype, workers=workers, restart=restart
    )


def _open(path: Path) -> HfSource:
    expected = "a model in Hugging Face's layout"
    check_kind(path, expected=expected, otherwise=("to-hf", "from-meta"))
    return HfSource(path)
