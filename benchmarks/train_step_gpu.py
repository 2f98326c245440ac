"""Optimizer steps of a configuration on this accelerator: tokens/s and model FLOP utilization.

    python -m benchmarks.train_step_gpu [--config cwm_1b --rows 8 --tokens 8192 --attention hopper]

The step that the loop runs (bfloat16 products, float32 state, the configuration's remat), on random
tokens in rows packed with documents of log-normal length, one device. FLOPs count what the model
needs for these documents, not recomputation; the peak is that of dense bfloat16 on a H100 or H200.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import platform
import statistics
import time

import jax
import numpy as np

from benchmarks.attention_gpu import Case
from cwm_jax.config import BatchConfig, MeshConfig
from cwm_jax.training.scaling.flops import flops_per_token
from cwm_jax.training.state import init_state
from cwm_jax.training.step import compiler_options, make_train_step

PEAK_FLOPS = 989e12  # vendor's figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="cwm_1b")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--mean-document", type=int, default=2048)
    parser.add_argument("--attention", nargs="+", default=["hopper", "triton"])
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    device = jax.devices()[0].device_kind
    print(f"{device}, python {platform.python_version()}, jax {jax.__version__}, {arguments}")
    print("| attention | s/step | tokens/s | TFLOP/s | MFU |\n|---|---|---|---|---|")
    for implementation in arguments.attention:
        try:
            print(measure(implementation, arguments), flush=True)
        except Exception as error:  # the others are still worth their time
            first_line = str(error).strip().splitlines()[0][:200]
            print(f"| {implementation} | {type(error).__name__}: {first_line} |", flush=True)


def measure(implementation: str, arguments: argparse.Namespace) -> str:
    """One line of the table."""
    config = importlib.import_module(f"configs.{arguments.config}").get_config()
    rows, T = arguments.rows, arguments.tokens
    config = dataclasses.replace(
        config,
        mesh=MeshConfig(),
        batch=BatchConfig(max_target_length=T, per_device_batch_size=rows),
        execution=dataclasses.replace(config.execution, attention=implementation),
    )
    documents = Case(rows, T, mean_document=arguments.mean_document)
    batch = jax.device_put(make_batch(config.model.vocab_size, documents))
    step = jax.jit(make_train_step(config), donate_argnums=0, compiler_options=compiler_options())
    state = jax.jit(lambda key: init_state(config, key))(jax.random.key(0))
    seconds = []
    for _ in range(arguments.steps + 2):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[2:])
    lengths = np.concatenate(documents.document_lengths())
    flops = sum(n * flops_per_token(config.model, int(n)) for n in lengths)
    cells = f"{median:.3f}", f"{rows * T / median:,.0f}", f"{flops / median / 1e12:.0f}"
    return f"| {implementation} | {' | '.join(cells)} | {flops / median / PEAK_FLOPS:.1%} |"


def make_batch(vocab_size: int, documents: Case) -> dict[str, np.ndarray]:
    """Random tokens in the documents' rows, one micro-batch."""
    segment_ids = documents.segment_ids()
    rows, T = segment_ids.shape
    positions = np.stack(
        [
            np.concatenate([np.arange(n, dtype=np.int32) for n in row])
            for row in documents.document_lengths()
        ]
    )
    tokens = np.random.default_rng(0).integers(0, vocab_size, (rows, T + 1), dtype=np.int32)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": positions,
        "segment_ids": segment_ids,
        "loss_mask": np.ones((rows, T), np.float32),
    }
    return {key: value[None] for key, value in batch.items()}


if __name__ == "__main__":
    main()
