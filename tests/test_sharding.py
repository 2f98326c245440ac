"""Contract: rules, a mesh of eight devices equals one, the 32B model lays out without devices."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny import VOCAB_SIZE, random_batch, tiny_model, tiny_run
from tolerances import ACCUMULATION_RTOL, LOSS_RTOL

from cwm_jax.config import MeshConfig
from cwm_jax.model.transformer import abstract_params, logical_axes
from cwm_jax.sharding import (
    MESH_AXES,
    abstract_mesh,
    make_mesh,
    mesh_shape,
    named_sharding,
    partition_spec,
    put_batch,
    sharding_table,
    tree_shardings,
)
from cwm_jax.training.plan import make_plan
from cwm_jax.training.state import init_sharded_state, state_shardings
from cwm_jax.training.step import make_train_step


def one_step(config):
    mesh = make_mesh(config.mesh, jax.devices()[: config.mesh.num_devices])
    plan = make_plan(config, num_devices=mesh.size)
    step = jax.jit(
        make_train_step(config, plan=plan), out_shardings=(state_shardings(config, mesh), None)
    )
    with jax.set_mesh(mesh):
        state = init_sharded_state(config, mesh)
        return state, *step(state, put_batch(random_batch((2, 4, 32)), mesh))


def test_a_mesh_of_eight_devices_equals_one(tmp_path):
    sharded = tiny_run(
        tmp_path,
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
        batch=dataclasses.replace(tiny_run(tmp_path).batch, per_device_batch_size=0.5),
    )
    single = tiny_run(tmp_path, rows=4)
    state, new, metrics = one_step(sharded)
    state1, new1, metrics1 = one_step(single)
    jax.tree.map(np.testing.assert_array_equal, state.params, state1.params)
    np.testing.assert_allclose(metrics["loss"], metrics1["loss"], rtol=LOSS_RTOL)
    np.testing.assert_allclose(metrics["grad_norm"], metrics1["grad_norm"], rtol=ACCUMULATION_RTOL)
    # after one step Adam's first moment is the gradient, times 1 - b1
    moments = (jax.tree.leaves(jax.device_get(n.opt_state[0].mu)) for n in (new, new1))
    for a, b in zip(*moments, strict=True):
        assert np.linalg.norm(a - b) <= ACCUMULATION_RTOL * np.linalg.norm(b)
    kernel = new.params["layers"]["0"]["self_attn"]["q_proj"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, ("fsdp", "context"), "tensor", None)
    assert kernel.addressable_shards[0].data.shape == (2, 16, 2, 8)
    mu = new.opt_state[0].mu["layers"]["0"]["self_attn"]["q_proj"]["kernel"]
    assert mu.sharding == kernel.sharding


@pytest.mark.parametrize("name", ["cwm_32b", "cwm_32b_last_global"])
@pytest.mark.parametrize("sizes", [(1, 1024, 1, 2), (1, 256, 1, 8), (4, 16, 4, 4)])
def test_every_weight_of_the_32b_model_lays_out(name, sizes):
    model = importlib.import_module(f"configs.{name}").MODEL
    mesh = abstract_mesh(sizes)
    shardings = tree_shardings(mesh, logical_axes(model), abstract_params(model))
    for leaf, sharding in zip(
        jax.tree.leaves(abstract_params(model)), jax.tree.leaves(shardings), strict=True
    ):
        shard = sharding.shard_shape(leaf.shape)
        if np.prod(leaf.shape) > 10_000_000:  # every large weight is cut into this many parts
            assert np.prod(shard) * np.prod(sizes[1:]) == np.prod(leaf.shape)


def test_sharded_loss_lowers_on_an_abstract_mesh_and_keeps_rows_apart():
    from cwm_jax.training.losses import loss

    model = tiny_model()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        params = tree_shardings(mesh, logical_axes(model), abstract_params(model))
        args = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            abstract_params(model),
            params,
        )
        batch = put_batch(random_batch((8, 32)), mesh)
        text = (
            jax.jit(jax.grad(lambda p, b: loss(p, model, b)[0]))
            .lower(args, batch)
            .compile()
            .as_text()
        )
    assert "all-gather" in text and ("all-reduce" in text or "reduce-scatter" in text)
    assert f"f32[8,32,{VOCAB_SIZE}]" not in text, "logits of all rows on one device"


def test_rules_refuse_unknown_and_doubled_axes():
    with pytest.raises(ValueError, match="unknown logical axis 'embd'"):
        partition_spec(("vocab", "embd"))
    with pytest.raises(ValueError, match="use a mesh axis twice"):
        partition_spec(("vocab", "heads"))


def test_no_name_is_both_logical_and_mesh():
    from cwm_jax.sharding import _RULES

    assert not set(_RULES) & set(MESH_AXES)


def test_indivisible_dimensions_are_refused_not_replicated():
    mesh = abstract_mesh((1, 1, 1, 2))
    with pytest.raises(ValueError, match="'vocab' of size 257 does not divide into 2"):
        named_sharding(mesh, ("vocab", "embed"), (257, 8))


def test_the_error_names_parameter_axis_and_sizes_that_work():
    model = tiny_model(vocab_size=6 * 96)
    mesh = abstract_mesh((1, 4, 2, 5))
    with pytest.raises(ValueError) as refused:
        tree_shardings(mesh, logical_axes(model), abstract_params(model))
    assert str(refused.value) == (
        "parameter embed_tokens.embedding (576, 32): logical axis 'vocab' of size 576 does not "
        "divide into 5 shards (mesh.tensor 5); sizes of mesh.tensor that would work: "
        "1, 2, 3, 4, 6, 8"
    )


def test_table_of_shardings():
    model = tiny_model()
    table = sharding_table(
        abstract_mesh((1, 2, 2, 2)), logical_axes(model), abstract_params(model)
    ).splitlines()
    assert len(table) == 1 + len(jax.tree.leaves(abstract_params(model)))
    row = next(line for line in table if line.startswith("layers.1.self_attn.q_proj.kernel"))
    assert row.split() == [
        "layers.1.self_attn.q_proj.kernel", "2x32x4x8", "-,", "fsdp*context,", "tensor,", "-",
        "2x8x2x8", "0.00",
    ]  # fmt: skip


def test_slices_lie_along_the_outer_part_of_their_axes():
    @dataclasses.dataclass(frozen=True)
    class Device:  # of a TPU: two slices of four chips
        id: int
        slice_index: int
        process_index: int = 0
        platform: str = "tpu"
        device_kind: str = "TPU v5p"

        @property
        def coords(self):
            return (self.id % 4, 0, 0)

        core_on_chip = 0

    devices = [Device(i, i // 4) for i in range(8)]
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2, dcn_data=2), devices)
    assert [d.slice_index for d in mesh.devices[0].flat] == [0] * 4
    assert [d.slice_index for d in mesh.devices[1].flat] == [1] * 4
    with pytest.raises(ValueError, match="describe 4 slices; the devices are in 2"):
        make_mesh(MeshConfig(data=2, fsdp=4, dcn_data=2, dcn_fsdp=2), devices)
    with pytest.raises(ValueError, match="must divide it"):
        make_mesh(MeshConfig(data=1, fsdp=8, dcn_data=2), devices)


def test_mesh_sizes():
    assert mesh_shape(MeshConfig(), 8) == (1, 8, 1, 1)
    assert mesh_shape(MeshConfig(data=2, fsdp=-1, tensor=2), 8) == (2, 2, 1, 2)
    with pytest.raises(ValueError, match="takes 3 devices; got 8"):
        mesh_shape(MeshConfig(data=3, fsdp=1), 8)
    with pytest.raises(ValueError, match="-1 at most once"):
        MeshConfig(data=-1, fsdp=-1)


def test_shard_is_the_identity_without_a_mesh():
    from cwm_jax.sharding import shard

    x = jnp.ones((2, 3, 4))
    assert shard(x, "batch", "seq", "act_embed") is x
    with pytest.raises(ValueError, match="unknown logical axis"):
        shard(x, "batch", "sequence", "act_embed")
