"""Our parameters to a Hugging Face export, from memory or folder to folder."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.exports import MAX_SHARD_BYTES, Export, open_to_export
from convert.folders import new_folder, write_json
from convert.safetensors_files import (
    QUANTIZATION_KEY,
    Shard,
    name_shards,
    write_index,
    write_shard,
)
from convert.sources import ParamsSource
from convert.tokenizers import check_vocabulary, read_tokenizer
from convert.work import Unit, Work, choose_workers, job_of, resumable_folder
from cwm_jax.config import ModelConfig
from cwm_jax.tokenizer import Tokenizer


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
    export = Export(source, "hf", dtype)
    shards = name_shards(export.groups(max_shard_bytes))
    with new_folder(Path(path)) as folder:
        for shard in shards:
            write_shard(folder, shard, export.blocks)
        write_beside(folder, model_config, shards, tokenizer, dtype=_main_dtype(shards))


def to_hf(
    source_folder: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    workers: int | None = None,
    restart: bool = False,
) -> str:
    """Exports a checkpoint folder, or the newest checkpoint of a run; returns one line about it.

    Each worker writes a file at a time. Its memory is bounded by a few blocks, or chunks of the
    checkpoint if they are larger. A call that was killed is continued by the same call.

    Raises:
        ConversionError: not a checkpoint, a damaged one (files named), or ``destination`` exists.
    """
    source = open_to_export(source_folder, destination)
    tokenizer = read_tokenizer(source.folder / "tokenizer", source.model_config)
    export = Export(source, "hf", dtype)
    shards = name_shards(export.groups(max_shard_bytes))
    workers = choose_workers(workers, source)
    job = job_of("to-hf", source, dtype=dtype, max_shard_bytes=max_shard_bytes)
    with resumable_folder(Path(destination), job, restart=restart) as work:
        work.run([shard_unit(work, shard, export.blocks) for shard in shards], workers)
        write_beside(work.folder, source.model_config, shards, tokenizer, dtype=_main_dtype(shards))
    kept = "with" if tokenizer else "without"
    return (
        f"{destination}: export of {len(source.dtypes)} tensors in {len(shards)} files, {kept} "
        f"tokenizer, from {source.folder}"
    )


def shard_unit(work: Work, shard: Shard, blocks: Callable[..., Iterable[np.ndarray]]) -> Unit:
    """A file of a conversion; ``blocks(name, check)`` as ``Export.blocks``."""

    def write() -> tuple[list[Path], None]:
        checked = functools.partial(blocks, check=work.check_stop)
        return [write_shard(work.folder, shard, checked)], None

    return Unit(shard.name, len(shard.tensors), write)


def write_beside(
    folder: Path,
    model_config: ModelConfig,
    shards: list[Shard],
    tokenizer: Tokenizer | None,
    *,
    dtype: str,
    quantization: dict[str, Any] | None = None,
) -> None:
    """Writes what an export has besides its weights; ``dtype`` is what they are computed in."""
    write_index(folder, shards)
    config = model_config.to_hf() | {"dtype": dtype, "torch_dtype": dtype}
    if quantization is not None:
        config[QUANTIZATION_KEY] = quantization
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", _generation_config(model_config))
    if tokenizer is not None:
        tokenizer.save(folder, model_max_length=model_config.max_position_embeddings)


def _main_dtype(shards: list[Shard]) -> str:
    counts = Counter(tensor.dtype for shard in shards for tensor in shard.tensors)
    return counts.most_common(1)[0][0]


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
