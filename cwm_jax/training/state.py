"""The arrays of a run between two steps, and how they lie on the mesh."""

from __future__ import annotations

import dataclasses
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
    """Where every array of the state lies: moments beside their parameters, counters everywhere."""
    shapes = abstract_state(run_config)
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = tree_shardings(mesh, logical_axes(run_config.model), shapes.params)
    opt_state = optax.tree.map_params(
        make_optimizer(run_config.optimizer),
        lambda _, sharding: sharding,
        shapes.opt_state,
        params,
        transform_non_params=lambda _: everywhere,
    )
    rest = jax.tree.map(lambda _: everywhere, dataclasses.replace(shapes, params={}, opt_state=()))
    return dataclasses.replace(rest, params=params, opt_state=opt_state)


def init_sharded_state(run_config: RunConfig, mesh: Mesh) -> TrainState:
    """``init_state`` from the run's seed, each array made where it belongs."""
    make = jax.jit(
        lambda key: init_state(run_config, key), out_shardings=state_shardings(run_config, mesh)
    )
    with jax.set_mesh(mesh):
        return make(jax.random.key(run_config.seed))
