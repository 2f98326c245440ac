"""What a step keeps, and where: remat policies, arrays on the host, donation, the loss's logits."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_batch, tiny_model, tiny_run
from tolerances import ACCUMULATION_RTOL, LOSS_RTOL

from cwm_jax.config import (
    REMAT_POLICIES,
    REMAT_TENSORS,
    BatchConfig,
    ExecutionConfig,
    MeshConfig,
)
from cwm_jax.model.transformer import abstract_params, hidden_states, init
from cwm_jax.sharding import make_mesh, put_batch
from cwm_jax.training import checkpoint as ckpt
from cwm_jax.training import losses
from cwm_jax.training.plan import make_plan
from cwm_jax.training.state import (
    abstract_state,
    check_host_memory,
    init_sharded_state,
    state_shardings,
)
from cwm_jax.training.step import make_train_step

B, T = 8, 32
MODEL = tiny_model(num_hidden_layers=3)  # a group that is scanned once, and a tail
MESH = MeshConfig(fsdp=2, context=2, tensor=2)
EVERY_TENSOR = {"remat_policy": "full", "remat_offload": REMAT_TENSORS}
POLICIES = [{"remat_policy": name} for name in REMAT_POLICIES] + [EVERY_TENSOR]


def execution(**changes) -> ExecutionConfig:
    return ExecutionConfig(attention="chunked", attention_block_tokens=8, **changes)


def loss_and_gradient(mesh, **changes):
    params = init(MODEL, jax.random.key(0))
    batch = {name: x[0] for name, x in random_batch((1, B, T)).items()}

    def fun(params, batch):
        return losses.loss(params, MODEL, batch, execution=execution(**changes))[0]

    run = jax.jit(jax.value_and_grad(fun))
    if mesh is None:
        return jax.device_get(run(params, batch))
    with jax.set_mesh(mesh):
        return jax.device_get(run(params, put_batch(batch, mesh)))


@pytest.fixture(scope="module")
def kept_all():
    return loss_and_gradient(None)


def assert_same(found, kept_all):
    np.testing.assert_allclose(found[0], kept_all[0], rtol=LOSS_RTOL)
    for a, b in zip(*map(jax.tree.leaves, (found[1], kept_all[1])), strict=True):
        assert np.linalg.norm(a - b) <= ACCUMULATION_RTOL * np.linalg.norm(b)


@pytest.mark.parametrize("changes", POLICIES, ids=[*REMAT_POLICIES, "all offloaded"])
def test_no_policy_changes_loss_or_gradient(kept_all, changes):
    assert_same(loss_and_gradient(make_mesh(MESH), **changes), kept_all)


@pytest.mark.parametrize("changes", POLICIES[-2:], ids=[POLICIES[-2]["remat_policy"], "offloaded"])
def test_no_policy_changes_them_on_one_device(kept_all, changes):
    assert_same(loss_and_gradient(None, **changes), kept_all)


def kept_bytes(**changes) -> dict[str, int]:
    """What the backward pass of the layers is handed, by memory."""

    def fun(params, tokens):
        def of(params):
            return hidden_states(params, MODEL, tokens, execution=execution(**changes))

        return jax.vjp(of, params)[1]

    tokens = jax.ShapeDtypeStruct((B, T), jnp.int32)
    kept = {"Device": 0, "Host": 0}
    for array in jax.make_jaxpr(fun)(abstract_params(MODEL), tokens).out_avals:
        kept[array.memory_space.name] += math.prod(array.shape) * array.dtype.itemsize
    return kept


def tensor_bytes(*names: str) -> int:
    """float32 bytes of these tensors in all layers, from their widths."""
    D, F, H = MODEL.hidden_size, MODEL.intermediate_size, MODEL.head_dim
    N, K = MODEL.num_attention_heads, MODEL.num_key_value_heads
    widths = dict(layer_input=D, mlp_input=D, query=N * H, key=K * H, value=K * H)
    widths |= dict(gate=F, up=F, attention=N * H + N)
    return 4 * B * T * MODEL.num_hidden_layers * sum(widths[name] for name in names)


@pytest.mark.parametrize("policy", REMAT_POLICIES)
def test_a_policy_keeps_the_tensors_it_names_and_no_others(policy):
    full, kept = kept_bytes(remat_policy="full"), kept_bytes(remat_policy=policy)
    assert kept["Device"] - full["Device"] == tensor_bytes(*REMAT_POLICIES[policy])
    assert kept_bytes(remat_policy="none")["Device"] > kept["Device"]
    assert not kept["Host"]


def test_named_tensors_are_kept_besides_or_on_the_host():
    full = kept_bytes(remat_policy="full")["Device"]
    saved = kept_bytes(remat_policy="full", remat_save=("attention",))
    assert saved == {"Device": full + tensor_bytes("attention"), "Host": 0}
    moved = kept_bytes(remat_policy="full", remat_offload=("layer_input", "attention"))
    assert moved["Device"] == full - tensor_bytes("layer_input")
    assert moved["Host"] == tensor_bytes("layer_input", "attention")
    dots = kept_bytes(remat_policy="dots")["Device"]
    moved = kept_bytes(remat_policy="dots", remat_offload=("gate", "up"))
    assert moved == {
        "Device": dots - tensor_bytes("gate", "up"),
        "Host": tensor_bytes("gate", "up"),
    }


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"remat_policy": "full", "remat_save": ("atention",)}, "did you mean 'attention'"),
        ({"remat_policy": "full", "remat_save": ("layer_input",)}, "tensors of a layer: query"),
        ({"remat_policy": "full", "remat_save": ("up",), "remat_offload": ("up",)}, "one place"),
        ({"remat_offload": ("up",)}, "remat_policy none"),
    ],
)
def test_what_cannot_be_kept_so_is_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        ExecutionConfig(**changes)


# ---------------------------------------------------------------- the optimizer's moments


def run_config(folder, memory="device", **changes):
    config = tiny_run(
        folder,
        model=MODEL,
        mesh=MESH,
        batch=BatchConfig(max_target_length=T, per_device_batch_size=B / 8),
        **changes,
    )
    settings = dataclasses.replace(config.execution, optimizer_memory=memory)
    return dataclasses.replace(config, execution=settings)


def compiled_step(config, mesh, state, batch):
    step = jax.jit(
        make_train_step(config, plan=make_plan(config)),
        donate_argnums=0,
        out_shardings=(state_shardings(config, mesh), None),
    )
    with jax.set_mesh(mesh):
        return step.lower(state, batch).compile()


def memory_of_moments(state) -> set[str]:
    return {x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state) if x.ndim}


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    """Config, mesh, program and the state after two steps, by memory of the moments."""
    found = {}
    for memory in ("device", "pinned_host"):
        config = run_config(tmp_path_factory.mktemp(memory), memory)
        mesh = make_mesh(config.mesh)
        state, batch = init_sharded_state(config, mesh), put_batch(random_batch((1, B, T)), mesh)
        assert memory_of_moments(state) == {memory}
        program = compiled_step(config, mesh, state, batch)
        for _ in range(2):
            state, _ = program(state, batch)
        found[memory] = config, mesh, program, state
    return found


def test_moments_on_the_host_stay_there_and_change_no_bit(stepped):
    (*_, device), (*_, host) = stepped["device"], stepped["pinned_host"]
    assert memory_of_moments(device) == {"device"}
    assert memory_of_moments(host) == {"pinned_host"}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(device), jax.device_get(host))


def test_the_plan_counts_what_is_on_the_host_apart(stepped):
    device, host = (make_plan(stepped[memory][0]) for memory in ("device", "pinned_host"))
    moments = host.host_state_bytes_per_device
    assert host.state_bytes_per_device + moments == device.state_bytes_per_device
    assert moments / device.state_bytes_per_device == pytest.approx(2 / 3, abs=0.01)
    assert f"; {moments:,} more in the host's memory)" in host.describe()
    assert "host" not in device.describe()


@pytest.mark.parametrize(
    ("saved", "restored"), [("pinned_host", "device"), ("device", "pinned_host")]
)
def test_a_checkpoint_is_read_into_either_memory(tmp_path, stepped, saved, restored):
    import orbax.checkpoint as ocp

    state = stepped[saved][3]
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as orbax:
        orbax.save(tmp_path / "1" / ckpt.STATE_FOLDER, args=ocp.args.PyTreeSave(state))
    config, mesh, *_ = stepped[restored]
    back = ckpt.restore(tmp_path / "1", abstract_state(config), state_shardings(config, mesh))
    assert memory_of_moments(back) == {restored}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(back), jax.device_get(state))


def test_a_device_without_host_memory_is_named_at_the_start(tmp_path):
    class Device:
        device_kind = "toaster"

        def addressable_memories(self):
            return [dataclasses.make_dataclass("Memory", ["kind"])("device")]

    check_host_memory(run_config(tmp_path), [Device()])
    check_host_memory(run_config(tmp_path, "pinned_host"), jax.devices())
    with pytest.raises(ValueError, match="optimizer_memory='pinned_host': toaster has no memory"):
        check_host_memory(run_config(tmp_path, "pinned_host"), [Device()])


# ---------------------------------------------------------------- donation, logits


def test_a_step_reuses_the_memory_of_the_whole_state(stepped):
    config, _, program, _ = stepped["device"]
    on_a_device = make_plan(config).state_bytes_per_device
    assert program.memory_analysis().alias_size_in_bytes == on_a_device


@pytest.mark.parametrize(("chunk_tokens", "whole"), [(4, False), (10**6, True)])
def test_logits_of_all_tokens_exist_on_no_device(tmp_path, chunk_tokens, whole):
    """The second case shows that the search finds them."""
    config = run_config(tmp_path)
    settings = dataclasses.replace(config.execution, loss_chunk_tokens=chunk_tokens)
    config = dataclasses.replace(config, execution=settings)
    mesh = make_mesh(config.mesh)
    batch = put_batch(random_batch((1, B, T)), mesh)
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        abstract_state(config),
        state_shardings(config, mesh),
    )
    text = compiled_step(config, mesh, state, batch).as_text()
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"\w\d+\[([\d,]+)\]", text)}
    vocabulary = MODEL.vocab_size // MESH.tensor
    logits = [s for s in shapes if vocabulary in s and math.prod(s) >= B * T // 4 * vocabulary]
    assert bool(logits) == whole, logits
