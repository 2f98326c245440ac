"""Compares two models tensor by tensor, each in any layout, or a run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

from convert.checkpoint_files import open_checkpoint
from convert.meta.files import MetaSource, is_meta_folder
from convert.names import Weight, weights
from convert.safetensors_files import HfSource, is_hf_folder
from convert.sources import DTYPES, Source, params_from, row_blocks
from cwm_jax.config import ModelConfig

_MAX_LINES = 24


@dataclasses.dataclass(frozen=True)
class Difference:
    """What is not the same: a tensor's or a config field's name, and how."""

    name: str
    how: str


def check(a: Path, b: Path, *, logits: bool = False) -> int:
    """Prints what differs between two models; returns 0 if nothing does, else 1.

    Args:
        a, b: folders.
        logits: also run both in float32 on random tokens (the whole models in memory).

    Raises:
        ConversionError: a folder that is not a whole model.
    """
    first, second = _open(a), _open(b)
    differences = compare(first, second)
    for difference in differences[:_MAX_LINES]:
        print(f"{difference.name:60} {difference.how}")
    if len(differences) > _MAX_LINES:
        print(f"... and {len(differences) - _MAX_LINES} more")
    num_tensors = len(first.dtypes.keys() | second.dtypes.keys())
    verdict = f"{len(differences)} differences" if differences else "bit-equal, configs equal"
    print(f"{num_tensors} tensors: {verdict}")
    if logits:
        print(f"largest difference of logits in float32: {logits_difference(first, second):.3g}")
    return 1 if differences else 0


def compare(a: Source, b: Source) -> list[Difference]:
    """Every difference: config fields, names, shapes, dtypes, values."""
    differences = _config_differences(a.model_config, b.model_config)
    in_a = {weight.hf_name: weight for weight in weights(a.model_config)}
    in_b = {weight.hf_name: weight for weight in weights(b.model_config)}
    for name in in_a | in_b:
        if name not in in_a or name not in in_b:
            differences.append(Difference(name, f"only in {'a' if name in in_a else 'b'}"))
        elif how := _tensor_difference(a, in_a[name], b, in_b[name]):
            differences.append(Difference(name, how))
    return differences


def logits_difference(a: Source, b: Source) -> float:
    """Largest difference of the models' float32 logits on random tokens, longer than a window."""
    import jax
    import jax.numpy as jnp

    from cwm_jax.model.transformer import forward

    configs = (a.model_config, b.model_config)
    num_tokens = max(c.sliding_window or 0 for c in configs) + 64
    vocab_size = min(c.vocab_size for c in configs)
    tokens = jnp.asarray(np.random.default_rng(0).integers(vocab_size, size=(1, num_tokens)))
    run = jax.jit(forward, static_argnums=1)
    with jax.default_matmul_precision("float32"):
        results = [
            np.asarray(run(params_from(source, "float32"), source.model_config, tokens))
            for source in (a, b)
        ]
    return float(np.max(np.abs(results[0][..., :vocab_size] - results[1][..., :vocab_size])))


def _open(path: Path) -> Source:
    if is_hf_folder(path):
        return HfSource(path)
    return MetaSource(path) if is_meta_folder(path) else open_checkpoint(path)


def _config_differences(a: ModelConfig, b: ModelConfig) -> list[Difference]:
    return [
        Difference(f"config: {field.name}", f"{getattr(a, field.name)} | {getattr(b, field.name)}")
        for field in dataclasses.fields(ModelConfig)
        if getattr(a, field.name) != getattr(b, field.name)
    ]


def _tensor_difference(a: Source, in_a: Weight, b: Source, in_b: Weight) -> str:
    """How a tensor differs; empty if it does not."""
    if in_a.hf_shape != in_b.hf_shape:
        return f"shape {in_a.hf_shape} | {in_b.hf_shape}"
    dtypes = a.dtypes[in_a.hf_name], b.dtypes[in_b.hf_name]
    largest, bits_differ = 0.0, dtypes[0] != dtypes[1]
    unit_rows = math.lcm(in_b.unit_rows, max(a.unit_rows(in_a), b.unit_rows(in_b)))
    itemsize = max(DTYPES[dtype].itemsize for dtype in dtypes)
    for start, stop in row_blocks(in_a, itemsize, unit_rows):
        rows_a, rows_b = a.read(in_a, start, stop), b.read(in_b, start, stop)
        if dtypes[0] == dtypes[1] and rows_a.tobytes() == rows_b.tobytes():
            continue
        bits_differ = True
        delta = np.abs(rows_a.astype(np.float32) - rows_b.astype(np.float32))
        largest = float(np.maximum(largest, delta.max()))  # keeps NaN
    if not bits_differ:
        return ""
    kinds = dtypes[0] if dtypes[0] == dtypes[1] else f"{dtypes[0]} | {dtypes[1]}"
    return f"{kinds}, largest difference {largest:.3g}"
