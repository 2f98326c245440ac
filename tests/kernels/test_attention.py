"""Oracle: every attention implementation against the dense reference, values and gradients."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import ATTENTION_BF16_ATOL, ATTENTION_F32_ATOL

from cwm_jax.kernels import attention, causal_mask, interval_mask
from cwm_jax.kernels.mask import dense_mask


def make_inputs(B, T, N, K, H, *, cuts=(), padding=0, dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    q, k, v, w = (
        jax.random.normal(key, (B, T, heads, H), dtype)
        for key, heads in zip(keys, (N, K, K, N), strict=True)
    )
    segments = 1 + sum((np.arange(T) >= cut).astype(np.int32) for cut in cuts)
    segments = np.broadcast_to(segments, (B, T)).astype(np.int32).copy()
    if B > 1:  # rows of a batch differ
        segments[0] = 1
    segments[:, T - padding :] = 0
    return q, k, v, w, jnp.asarray(segments)


def value_and_grads(q, k, v, w, segment_ids, **kwargs):
    def weighted(q, k, v):
        out = attention(q, k, v, segment_ids=segment_ids, **kwargs)
        return jnp.sum(out.astype(jnp.float32) * w.astype(jnp.float32)), out

    grad = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))
    (_, out), grads = grad(q, k, v)
    return out, *grads


CASES = {
    "one document": dict(shape=(2, 64, 4, 2, 8), window=None),
    "window at a block border": dict(shape=(1, 96, 2, 2, 8), window=16),
    "window one over a border": dict(shape=(1, 96, 2, 2, 8), window=17),
    "window of one": dict(shape=(1, 40, 2, 1, 8), window=1),
    "length no multiple of a block": dict(shape=(2, 77, 6, 1, 8), window=20),
    "packed documents": dict(shape=(2, 80, 6, 3, 8), window=None, cuts=(7, 16, 48)),
    "packed, window, padding": dict(shape=(3, 83, 6, 1, 8), window=9, cuts=(30, 31), padding=11),
    "GQA 6": dict(shape=(1, 48, 6, 1, 16), window=12, cuts=(5,)),
    "shorter than a block": dict(shape=(2, 5, 2, 1, 8), window=3, padding=1),
}


@pytest.mark.parametrize("case", CASES)
def test_chunked_agrees_with_reference(case):
    spec = dict(CASES[case])
    shape, window = spec.pop("shape"), spec.pop("window")
    inputs = make_inputs(*shape, **spec)
    expected = value_and_grads(*inputs, sliding_window=window, implementation="reference")
    got = value_and_grads(*inputs, sliding_window=window, implementation="chunked", block_tokens=16)
    for name, a, b in zip(("out", "dq", "dk", "dv"), expected, got, strict=True):
        np.testing.assert_allclose(b, a, atol=ATTENTION_F32_ATOL, rtol=0, err_msg=name)


def test_chunked_in_bfloat16_keeps_dtype_and_is_close():
    q, k, v, w, segments = make_inputs(2, 80, 6, 3, 16, cuts=(20,), dtype=jnp.bfloat16)
    kwargs = dict(sliding_window=24)
    got = value_and_grads(q, k, v, w, segments, implementation="chunked", block_tokens=16, **kwargs)
    exact = [x.astype(jnp.float32) for x in (q, k, v, w)]
    expected = value_and_grads(*exact, segments, implementation="reference", **kwargs)
    for a, b in zip(expected, got, strict=True):
        assert b.dtype == jnp.bfloat16
        np.testing.assert_allclose(b.astype(jnp.float32), a, atol=ATTENTION_BF16_ATOL)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_padding_outputs_zero_and_has_zero_gradient(implementation):
    inputs = make_inputs(1, 40, 4, 2, 8, cuts=(10,), padding=9)
    results = value_and_grads(*inputs, sliding_window=6, implementation=implementation)
    for x in results:
        assert not np.asarray(x)[:, -9:].any()
        assert np.asarray(x)[:, :-9].any(axis=(0, 2, 3))[1:9].all()


def test_blocks_outside_window_and_document_are_never_read():
    """Poison: a NaN in a block that is read would survive its zero weight in the product with v."""
    q, k, v, w, segments = make_inputs(1, 128, 2, 1, 8, cuts=(64,))
    poisoned = np.asarray(k).copy(), np.asarray(v).copy()
    for x in poisoned:
        x[:, :64] = np.nan  # the first document: four blocks of 16
    kwargs = dict(implementation="chunked", block_tokens=16)
    out, dq, dk, dv = value_and_grads(q, *map(jnp.asarray, poisoned), w, segments, **kwargs)
    clean = value_and_grads(q, k, v, w, segments, **kwargs)
    for got, expected in zip((out, dq, dk, dv), clean, strict=True):
        np.testing.assert_array_equal(got[:, 64:], expected[:, 64:])
    one_document = jnp.ones_like(segments)
    out = attention(
        q, *map(jnp.asarray, poisoned), segment_ids=one_document, sliding_window=17, **kwargs
    )
    assert np.isfinite(np.asarray(out)[:, 96:]).all()  # blocks 6, 7 see keys from 80 on
    assert np.isnan(np.asarray(out)[:, 64:80]).any()  # the guard is able to fail


def test_chunked_never_holds_all_scores():
    B, T, N, H = 1, 8192, 2, 8
    x = jax.ShapeDtypeStruct((B, T, N, H), jnp.float32)

    def grads(q, k, v):
        return jax.grad(lambda *a: attention(*a, implementation="chunked").sum(), (0, 1, 2))(
            q, k, v
        )

    memory = jax.jit(grads).lower(x, x, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * T * T * N / 16


def test_mask_counts_the_querys_own_key():
    mask = np.asarray(dense_mask(causal_mask(1, 6, 3)))[0]
    assert mask.sum(-1).tolist() == [1, 2, 3, 3, 3, 3]
    assert mask[5].tolist() == [False, False, False, True, True, True]


def test_vmap_equals_batch():
    q, k, v, _, segments = make_inputs(3, 40, 4, 2, 8, cuts=(11,))

    def one(q, k, v, segments):
        return attention(q[None], k[None], v[None], segment_ids=segments[None], block_tokens=16)[0]

    expected = attention(q, k, v, segment_ids=segments, block_tokens=16)
    got = jax.vmap(one)(q, k, v, segments)
    np.testing.assert_allclose(got, expected, atol=ATTENTION_F32_ATOL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(implementation="flash"), "implementation is 'flash'"),
        (dict(sliding_window=0), "sliding_window is 0"),
        (dict(segment_ids=jnp.ones((1, 9), jnp.int32)), "segment_ids has shape"),
        (dict(mask=causal_mask(1, 9)), "mask is for 1 rows of 9 queries and 9 keys"),
        (dict(mask=causal_mask(1, 8), sliding_window=3), "expected one"),
        (dict(implementation="tpu"), "head_dim is 8; expected 64 or 128; these can: .*chunked"),
        (dict(implementation="hopper"), "head_dim is 8"),
        (dict(implementation="triton"), "head_dim is 8"),
        (dict(implementation="cudnn"), "dtype is float32; expected bfloat16 or float16"),
        (
            dict(implementation="splash", segment_ids=jnp.ones((1, 8), jnp.int32)),
            "rows are packed; expected one document in each row",
        ),
    ],
)
def test_refusals(change, message, unchecked_types):
    q, k, v, _, _ = make_inputs(1, 8, 2, 1, 8)
    with pytest.raises(ValueError, match=message):
        attention(q, k, v, **change)


def test_refuses_mixed_dtypes_and_other_lengths(unchecked_types):
    q, k, v, _, _ = make_inputs(1, 8, 2, 1, 8)
    with pytest.raises(ValueError, match="q float32, k bfloat16"):
        attention(q, k.astype(jnp.bfloat16), v)
    with pytest.raises(ValueError, match="4 queries and 8 keys"):
        attention(q[:, :4], k, v)


def test_explanation_needs_shapes_alone_and_names_what_cannot(unchecked_types):
    q, k = (jax.ShapeDtypeStruct((1, 64, n, 128), jnp.bfloat16) for n in (6, 1))
    explanation = attention(q, k, k, explain=True)
    assert explanation.implementation == "chunked" and explanation.device == "cpu"
    assert "portable" in explanation.reason and not explanation.refused
    mask = interval_mask(jnp.ones((1, 64), jnp.int32))
    explanation = attention(q, k, k, mask, implementation="hopper", explain=True)
    assert explanation.implementation == "hopper"
    assert explanation.refused.keys() == {"cudnn", "splash"}
    assert "not cudnn: rows are packed" in str(explanation)


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "chosen"),
    [
        (("gpu", "NVIDIA H200", "9.0"), "bfloat16", 128, "hopper"),
        (("gpu", "NVIDIA H200", "9.0"), "float32", 128, "triton"),
        (("gpu", "NVIDIA H100 80GB HBM3", "9.0"), "bfloat16", 96, "chunked"),
        (("gpu", "NVIDIA A100-SXM4-80GB", "8.0"), "bfloat16", 128, "triton"),
        (("tpu", "TPU v5", None), "bfloat16", 128, "tpu"),
        (("tpu", "TPU v6 lite", None), "bfloat16", 32, "chunked"),
        (("cpu", "cpu", None), "bfloat16", 128, "chunked"),
    ],
)
def test_auto_takes_the_first_that_can(
    device, dtype, head_dim, chosen, monkeypatch, unchecked_types
):
    names = dict(zip(("platform", "device_kind", "compute_capability"), device, strict=True))
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(**names)])
    q = jax.ShapeDtypeStruct((1, 64, 2, head_dim), dtype)
    explanation = attention(q, q, q, explain=True)
    assert (explanation.implementation, explanation.device) == (chosen, names["device_kind"])


def test_refuses_heads_that_do_not_divide(unchecked_types):
    q, k, v, _, _ = make_inputs(1, 8, 3, 2, 8)
    with pytest.raises(ValueError, match="3 query heads do not divide into 2"):
        attention(q, k, v)
