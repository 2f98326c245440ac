"""A conversion's memory depends on its workers and their blocks, not on the number of layers.

The peak is VmHWM of a fresh process: ru_maxrss starts at that of the parent process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert.folders import write_json
from convert.names import weights
from convert.safetensors_files import Shard, Tensor, write_shard
from cwm_jax.config import ModelConfig, layer_types_3_to_1

REPOSITORY = Path(__file__).parents[2]
CONSTANT_BYTES = 32 << 20  # measured 16 MB: a few blocks and the libraries' own
CONVERTERS = ("convert.from_hf", "convert.to_hf", "convert.from_meta")
_WORKER = """
import importlib, runpy, sys
status = 0
try:
    if sys.argv[1:2] == ["--import"]:
        for name in sys.argv[2:]:
            importlib.import_module(name)
    else:
        runpy.run_module("convert", run_name="__main__", alter_sys=True)
except SystemExit as end:
    status = end.code
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024)
sys.exit(status)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


def wide_config(num_layers: int, vocab_size: int = 1024) -> ModelConfig:
    """About 9 MB in a layer."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        layer_types=layer_types_3_to_1(num_layers),
        sliding_window=16,
    )


def write_model(folder: Path, config: ModelConfig) -> int:
    """A float32 export of random weights; returns the bytes of its largest tensor."""
    folder.mkdir()
    shapes = {weight.hf_name: weight.hf_shape for weight in weights(config)}
    rng = np.random.default_rng(0)
    tensors = [Tensor(name, "float32", shape) for name, shape in shapes.items()]
    write_shard(
        folder,
        Shard("model.safetensors", tensors),
        lambda name: [rng.standard_normal(shapes[name], np.float32)],
    )
    write_json(folder / "config.json", config.to_hf())
    return max(4 * int(np.prod(shape)) for shape in shapes.values())


def peak_bytes(*arguments: object) -> int:
    result = subprocess.run(
        [sys.executable, "-c", _WORKER, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    return int(result.stdout.split()[-1])


def test_peak_does_not_grow_with_depth(tmp_path):
    workers = 3
    baseline = peak_bytes("--import", *CONVERTERS)
    with_torch = peak_bytes("--import", "convert.to_meta")
    peaks, sizes = {}, {}
    for num_layers in (6, 18):
        hf, checkpoint, again, meta, back = (
            tmp_path / f"{name}{num_layers}" for name in ("hf", "c", "again", "meta", "back")
        )
        largest = write_model(hf, wide_config(num_layers))
        sizes[num_layers] = (hf / "model.safetensors").stat().st_size
        options = ("--workers", workers)
        to = (*options, "--max-shard-bytes", 20_000_000)  # several files at once
        peaks["from-hf", num_layers] = peak_bytes("from-hf", hf, checkpoint, *options)
        peaks["to-hf", num_layers] = peak_bytes("to-hf", checkpoint, again, *to)
        peaks["to-meta", num_layers] = peak_bytes("to-meta", checkpoint, meta, *to)
        peaks["from-meta", num_layers] = peak_bytes("from-meta", meta, back, *options)
    for command in ("from-hf", "to-hf", "to-meta", "from-meta"):
        start = with_torch if command == "to-meta" else baseline
        # which blocks are in hand together is chance: measured 10 MB from run to run
        assert peaks[command, 18] - peaks[command, 6] <= (sizes[18] - sizes[6]) / 4, peaks
        assert peaks[command, 18] - start <= workers * (largest + CONSTANT_BYTES), peaks


@pytest.mark.slow
def test_peak_of_a_tensor_of_many_blocks_is_below_its_size(tmp_path):
    """Vocabulary tensors of 400 MB: the blocks in hand, not the tensor, are what counts."""
    baseline = peak_bytes("--import", *CONVERTERS)
    largest = write_model(tmp_path / "hf", wide_config(1, vocab_size=200_000))
    peaks = (
        peak_bytes("from-hf", tmp_path / "hf", tmp_path / "checkpoint"),
        peak_bytes("to-hf", tmp_path / "checkpoint", tmp_path / "again"),
    )
    for peak in peaks:
        assert peak - baseline <= largest
