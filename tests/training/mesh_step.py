"""One step of plain gradient descent on a mesh; as a command, on meshes of two processes.

python -m training.mesh_step PORT PROCESS FOLDER
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from tiny import random_batch, tiny_model, tiny_run
from tolerances import ACCUMULATION_RTOL, LOSS_RTOL

from cwm_jax.config import BatchConfig, MeshConfig
from cwm_jax.sharding import MESH_AXES, make_mesh, process_rows, put_batch
from cwm_jax.training.plan import make_plan
from cwm_jax.training.state import init_state, state_shardings
from cwm_jax.training.step import make_train_step

ROWS, T = 8, 64
MODEL = tiny_model(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=16,
    num_key_value_heads=8,
)
BATCH = random_batch((1, ROWS, T))
TWO_PROCESS_MESHES = (1, 2, 2, 2), (2, 1, 4, 1), (1, 8, 1, 1)


@dataclasses.dataclass(frozen=True)
class OneStep:
    """Loss, and the leaves of the parameters before and after."""

    loss: float
    before: list[np.ndarray]
    after: list[np.ndarray]

    def save(self, path: Path) -> None:
        arrays = {f"before_{i}": x for i, x in enumerate(self.before)}
        arrays |= {f"after_{i}": x for i, x in enumerate(self.after)}
        np.savez(path, loss=self.loss, **arrays)

    @classmethod
    def load(cls, path: Path) -> OneStep:
        with np.load(path) as file:
            count = len(file.files) // 2
            before, after = (
                [file[f"{part}_{i}"] for i in range(count)] for part in ("before", "after")
            )
            return cls(float(file["loss"]), before, after)


def one_step(folder: Path, sizes, *, attention_cap=None, **execution) -> OneStep:
    """A step with learning rate 1 on a mesh of these sizes."""
    mesh_config = MeshConfig(**dict(zip(MESH_AXES, sizes, strict=True)))
    num_devices = int(np.prod(sizes))
    config = tiny_run(
        folder,
        model=MODEL,
        mesh=mesh_config,
        batch=BatchConfig(max_target_length=T, per_device_batch_size=ROWS / num_devices),
    )
    config = dataclasses.replace(
        config,
        optimizer=dataclasses.replace(
            config.optimizer,
            learning_rate=1.0,
            schedule="constant",
            gradient_clipping_threshold=None,
        ),
        execution=dataclasses.replace(config.execution, **execution),
    )
    mesh = make_mesh(mesh_config, jax.devices()[:num_devices])
    step = make_train_step(
        config,
        plan=make_plan(config, num_devices=num_devices),
        optimizer=optax.sgd(-1.0),
        attention_cap=attention_cap,
    )
    rows = process_rows(mesh, ROWS)
    own = {name: value[:, rows] for name, value in BATCH.items()}
    shardings = state_shardings(config, mesh).params
    start = jax.device_get(init_state(config, jax.random.key(0), optimizer=optax.sgd(-1.0)))
    with jax.set_mesh(mesh):
        params = jax.tree.map(_place, start.params, shardings)
        state = dataclasses.replace(start, params=params)
        new, metrics = jax.jit(step)(state, put_batch(own, mesh, rows=rows, num_rows=ROWS))
    for leaf, sharding in zip(jax.tree.leaves(new.params), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    after = multihost_utils.process_allgather(new.params, tiled=True)
    return OneStep(float(metrics["loss"]), jax.tree.leaves(start.params), jax.tree.leaves(after))


def check_equal(found: OneStep, expected: OneStep) -> None:
    """To rounding: the loss, and of each leaf the change, relative to the change's norm."""
    np.testing.assert_allclose(found.loss, expected.loss, rtol=LOSS_RTOL)
    for a, b, start, same in zip(
        found.after, expected.after, expected.before, found.before, strict=True
    ):
        np.testing.assert_array_equal(start, same)
        assert np.linalg.norm(a - b) <= ACCUMULATION_RTOL * np.linalg.norm(b - start) > 0


def _place(x: np.ndarray, sharding) -> jax.Array:
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def main() -> None:
    port, process, folder = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    for sizes in TWO_PROCESS_MESHES:
        found = one_step(Path(folder), sizes)
        if process == "0":
            found.save(Path(folder) / f"{'x'.join(map(str, sizes))}.npz")


if __name__ == "__main__":
    main()
