"""Peak memory and time of the converters on a model of the 32B's width and few layers, in float32.

    python -m benchmarks.convert_memory [--folder DIR] [--layers 2 4] [--workers 1 2]

Two copies of the model lie on disk at a time (2 layers 10 GB, 4 layers 14 GB). Each conversion is a
process of its own, whose peak is its VmHWM; every result is compared bit by bit with its source.
Expected: peaks below 8 GB, and for 4 layers those of 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from configs.cwm_32b import MODEL
from convert.exports import MAX_SHARD_BYTES, Export
from convert.folders import write_json
from convert.names import Weight, weights
from convert.safetensors_files import name_shards, write_index, write_shard
from cwm_jax.config import ModelConfig, layer_types_3_to_1

_WORKER = """
import runpy, sys
try:
    runpy.run_module("convert", run_name="__main__", alter_sys=True)
except SystemExit as end:
    status = end.code
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024)
sys.exit(status)
"""


def main() -> None:
    options = _options()
    print(
        f"{'command':10} {'layers':>6} {'workers':>7} {'GB':>6} {'s':>6} {'GB/s':>6} {'peak GB':>8}"
    )
    for num_layers in options.layers:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            hf, checkpoint, copy = folder / "hf", folder / "checkpoint", folder / "copy"
            num_bytes = _write_model(hf, num_layers)
            for workers in options.workers:
                row = num_layers, workers, num_bytes
                shutil.rmtree(checkpoint, ignore_errors=True)
                _convert("from-hf", hf, checkpoint, *row)
            _run("check", hf, checkpoint)
            shutil.rmtree(hf)
            for workers in options.workers:
                row = num_layers, workers, num_bytes
                for layout in ("hf", "meta"):
                    _convert(f"to-{layout}", checkpoint, copy, *row)
                    _run("check", checkpoint, copy)
                    if layout == "hf":
                        shutil.rmtree(copy)
                shutil.rmtree(checkpoint)
                _convert("from-meta", copy, checkpoint, *row)
                _run("check", checkpoint, copy)
                shutil.rmtree(copy)


def _convert(
    command: str, source: Path, destination: Path, num_layers: int, workers: int, num_bytes: int
) -> None:
    start = time.monotonic()
    peak = _run(command, source, destination, "--workers", workers)
    seconds = time.monotonic() - start
    print(
        f"{command:10} {num_layers:6} {workers:7} {num_bytes / 1e9:6.1f} {seconds:6.0f} "
        f"{num_bytes / 1e9 / seconds:6.2f} {peak / 1e9:8.2f}",
        flush=True,
    )


def _run(*arguments: object) -> int:
    """Peak resident bytes of ``python -m convert`` with these arguments."""
    done = subprocess.run(
        [sys.executable, "-c", _WORKER, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{arguments}: {done.stdout}{done.stderr}")
    return int(done.stdout.split()[-1])


class _Noise:
    """A source of random weights without files: parts of one random block."""

    def __init__(self, model_config: ModelConfig) -> None:
        self.model_config = model_config
        self.dtypes = {weight.hf_name: "float32" for weight in weights(model_config)}
        self._block = np.random.default_rng(0).standard_normal(1 << 24, np.float32)

    def read(self, weight: Weight, start: int, stop: int) -> np.ndarray:
        shape = (stop - start, *weight.hf_shape[1:])
        first = hash((weight.hf_name, start)) % (len(self._block) // 2)
        return self._block[first : first + math.prod(shape)].reshape(shape)

    def unit_rows(self, weight: Weight) -> int:
        return weight.unit_rows


def _write_model(folder: Path, num_layers: int) -> int:
    """An export of so many of the 32B's layers; returns the bytes of its tensors."""
    config = dataclasses.replace(
        MODEL,
        num_hidden_layers=num_layers,
        layer_types=layer_types_3_to_1(num_layers),
    )
    folder.mkdir()
    export = Export(_Noise(config), "hf", None)
    shards = name_shards(export.groups(MAX_SHARD_BYTES))
    for shard in shards:
        write_shard(folder, shard, export.blocks)
    write_index(folder, shards)
    write_json(folder / "config.json", config.to_hf())
    return sum(4 * math.prod(t.shape) for shard in shards for t in shard.tensors)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="default: the system's temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
