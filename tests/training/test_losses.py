"""Oracle: the chunked loss against logits that exist all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_batch, tiny_model
from tolerances import ACCUMULATION_RTOL, LOSS_RTOL

from cwm_jax.config import ExecutionConfig, MeshConfig
from cwm_jax.model.transformer import init
from cwm_jax.planning.collectives import collectives
from cwm_jax.sharding import make_mesh, named_sharding
from cwm_jax.training import losses
from cwm_jax.training.losses import chunked_cross_entropy

B, T, D, V = 3, 20, 8, 50
loss = jax.jit(losses.loss, static_argnames=("model_config", "z_loss", "execution"))


def naive(x, kernel, targets, mask, z_loss):
    logits = (x @ kernel).astype(jnp.float32)
    lse = jax.nn.logsumexp(logits, -1)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    return jnp.sum(mask * nll) + z_loss * jnp.sum(mask * lse**2), jnp.sum(mask * nll)


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (B, T, D))
    kernel = jax.random.normal(keys[1], (D, V))
    targets = jax.random.randint(keys[2], (B, T), 0, V)
    return x, kernel, targets, (jax.random.uniform(keys[3], (B, T)) > 0.3).astype(jnp.float32)


@pytest.mark.parametrize("chunk_tokens", [1, 7 * B, 1000])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_agrees_with_the_naive_loss(inputs, chunk_tokens, z_loss):
    x, kernel, targets, mask = inputs

    def ours(x, kernel):
        return chunked_cross_entropy(x, kernel, targets, mask, z_loss, chunk_tokens)

    for a, b in zip(ours(x, kernel), naive(x, kernel, targets, mask, z_loss), strict=True):
        np.testing.assert_allclose(a, b, rtol=LOSS_RTOL)
    got = jax.grad(lambda *a: 2.5 * ours(*a)[0], (0, 1))(x, kernel)
    expected = jax.grad(lambda *a: 2.5 * naive(*a, targets, mask, z_loss)[0], (0, 1))(x, kernel)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def test_loss_is_a_mean_over_counted_tokens_and_reports_the_plain_cross_entropy():
    config = tiny_model()
    params = init(config, jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, random_batch((2, 32)))
    plain, metrics = loss(params, config, batch)
    with_z, metrics_z = loss(params, config, batch, z_loss=1e-2)
    np.testing.assert_allclose(plain, metrics["cross_entropy"], rtol=LOSS_RTOL)
    np.testing.assert_allclose(metrics["cross_entropy"], metrics_z["cross_entropy"], rtol=LOSS_RTOL)
    assert with_z > plain
    assert float(metrics["num_targets"]) == batch["loss_mask"].sum()
    assert abs(float(plain) - np.log(config.vocab_size)) < 1.0


def test_packing_changes_no_loss():
    config = tiny_model()
    params = init(config, jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, random_batch((1, 32)))
    execution = ExecutionConfig(loss_chunk_tokens=7)
    whole, metrics = loss(params, config, batch, execution=execution)
    total = 0.0
    for segment in (1, 2, 3):
        keep = np.flatnonzero(np.asarray(batch["segment_ids"])[0] == segment)
        one = {k: v[:, keep[0] : keep[-1] + 1] for k, v in batch.items()}
        value, part = loss(params, config, one, execution=execution)
        total += float(value) * float(part["num_targets"])
    np.testing.assert_allclose(total / float(metrics["num_targets"]), whole, rtol=ACCUMULATION_RTOL)


def test_all_logits_never_exist():
    B, T, D, V = 2, 512, 16, 4096
    x, kernel = (
        jax.ShapeDtypeStruct((B, T, D), jnp.float32),
        jax.ShapeDtypeStruct((D, V), jnp.float32),
    )
    targets = jax.ShapeDtypeStruct((B, T), jnp.int32)

    def peak(fun):
        grad = jax.grad(fun, (0, 1))
        return (
            jax.jit(grad).lower(x, kernel, targets).compile().memory_analysis().temp_size_in_bytes
        )

    ones = jnp.ones((B, T))
    ours = peak(lambda x, k, t: chunked_cross_entropy(x, k, t, ones, 0.0, 64)[0])
    assert peak(lambda x, k, t: naive(x, k, t, ones, 0.0)[0]) > 4 * B * T * V  # the guard can fail
    assert ours < 4 * B * T * V / 4


def test_the_head_is_gathered_and_its_gradient_summed_once_for_all_chunks():
    """Over the axes that cut tokens; along tensor each chunk's sums are completed."""
    rows, D, V = 8, 16, 64
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))

    def placed(axes, *shape, dtype=jnp.float32):
        sharding = named_sharding(mesh, axes, shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    arguments = (
        placed(("batch", "seq", None), rows, 32, D),
        placed(("embed", "vocab"), D, V),
        placed(("batch", "seq"), rows, 32, dtype=jnp.int32),
        placed(("batch", "seq"), rows, 32),
    )
    gradient = jax.grad(lambda *x: chunked_cross_entropy(*x, 0.0, 4 * 4)[0], (0, 1))
    with jax.set_mesh(mesh):
        text = jax.jit(gradient).lower(*arguments).compile().as_text()
    sent = collectives(text, mesh.shape)
    in_the_loop = [item for item in sent if item.executions == 32 // 2 // 4]
    assert in_the_loop and {item.axes for item in in_the_loop} == {("tensor",)}
    once = {item.kind for item in sent if item.executions == 1 and "fsdp" in item.axes}
    assert {"all-gather", "reduce-scatter"} <= once
