"""Oracle: every mesh of eight devices computes what one device does, on packed rows."""

import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest
from tiny import random_batch, tiny_model, tiny_run
from tolerances import ACCUMULATION_RTOL, LOSS_RTOL

from cwm_jax.config import BatchConfig, MeshConfig
from cwm_jax.sharding import make_mesh, put_batch
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
SHAPES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=4) if np.prod(sizes) == 8]
BATCH = random_batch((1, ROWS, T))


def one_step(folder, sizes, *, attention_cap=None, **execution):
    """Loss, and parameters after one step of plain gradient descent with learning rate 1."""
    mesh_config = MeshConfig(**dict(zip(("data", "fsdp", "context", "tensor"), sizes, strict=True)))
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
    params = state_shardings(config, mesh).params
    with jax.set_mesh(mesh):
        state = init_state(config, jax.random.key(0), optimizer=optax.sgd(-1.0))
        state = dataclasses.replace(state, params=jax.device_put(state.params, params))
        new, metrics = jax.jit(step)(state, put_batch(BATCH, mesh))
    for leaf, sharding in zip(jax.tree.leaves(new.params), jax.tree.leaves(params), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    return float(metrics["loss"]), jax.device_get(state.params), jax.device_get(new.params)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return one_step(tmp_path_factory.mktemp("single"), (1, 1, 1, 1))


def check_equal(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=LOSS_RTOL)
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])
    for a, b, start in zip(*map(jax.tree.leaves, (found[2], expected[2], found[1])), strict=True):
        assert np.linalg.norm(a - b) <= ACCUMULATION_RTOL * np.linalg.norm(b - start)


@pytest.mark.parametrize("sizes", SHAPES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_every_mesh_of_eight_devices_equals_one(tmp_path, single, sizes):
    check_equal(one_step(tmp_path, sizes), single)
