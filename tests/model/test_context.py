"""Context parallelism: exchanges equal one device, and a local layer's do not grow with the row."""

import dataclasses
import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_batch, sharp_params, tiny_model
from tolerances import ACCUMULATION_RTOL, LOSS_RTOL

from cwm_jax.config import ExecutionConfig, MeshConfig
from cwm_jax.model.context import Exchange, Gathered, Halo, RowLayout, make_exchange, row_layout
from cwm_jax.model.transformer import abstract_params, hidden_states, logical_axes
from cwm_jax.planning.collectives import collectives
from cwm_jax.sharding import batch_sharding, make_mesh, put_batch, tree_shardings
from cwm_jax.training.losses import loss_sums

LAYOUTS = "contiguous", "zigzag"
MESH = MeshConfig(fsdp=1, context=8)


def gradients(model, layout, attention_cap=None):
    in_order = {"context_layout": layout} if layout else {}
    execution = ExecutionConfig(loss_chunk_tokens=16, attention="chunked", **in_order)

    def mean_loss(params, batch):
        sums = loss_sums(
            params, model, batch, execution=execution, attention_cap=attention_cap, z_loss=1e-4
        )
        return sums.objective / sums.num_targets

    return jax.jit(jax.value_and_grad(mean_loss))


def sent(model, T, layout):
    """Bytes that one device sends, by kind of collective, for the gradient over a row of T."""

    def objective(params, batch):
        batch.pop("targets"), batch.pop("loss_mask")
        x = hidden_states(params, model, **batch, layout=row_layout(layout))
        return (x.astype(jnp.float32) ** 2).sum()

    mesh = make_mesh(MESH)
    with jax.set_mesh(mesh):
        shapes = abstract_params(model)
        params = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            tree_shardings(mesh, logical_axes(model), shapes),
        )
        sharding = batch_sharding(mesh)
        batch = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            for name, x in random_batch((1, T)).items()
        }
        text = jax.jit(jax.grad(objective)).lower(params, batch).compile().as_text()
    found = Counter()
    for collective in collectives(text, mesh.shape):
        assert collective.axes == ("context",)
        found[collective.kind] += collective.total_bytes
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_local_layer_exchanges_does_not_grow_with_the_row(layout):
    local = tiny_model(num_hidden_layers=1, layer_types=("sliding_attention",))
    everywhere = tiny_model(num_hidden_layers=1, layer_types=("full_attention",))
    short, long = (sent(local, T, layout) for T in (512, 1024))
    assert short == long
    # keys and values of W - 1 positions for each piece and their gradients, in float32, and the
    # segment ids of a piece
    halo, K, H = local.sliding_window - 1, local.num_key_value_heads, local.head_dim
    halos = RowLayout(layout, 8).slots * halo * (2 * 2 * K * H + 1) * 4
    assert short["collective-permute"] == pytest.approx(halos, rel=0.15)
    short_all, long_all = (sent(everywhere, T, layout) for T in (512, 1024))
    assert not short_all["collective-permute"]
    assert long_all.total() - short_all.total() > 10 * halos


@functools.cache
def of_one_device(model, attention_cap):
    """Parameters, a batch, its loss and their gradient."""
    params, batch = sharp_params(model), random_batch((2, 64))
    return params, batch, gradients(model, None, attention_cap)(params, batch)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("window", "attention_cap"), [(2, 24), (8, None), (21, None), (60, None)])
def test_every_exchange_equals_one_device(layout, window, attention_cap):
    """With pieces of 8 or 4 positions: windows within one, of several, and of the whole row."""
    model = tiny_model(num_hidden_layers=2, sliding_window=window)
    params, batch, expected = of_one_device(model, attention_cap)
    mesh = make_mesh(MESH)
    with jax.set_mesh(mesh):
        shardings = tree_shardings(mesh, logical_axes(model), abstract_params(model))
        found = gradients(model, layout, attention_cap)(
            jax.device_put(params, shardings), put_batch(batch, mesh)
        )
    np.testing.assert_allclose(found[0], expected[0], rtol=LOSS_RTOL)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        assert np.linalg.norm(a - b) <= ACCUMULATION_RTOL * np.linalg.norm(b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_hold_every_piece_once(layout):
    rows = RowLayout(layout, 4)
    places = [rows.piece(i, slot) for i in range(rows.num_shards) for slot in range(rows.slots)]
    assert sorted(places) == list(range(rows.num_pieces))
    for piece in places:
        assert rows.piece(*rows.owner(piece)) == piece
    x = jnp.arange(2 * 16).reshape(2, 16)
    np.testing.assert_array_equal(rows.restore(rows.arrange(x)), x)


def test_zigzag_gives_every_device_the_same_causal_work():
    rows = RowLayout("zigzag", 4)
    work = [sum(rows.piece(i, slot) + 1 for slot in range(2)) for i in range(4)]
    assert len(set(work)) == 1


def test_the_exchange_that_moves_fewer_keys_is_chosen():
    one, eight = RowLayout("zigzag", 1), RowLayout("zigzag", 8)
    assert type(make_exchange(one, 64, 8)) is Exchange
    assert isinstance(make_exchange(eight, 64, 8), Halo)
    assert isinstance(make_exchange(eight, 64, None), Gathered)
    assert isinstance(make_exchange(eight, 64, 60), Gathered)
    # at the sizes of CWM a local layer sends 14 times less than all keys, 7 times in zigzag
    for layout, less in (("contiguous", 14), ("zigzag", 7)):
        exchange = make_exchange(RowLayout(layout, 8), 131_072, 8192)
        assert isinstance(exchange, Halo)
        halo = exchange.halo * exchange.layout.slots
        assert round(131_072 * 7 / 8 / halo) == less


def test_rows_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match="rows of 72 tokens do not divide into 16 pieces"):
        make_exchange(RowLayout("zigzag", 8), 72, 8)
    assert dataclasses.astuple(RowLayout("contiguous", 8)) == ("contiguous", 8)
