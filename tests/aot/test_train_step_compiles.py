"""Contract: the train step of the 32B model compiles with our kernels under the sharding rules.

The step that the loop runs, for 64 devices that are not there: fully sharded over 16, tensor
parallel over 4, one row of 8192 packed tokens for each tensor group. Nothing is run.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from aot.targets import gpu_target, has_gpu_compiler
from jax.experimental import topologies

from cwm_jax.config import BatchConfig, MeshConfig
from cwm_jax.sharding import batch_sharding, make_mesh
from cwm_jax.training.plan import make_plan
from cwm_jax.training.state import abstract_state, state_shardings
from cwm_jax.training.step import make_train_step

T, ROWS = 8192, 16
GIB = 2**30


def compile_step(devices, implementation):
    from configs import pretrain_32b

    config = pretrain_32b.get_config()
    config = dataclasses.replace(
        config,
        mesh=MeshConfig(fsdp=16, tensor=4),
        batch=BatchConfig(max_target_length=T, per_device_batch_size=ROWS / 64),
        execution=dataclasses.replace(config.execution, attention=implementation),
    )
    mesh = make_mesh(config.mesh, devices)
    shardings = state_shardings(config, mesh)

    def placed(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state = jax.tree.map(placed, abstract_state(config), shardings)
    rows = jax.ShapeDtypeStruct((1, ROWS, T), jnp.int32, sharding=batch_sharding(mesh, leading=1))
    batch = dict.fromkeys(("tokens", "targets", "positions", "segment_ids"), rows)
    batch["loss_mask"] = jax.ShapeDtypeStruct(rows.shape, jnp.float32, sharding=rows.sharding)
    plan = make_plan(config, num_devices=mesh.size)
    with jax.set_mesh(mesh):
        step = jax.jit(
            make_train_step(config, plan=plan),
            donate_argnums=0,
            out_shardings=(shardings, None),
        )
        return step.lower(state, batch).compile()


@pytest.mark.aot
@pytest.mark.skipif(not has_gpu_compiler(), reason="needs jax's CUDA plugin")
def test_on_64_h200():
    compiled = compile_step(list(gpu_target("h200", 64).devices.flat), "hopper")
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes + memory.temp_size_in_bytes < 141 * GIB
    assert compiled.as_text().count("mosaic_gpu") >= 3


@pytest.mark.aot
def test_on_64_v5p():
    pytest.importorskip("libtpu")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5p:4x4x4")
    memory = compile_step(topology.devices, "tpu").memory_analysis()
    assert memory.argument_size_in_bytes + memory.temp_size_in_bytes < 95 * GIB
