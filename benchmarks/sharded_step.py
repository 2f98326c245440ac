"""What sharding itself costs: the same training step on one device and on meshes of eight, on CPU.

    python -m benchmarks.sharded_step [--rounds 5]

The eight devices are virtual and share this machine's cores, so nothing gets faster: the table
shows what XLA's partitioner, collectives and dispatch add to compiling and to a step of the same
work, and what one device sends in it. Every mesh has a process of its own; rounds alternate, and
the table gives medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time

MESHES = (
    (1, 1, 1, 1),
    (8, 1, 1, 1),
    (1, 8, 1, 1),
    (1, 1, 8, 1),
    (1, 1, 1, 8),
    (2, 2, 2, 1),
    (1, 2, 2, 2),
)
T, ROWS, STEPS = 512, 8, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mesh", help="measure once, in this process: 1x8x1x1")
    args = parser.parse_args()
    if args.mesh:
        print(json.dumps(dataclasses.asdict(measure(tuple(map(int, args.mesh.split("x")))))))
        return
    found: dict[str, list[Measured]] = {"x".join(map(str, sizes)): [] for sizes in MESHES}
    for _ in range(args.rounds):
        for name in found:
            command = [sys.executable, "-m", "benchmarks.sharded_step", "--mesh", name]
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
            env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
            found[name].append(Measured(**json.loads(output.stdout)))
    print("| data x fsdp x context x tensor | stage s | compile s | step s | sent MB |")
    print("|---|---|---|---|---|")
    for name, rounds in found.items():
        columns = zip(*map(dataclasses.astuple, rounds), strict=True)
        stage, compile_, step, sent = (statistics.median(column) for column in columns)
        print(f"| {name} | {stage:.2f} | {compile_:.2f} | {step:.3f} | {sent / 1e6:.1f} |")


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of one mesh in one process; the bytes are those that a device sends in a step."""

    stage_s: float
    compile_s: float
    step_s: float
    sent_bytes: float


def measure(sizes: tuple[int, ...]) -> Measured:
    """Compiles a step of a small model on a mesh of these sizes and runs it a few times."""
    import jax
    import numpy as np

    from configs import quickstart_code
    from cwm_jax.config import BatchConfig, ExecutionConfig, MeshConfig
    from cwm_jax.planning.collectives import collectives
    from cwm_jax.sharding import MESH_AXES, make_mesh, put_batch
    from cwm_jax.training.plan import make_plan
    from cwm_jax.training.state import init_sharded_state, state_shardings
    from cwm_jax.training.step import compiler_options, make_train_step

    model = dataclasses.replace(
        quickstart_code.get_config().model,
        hidden_size=256,
        intermediate_size=896,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=32,
        sliding_window=64,
    )
    num_devices = int(np.prod(sizes))
    config = dataclasses.replace(
        quickstart_code.get_config(),
        model=model,
        mesh=MeshConfig(**dict(zip(MESH_AXES, sizes, strict=True))),
        batch=BatchConfig(max_target_length=T, per_device_batch_size=ROWS / num_devices),
        execution=ExecutionConfig(remat_policy="full"),
    )
    mesh = make_mesh(config.mesh, jax.devices()[:num_devices])
    tokens = np.random.default_rng(0).integers(model.vocab_size, size=(1, ROWS, T + 1))
    tokens = tokens.astype(np.int32)
    batch = {
        "tokens": tokens[..., :-1],
        "targets": tokens[..., 1:],
        "positions": np.broadcast_to(np.arange(T, dtype=np.int32), (1, ROWS, T)),
        "segment_ids": np.ones((1, ROWS, T), np.int32),
        "loss_mask": np.ones((1, ROWS, T), np.float32),
    }
    with jax.set_mesh(mesh):
        state, placed = init_sharded_state(config, mesh), put_batch(batch, mesh)
        start = time.perf_counter()
        step = jax.jit(
            make_train_step(config, plan=make_plan(config, num_devices=num_devices)),
            donate_argnums=0,
            out_shardings=(state_shardings(config, mesh), None),
            compiler_options=compiler_options(),
        )
        lowered = step.lower(state, placed)
        staged = time.perf_counter()
        compiled = lowered.compile()
        done = time.perf_counter()
        seconds = []
        for _ in range(STEPS):
            begin = time.perf_counter()
            state, metrics = compiled(state, placed)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - begin)
    sent = sum(c.total_bytes for c in collectives(compiled.as_text(), mesh.shape))
    return Measured(staged - start, done - staged, statistics.median(seconds[1:]), sent)


if __name__ == "__main__":
    main()
