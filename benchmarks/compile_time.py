"""Compile time of a training step at 8 and at 64 layers: scanned, so depth is nearly free.

    python -m benchmarks.compile_time [--unrolled]

The model is quickstart_code's with more layers. Every compile has a process of its own, the depths
alternate, and the table gives medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

DEPTHS = (8, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--unrolled", action="store_true", help="scan_layers=false, for comparison")
    parser.add_argument("--depth", type=int, help="measure once, in this process")
    args = parser.parse_args()
    if args.depth:
        print(*compile_seconds(args.depth, scan=not args.unrolled))
        return
    times = {depth: [] for depth in DEPTHS}
    for _ in range(args.rounds):
        for depth in DEPTHS:
            command = [sys.executable, "-m", "benchmarks.compile_time", "--depth", str(depth)]
            command += ["--unrolled"] if args.unrolled else []
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            times[depth].append([float(x) for x in output.split()])
    print("| layers | stage s | compile s | both s |\n|---|---|---|---|")
    both = {}
    for depth in DEPTHS:
        stage, compile_ = (statistics.median(t) for t in zip(*times[depth], strict=True))
        both[depth] = stage + compile_
        print(f"| {depth} | {stage:.2f} | {compile_:.2f} | {both[depth]:.2f} |")
    print(f"ratio {both[DEPTHS[1]] / both[DEPTHS[0]]:.2f}")


def compile_seconds(num_layers: int, *, scan: bool) -> tuple[float, float]:
    """Seconds to stage and to compile the training step."""
    import jax
    import jax.numpy as jnp

    from configs import quickstart_code
    from cwm_jax.config import BatchConfig, ExecutionConfig, layer_types_3_to_1
    from cwm_jax.training.state import abstract_state
    from cwm_jax.training.step import compiler_options, make_train_step

    T = 512
    config = quickstart_code.get_config()
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model, num_hidden_layers=num_layers, layer_types=layer_types_3_to_1(num_layers)
        ),
        batch=BatchConfig(max_target_length=T, per_device_batch_size=1.0),
        execution=ExecutionConfig(scan_layers=scan, remat_policy="full"),
    )
    names = ("tokens", "targets", "positions", "segment_ids")
    batch = {name: jax.ShapeDtypeStruct((1, T), jnp.int32) for name in names}
    batch["loss_mask"] = jax.ShapeDtypeStruct((1, T), jnp.float32)
    state = abstract_state(config)
    start = time.perf_counter()
    step = jax.jit(make_train_step(config), donate_argnums=0, compiler_options=compiler_options())
    lowered = step.lower(state, batch)
    staged = time.perf_counter()
    lowered.compile()
    return staged - start, time.perf_counter() - staged


if __name__ == "__main__":
    main()
