"""Oracle: log-probabilities in chunks against logits that exist all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import LOGPROBS_ATOL

from cwm_jax.config import MeshConfig
from cwm_jax.model.head import token_logprobs
from cwm_jax.sharding import make_mesh, put_batch

B, T, D, V = 2, 20, 8, 50


def naive(x, kernel, targets, temperature):
    logprobs = jax.nn.log_softmax((x @ kernel).astype(jnp.float32) / temperature)
    entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
    return jnp.take_along_axis(logprobs, targets[..., None], -1)[..., 0], entropy


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (B, T, D))
    kernel = jax.random.normal(keys[1], (D, V))
    targets = jax.random.randint(keys[2], (B, T), 0, V)
    return x, kernel, targets, jax.random.normal(keys[3], (B, T))


def check_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=LOGPROBS_ATOL * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("chunk_tokens", [1, 7 * B, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_entropy_and_gradients_are_the_naive_ones(
    inputs, chunk_tokens, temperature
):
    x, kernel, targets, cotangent = inputs

    def ours(x, kernel):
        return token_logprobs(x, kernel, targets, chunk_tokens, temperature)

    def expected(x, kernel):
        return naive(x, kernel, targets, temperature)

    check_equal(ours(x, kernel), expected(x, kernel))
    got = jax.grad(lambda *a: (cotangent * ours(*a)[0]).sum(), (0, 1))(x, kernel)
    check_equal(got, jax.grad(lambda *a: (cotangent * expected(*a)[0]).sum(), (0, 1))(x, kernel))


def test_a_mesh_that_cuts_tokens_and_vocabulary_gives_what_one_device_gives(inputs):
    x, kernel, targets, cotangent = inputs
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))

    def gradients(x, kernel, targets, cotangent):
        def weighted(x, kernel):
            logprobs, entropy = token_logprobs(x, kernel, targets, 6, 0.6)
            return (cotangent * logprobs).sum(), (logprobs, entropy)

        d, found = jax.grad(weighted, (0, 1), has_aux=True)(x, kernel)
        return *d, *found

    single = jax.jit(gradients)(x, kernel, targets, cotangent)
    arrays = {"targets": np.asarray(targets), "cotangent": np.asarray(cotangent)}
    with jax.set_mesh(mesh):
        check_equal(jax.jit(gradients)(x, kernel, **put_batch(arrays, mesh)), single)


def test_all_logits_never_exist():
    B, T, D, V = 2, 512, 16, 4096
    x = jax.ShapeDtypeStruct((B, T, D), jnp.float32)
    kernel = jax.ShapeDtypeStruct((D, V), jnp.float32)
    targets = jax.ShapeDtypeStruct((B, T), jnp.int32)

    def peak(fun):
        grad = jax.grad(lambda *a: (fun(*a)[0] ** 2).sum(), (0, 1))
        program = jax.jit(grad).lower(x, kernel, targets).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert peak(lambda *a: naive(*a, 1.0)) > 4 * B * T * V  # the guard can fail
    assert peak(lambda *a: token_logprobs(*a, 64)) < 4 * B * T * V / 4
