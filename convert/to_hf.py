"""Our parameters to a Hugging Face export, from memory or folder to folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from convert.checkpoint_files import open_checkpoint
from convert.folders import check_vacant, new_folder, write_json
from convert.names import ConversionError, weights
from convert.safetensors_files import is_hf_folder, write_shards
from convert.sources import DTYPES, ParamsSource, Source, array_dtypes, row_blocks
from convert.tokenizers import check_vocabulary, read_tokenizer
from cwm_jax.config import ModelConfig
from cwm_jax.tokenizer import Tokenizer

MAX_SHARD_BYTES = 5_000_000_000


def save_hf(
    path: str | os.PathLike[str],
    model_config: ModelConfig,
    params: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes parameters as a folder that transformers and vLLM open as ``CwmForCausalLM``.

    Args:
        path: absent or an empty folder; it appears whole or not at all.
        model_config: the architecture.
        params: as from ``cwm_jax.init``.
        tokenizer: written beside the weights if given.
        dtype: float32, bfloat16 or float16 for every tensor; None keeps the parameters' own.
        max_shard_bytes: of tensor data in one file.

    Raises:
        ConversionError: ``path`` exists, or the parameters are not those of the architecture.
    """
    source = ParamsSource(model_config, params)
    if tokenizer is not None:
        check_vocabulary(tokenizer, model_config, "tokenizer")
    _write_export(source, Path(path), tokenizer, dtype=dtype, max_shard_bytes=max_shard_bytes)


def to_hf(
    source_folder: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> str:
    """Exports a checkpoint folder, or the newest checkpoint of a run; returns one line about it.

    Memory is bounded by a few blocks or chunks of the checkpoint, whichever is larger.

    Raises:
        ConversionError: not a checkpoint, a damaged one (files named), or ``destination`` exists.
    """
    check_vacant(Path(destination))
    if is_hf_folder(Path(source_folder)):
        raise ConversionError(
            f"{source_folder} is a Hugging Face folder; use `python -m convert from-hf`"
        )
    source = open_checkpoint(Path(source_folder))
    tokenizer = read_tokenizer(source.folder / "tokenizer", source.model_config)
    num_files = _write_export(
        source, Path(destination), tokenizer, dtype=dtype, max_shard_bytes=max_shard_bytes
    )
    kept = "with" if tokenizer else "without"
    return (
        f"{destination}: export of {len(source.dtypes)} tensors in {num_files} files, {kept} "
        f"tokenizer, from {source.folder}"
    )


def _write_export(
    source: Source,
    destination: Path,
    tokenizer: Tokenizer | None,
    *,
    dtype: str | None,
    max_shard_bytes: int,
) -> int:
    model_config = source.model_config
    if dtype is not None:
        array_dtypes(source, dtype)
    dtypes = {name: dtype or stored for name, stored in source.dtypes.items()}
    by_name = {weight.hf_name: weight for weight in weights(model_config)}
    tensors = [(name, dtypes[name], weight.hf_shape) for name, weight in by_name.items()]

    def blocks(name: str) -> Iterator[np.ndarray]:
        weight, target = by_name[name], DTYPES[dtypes[name]]
        itemsize = max(target.itemsize, DTYPES[source.dtypes[name]].itemsize)
        for start, stop in row_blocks(weight, itemsize, source.unit_rows(weight)):
            yield source.read(weight, start, stop).astype(target, copy=False)
        bar.update()

    with new_folder(destination) as folder, tqdm(total=len(tensors), disable=None) as bar:
        num_files = write_shards(folder, tensors, blocks, max_shard_bytes=max_shard_bytes)
        main_dtype = Counter(dtypes.values()).most_common(1)[0][0]
        config = model_config.to_hf() | {"dtype": main_dtype, "torch_dtype": main_dtype}
        write_json(folder / "config.json", config)
        write_json(folder / "generation_config.json", _generation_config(model_config))
        if tokenizer is not None:
            tokenizer.save(folder, model_max_length=model_config.max_position_embeddings)
    return num_files


def _generation_config(model_config: ModelConfig) -> dict[str, Any]:
    eos = model_config.eos_token_id
    values = {
        "bos_token_id": model_config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": model_config.pad_token_id,
        "do_sample": True,  # report: temperature 1.0, top-p 0.95
        "temperature": 1.0,
        "top_p": 0.95,
    }
    return {name: value for name, value in values.items() if value is not None}
