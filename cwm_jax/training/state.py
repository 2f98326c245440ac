"""The arrays of a run between two steps, and how they lie on the mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from cwm_jax.config import RunConfig
from cwm_jax.model.transformer import Params, init, logical_axes
from cwm_jax.sharding import tree_shardings
from cwm_jax.training.optimizer import make_optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Parameters, optimizer state and counters; the rest of a checkpoint is on the host."""

    params: Params
    opt_state: Any
    step: jax.Array
    """int32: steps done, skipped ones included."""
    skipped_steps: jax.Array
    """int32: steps whose loss or gradient was not finite."""
    skipped_in_a_row: jax.Array
    """int32: such steps since the last good one."""
    key: jax.Array
    """uint32[2] data of a JAX random key, for what a run draws after its start."""


def init_state(
    run_config: RunConfig,
    key: jax.Array,
    *,
    optimizer: optax.GradientTransformation | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
        run_config: the run.
        key: a JAX random key; the parameters depend on it and on the architecture alone.
        optimizer: replaces the run's AdamW, for ablations; its updates are scaled by the learning
            rate.
    """
    init_key, run_key = jax.random.split(key)
    params = init(run_config.model, init_key, dtype=run_config.execution.weight_dtype)
    optimizer = optimizer or make_optimizer(run_config.optimizer)
    return TrainState(
        params=params,
        opt_state=optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
        skipped_steps=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(run_key),
    )


def abstract_state(run_config: RunConfig) -> TrainState:
    """Shapes and dtypes of ``init_state``'s result."""
    return jax.eval_shape(lambda: init_state(run_config, jax.random.key(0)))


def state_shardings(run_config: RunConfig, mesh: Mesh | AbstractMesh) -> TrainState:
    """Where every array of the state lies: moments as their parameters, counters everywhere.

    With ``execution.optimizer_memory="pinned_host"`` the moments are in the memory of the host that
    their device belongs to.

    Raises:
        ValueError: the devices have no such memory (GPUs that are not there do not list theirs).
    """
    shapes = abstract_state(run_config)
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = tree_shardings(mesh, logical_axes(run_config.model), shapes.params)
    memory = run_config.execution.optimizer_memory
    opt_state = optax.tree.map_params(
        make_optimizer(run_config.optimizer),
        lambda _, sharding: _in_memory(sharding, memory),
        shapes.opt_state,
        params,
        transform_non_params=lambda _: everywhere,
    )
    rest = jax.tree.map(lambda _: everywhere, dataclasses.replace(shapes, params={}, opt_state=()))
    return dataclasses.replace(rest, params=params, opt_state=opt_state)


def _in_memory(sharding: NamedSharding, kind: str) -> NamedSharding:
    if kind == "device":
        return sharding
    moved = sharding.with_memory_kind(kind)
    if moved.memory_kind != kind:  # JAX drops what a device does not list
        raise ValueError(
            f"execution.optimizer_memory is {kind!r}; the mesh's devices list no such memory: set "
            "optimizer_memory='device'"
        )
    return moved


def check_host_memory(run_config: RunConfig, devices: Sequence[Any]) -> None:
    """Raises ValueError where the run keeps arrays in the host's memory and a device cannot."""
    execution = run_config.execution
    wanted = [f"remat_offload={execution.remat_offload}"] if execution.remat_offload else []
    if execution.optimizer_memory == "pinned_host":
        wanted.append("optimizer_memory='pinned_host'")
    for device in devices if wanted else ():
        kinds = sorted(memory.kind for memory in device.addressable_memories())
        if "pinned_host" not in kinds:
            raise ValueError(
                f"execution.{' and '.join(wanted)}: {device.device_kind} has no memory "
                f"'pinned_host', only {', '.join(kinds)}; expected a backend that has it (CPU, "
                "GPU, TPU): set optimizer_memory='device' and remat_offload=()"
            )


def init_sharded_state(run_config: RunConfig, mesh: Mesh) -> TrainState:
    """``init_state`` from the run's seed, each array made where it belongs."""
    make = jax.jit(
        lambda key: init_state(run_config, key), out_shardings=state_shardings(run_config, mesh)
    )
    with jax.set_mesh(mesh):
        return make(jax.random.key(run_config.seed))
