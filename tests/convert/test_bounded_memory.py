"""A conversion's memory depends on its largest tensor, not on the number of layers.

The peak is VmHWM of a fresh process: ru_maxrss starts at that of the parent process. glibc gives
every thread an arena of its own, which keeps what was freed in it: 75 MB become 110 to 128 MB, by
chance of scheduling. What a conversion itself holds is measured with two arenas: 71 to 76 MB.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert.folders import write_json
from convert.names import weights
from convert.safetensors_files import write_shards
from cwm_jax.config import ModelConfig, layer_types_3_to_1

REPOSITORY = Path(__file__).parents[2]
CONSTANT_BYTES = 32 << 20  # measured 16 MB: a few blocks and the libraries' own
_WORKER = """
import sys
from convert.__main__ import main
status = main(sys.argv[1:]) if len(sys.argv) > 1 else 0
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
    tensors = [(name, "float32", shape) for name, shape in shapes.items()]
    write_shards(
        folder,
        tensors,
        lambda name: [rng.standard_normal(shapes[name], np.float32)],
        max_shard_bytes=50_000_000,
    )
    write_json(folder / "config.json", config.to_hf())
    return max(4 * int(np.prod(shape)) for shape in shapes.values())


def peak_bytes(*arguments: object) -> int:
    result = subprocess.run(
        [sys.executable, "-c", _WORKER, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"MALLOC_ARENA_MAX": "2"},
        check=True,
    )
    return int(result.stdout.split()[-1])


def conversion_peak_bytes(command: str, source: Path, destination: Path) -> int:
    """The lower peak of two runs."""
    first = peak_bytes(command, source, destination)
    shutil.rmtree(destination)
    return min(first, peak_bytes(command, source, destination))


def test_peak_does_not_grow_with_depth(tmp_path):
    baseline = peak_bytes()
    peaks = {}
    for num_layers in (8, 24):
        hf, checkpoint = tmp_path / f"hf{num_layers}", tmp_path / f"checkpoint{num_layers}"
        largest = write_model(hf, wide_config(num_layers))
        peaks["from", num_layers] = conversion_peak_bytes("from-hf", hf, checkpoint)
        again = tmp_path / f"again{num_layers}"
        peaks["to", num_layers] = conversion_peak_bytes("to-hf", checkpoint, again)
    for direction in ("from", "to"):
        assert peaks[direction, 24] <= 1.1 * peaks[direction, 8]
        assert peaks[direction, 24] - baseline <= largest + CONSTANT_BYTES


@pytest.mark.slow
def test_peak_of_a_tensor_of_many_blocks_is_below_its_size(tmp_path):
    """Vocabulary tensors of 400 MB: the blocks in hand, not the tensor, are what counts."""
    baseline = peak_bytes()
    largest = write_model(tmp_path / "hf", wide_config(1, vocab_size=200_000))
    peaks = (
        peak_bytes("from-hf", tmp_path / "hf", tmp_path / "checkpoint"),
        peak_bytes("to-hf", tmp_path / "checkpoint", tmp_path / "again"),
    )
    for peak in peaks:
        assert peak - baseline <= largest
