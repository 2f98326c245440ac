"""Oracle: the adaptors of library kernels against the dense reference, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import make_case, results
from tolerances import (
    KERNEL_BF16_GRADIENT_RTOL,
    KERNEL_BF16_RTOL,
    KERNEL_F32_GRADIENT_RTOL,
    KERNEL_F32_RTOL,
)

from cwm_jax.kernels.library import cudnn_attention, splash_attention
from cwm_jax.kernels.mask import causal_mask, interval_mask
from cwm_jax.kernels.reference import reference_attention

WINDOWS = [None, 1, 2, 127, 128, 129, 199, 200, 400]  # of 200 tokens: no more than they all
SCALE = 0.3  # not the default, so that one left out is seen


def unpacked_case(T, K, G, H, window, dtype=jnp.float32):
    case = make_case(2, T, K, G, H, np.ones((2, T), np.int32), window, dtype=dtype)
    return case._replace(mask=causal_mask(2, T, window))


def reference(q, k, v, mask):
    """The mask is that of the intervals alone; the libraries are told of the static fields."""
    return reference_attention(q, k, v, mask, scale=SCALE)


def assert_agrees(attend, case, rtol, gradient_rtol):
    exact = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, case)
    expected = results(reference, exact)
    for name, got in results(functools.partial(attend, scale=SCALE), case).items():
        bound, want = rtol if name == "out" else gradient_rtol, np.asarray(expected[name])
        error = np.abs(np.asarray(got, np.float32) - want).max()
        assert got.dtype == case.q.dtype
        assert error <= bound * max(1.0, np.abs(want).max()), (name, error)


@pytest.fixture
def xla_for_cudnn(monkeypatch):
    """Runs what cuDNN is asked for in XLA, whose arguments mean the same; returns the arguments."""
    attend, asked = jax.nn.dot_product_attention, []

    def dot_product_attention(*arrays, implementation, **arguments):
        assert implementation == "cudnn"
        asked.append(arguments)
        return attend(*arrays, implementation="xla", **arguments)

    monkeypatch.setattr(jax.nn, "dot_product_attention", dot_product_attention)
    return asked


@pytest.mark.parametrize("window", WINDOWS)
def test_cudnn_is_asked_for_our_mask(window, xla_for_cudnn):
    case = unpacked_case(200, 2, 3, 64, window, jnp.bfloat16)

    def attend(*arguments, scale):  # a function of its own: another test's trace is not reused
        return cudnn_attention(*arguments, scale=scale)

    assert_agrees(attend, case, KERNEL_BF16_RTOL, KERNEL_BF16_GRADIENT_RTOL)
    (arguments,) = xla_for_cudnn
    assert arguments["is_causal"] is True
    bites = window is not None and window < 200
    assert arguments["local_window_size"] == ((window - 1, 0) if bites else None)


@pytest.mark.parametrize("window", WINDOWS)
def test_splash_is_given_our_mask(window):
    attend = functools.partial(splash_attention, interpret=True)
    case = unpacked_case(200, 1, 2, 64, window)
    assert_agrees(attend, case, KERNEL_F32_RTOL, KERNEL_F32_GRADIENT_RTOL)


def test_splash_works_within_a_trace_and_after_it():
    """Its block map is kept between traces, and must not be a value of one."""
    case = unpacked_case(128, 2, 1, 64, 77)
    attend = functools.partial(splash_attention, interpret=True)
    for _ in range(2):
        assert_agrees(
            lambda *arguments, scale: attend(*arguments, scale=scale),  # traced anew
            case,
            KERNEL_F32_RTOL,
            KERNEL_F32_GRADIENT_RTOL,
        )


@pytest.mark.parametrize("attend", [cudnn_attention, splash_attention])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (interval_mask(jnp.ones((2, 16), jnp.int32)), "got packed rows"),
        (
            interval_mask(jnp.ones((2, 16), jnp.int32), query_index=jnp.arange(16), packed=False),
            "queries that are a part of the row",
        ),
    ],
    ids=["packed", "part"],
)
def test_masks_that_are_no_whole_documents_are_refused(attend, mask, message):
    case = unpacked_case(16, 1, 2, 64, None, jnp.bfloat16)
    with pytest.raises(ValueError, match=f"{message}.*'chunked'"):
        attend(case.q, case.k, case.v, mask, scale=SCALE)


@pytest.mark.parametrize(
    ("head_dim", "dtype", "message"),
    [
        (64, jnp.float32, "got float32; expected bfloat16 or float16"),
        (12, jnp.bfloat16, "got head_dim 12; expected a multiple of 8 up to 256"),
        (264, jnp.float16, "got head_dim 264"),
    ],
)
def test_cudnn_refuses_what_it_does_not_have(head_dim, dtype, message):
    case = unpacked_case(16, 1, 1, head_dim, None, dtype)
    with pytest.raises(ValueError, match=message):
        cudnn_attention(case.q, case.k, case.v, case.mask, scale=SCALE)
