"""Hugging Face's safetensors to our parameters, in memory or folder to folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from convert.checkpoint_files import is_checkpoint_folder, write_state
from convert.folders import check_vacant, new_folder, write_json
from convert.names import ConversionError
from convert.safetensors_files import HfSource
from convert.sources import array_dtypes, params_from
from convert.tokenizers import read_tokenizer
from cwm_jax.config import ModelConfig
from cwm_jax.training.checksums import write_checksums


def load_hf(
    path: str | os.PathLike[str], dtype: str | None = None
) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads a Hugging Face folder into memory.

    Args:
        path: folder with config.json and model.safetensors, or shards with their index.
        dtype: float32, bfloat16 or float16 for every parameter; None keeps the stored dtypes.

    Raises:
        ConversionError: names what is unknown, missing, duplicate, misshapen or damaged.
    """
    source = _open(Path(path))
    return source.model_config, params_from(source, dtype)


def from_hf(
    source_folder: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: str | None = None,
) -> str:
    """Writes a checkpoint folder from a Hugging Face folder; returns one line about it.

    Memory is bounded by a few blocks (``convert.sources.BLOCK_BYTES``), whatever the model. Nothing
    is written before every header has been checked.

    Raises:
        ConversionError: as ``load_hf``; ``destination`` exists; the tokenizer is not the model's.
    """
    source, destination = _open(Path(source_folder)), Path(destination)
    array_dtypes(source, dtype)
    check_vacant(destination)
    tokenizer = read_tokenizer(source.folder, source.model_config)
    with new_folder(destination) as folder:
        write_state(folder, source, dtype, lambda items: tqdm(items, unit="tensor", disable=None))
        write_json(folder / "config.json", source.model_config.to_hf())
        if tokenizer is not None:
            tokenizer.save(
                folder / "tokenizer", model_max_length=source.model_config.max_position_embeddings
            )
        write_checksums(folder)
    kept = "with" if tokenizer else "without"
    return f"{destination}: checkpoint of {len(source.dtypes)} tensors, {kept} tokenizer"


def _open(path: Path) -> HfSource:
    if not path.is_dir():
        raise ConversionError(f"{path} is not a folder; expected a model in Hugging Face's layout")
    if is_checkpoint_folder(path):
        raise ConversionError(f"{path} is a checkpoint of cwm_jax; use `python -m convert to-hf`")
    return HfSource(path)
