"""Masks and shapes that every attention kernel is tested on, and the comparison with the oracle."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from tolerances import KERNEL_F32_GRADIENT_RTOL, KERNEL_F32_RTOL

from cwm_jax.kernels.mask import IntervalMask, causal_mask, interval_mask
from cwm_jax.kernels.reference import reference_attention


class Case(NamedTuple):
    q: jax.Array
    k: jax.Array
    v: jax.Array
    d_out: jax.Array
    mask: IntervalMask


def make_case(B, T, K, G, H, segments, window, *, query_index=None, dtype=jnp.float32, seed=0):
    """Normal inputs; with ``query_index`` the queries are those positions of the row."""
    num_queries = T if query_index is None else len(query_index)
    shapes = [(B, num_queries, K * G, H), (B, T, K, H), (B, T, K, H), (B, num_queries, K * G, H)]
    keys = jax.random.split(jax.random.key(seed), 4)
    arrays = [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]
    index = None if query_index is None else jnp.asarray(query_index, jnp.int32)
    return Case(*arrays, interval_mask(jnp.asarray(segments), window, query_index=index))


def segments_from_lengths(T, lengths, padding):
    """One row: documents of these lengths, the last one to the end but for the padding."""
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)[:T].astype(np.int32)
    segments = np.pad(segments, (0, T - len(segments)), constant_values=len(lengths) + 1)
    segments[T - padding :] = 0
    return segments


@st.composite
def cases(draw, shapes, dtype=jnp.float32):
    """Masks of every kind on a few shapes ``(B, T, K, G, H)``, each of which compiles once.

    1 to 40 documents of random lengths, also 1, padding up to whole rows, windows smaller than,
    equal to and larger than a block, and queries that are a part of the row.
    """
    B, T, K, G, H = draw(st.sampled_from(shapes))
    rows = []
    for _ in range(B):
        lengths = draw(st.lists(st.integers(1, max(1, T // 2)), max_size=39))
        padding = draw(st.just(0) | st.integers(0, min(T, 9)) | st.just(T))
        rows.append(segments_from_lengths(T, lengths, padding))
    windows = st.sampled_from([1, 2, 16, 63, 64, 65, 128, 129, 200]) | st.integers(1, T + 1)
    window = draw(st.none() | windows)
    index = None
    if draw(st.booleans()) and T >= 4:  # two pieces of the row, as in a zigzag layout
        cut = draw(st.integers(0, T // 4))
        index = np.r_[cut : cut + T // 4, T - T // 4 : T]
    seed = draw(st.integers(0, 1 << 16))
    return make_case(
        B, T, K, G, H, np.stack(rows), window, query_index=index, dtype=dtype, seed=seed
    )


@functools.partial(jax.jit, static_argnums=0)
def results(attend, case: Case) -> dict[str, jax.Array]:
    """The output of ``attend(q, k, v, mask)`` and the gradients for ``d_out``."""
    out, vjp = jax.vjp(lambda q, k, v: attend(q, k, v, case.mask), case.q, case.k, case.v)
    return dict(zip(("dq", "dk", "dv"), vjp(case.d_out), strict=True), out=out)


def oracle(q, k, v, mask):
    return reference_attention(q, k, v, mask, scale=q.shape[-1] ** -0.5)


def assert_agrees(attend, case: Case, *, rtol=KERNEL_F32_RTOL, gradient_rtol=None) -> None:
    """Errors relative to the largest value of the reference in float32, or to 1."""
    # the window is in the intervals already: without it a shape compiles once
    mask = IntervalMask(**{**vars(case.mask), "sliding_window": None})
    case = case._replace(mask=mask)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, case)
    expected = results(oracle, exact)
    for name, got in results(attend, case).items():
        bound = rtol if name == "out" else gradient_rtol or KERNEL_F32_GRADIENT_RTOL
        want = np.asarray(expected[name])
        assert got.dtype == case.q.dtype and got.shape == want.shape, name
        error = np.abs(np.asarray(got, np.float32) - want).max()
        assert error <= bound * max(1.0, np.abs(want).max()), (name, error)  # NaN fails too


def assert_padding_is_zero(attend, T: int, padding: int) -> None:
    """In a row with padding and a row of nothing else; what is no padding is not zero."""
    segments = np.stack([segments_from_lengths(T, [20], padding), np.zeros(T, np.int32)])
    got = results(attend, make_case(2, T, 1, 2, 64, segments, 16))
    for name, x in got.items():
        assert not np.asarray(x)[0, -padding:].any() and not np.asarray(x)[1].any(), name
        assert np.asarray(x)[0, 1:-padding].any(axis=(1, 2)).all(), name


def assert_vmap_equals_batch(attend, T: int, first_documents: tuple[int, int]) -> None:
    segments = np.stack([segments_from_lengths(T, [n], 0) for n in first_documents])
    case = make_case(2, T, 1, 2, 64, segments, 20)

    def one(q, k, v, segments):
        return attend(q[None], k[None], v[None], interval_mask(segments[None], 20))[0]

    got = jax.vmap(one)(case.q, case.k, case.v, jnp.asarray(segments))
    np.testing.assert_array_equal(got, attend(case.q, case.k, case.v, case.mask))


def assert_other_documents_are_never_read(attend, T: int, first: int) -> None:
    """Poison: a NaN in a block that is read would survive its zero weight in a product."""
    case = make_case(1, T, 1, 2, 64, segments_from_lengths(T, [first], 0)[None], None)
    poison = np.s_[:, :first]
    inputs = ("q", "k", "v", "d_out")
    poisoned = case._replace(**{x: getattr(case, x).at[poison].set(jnp.nan) for x in inputs})
    clean, got = results(attend, case), results(attend, poisoned)
    for name, expected in clean.items():
        np.testing.assert_array_equal(got[name][:, first:], expected[:, first:], err_msg=name)
        assert np.isnan(got[name][poison]).all(), name  # the guard is able to fail


def assert_blocks_before_the_window_are_never_read(
    attend, T: int, window: int, *, poisoned: int, unharmed_from: int
) -> None:
    """The first keys are poison; the blocks of the queries from ``unharmed_from`` see none."""
    case = make_case(1, T, 1, 1, 64, np.ones((1, T), np.int32), window)
    old, far = np.s_[:, :poisoned], np.s_[:, unharmed_from:]
    clean = results(attend, case)
    got = results(
        attend, case._replace(k=case.k.at[old].set(jnp.nan), v=case.v.at[old].set(jnp.nan))
    )
    for name in ("out", "dq"):
        np.testing.assert_array_equal(got[name][far], clean[name][far], err_msg=name)
    assert np.isnan(got["out"][:, poisoned : poisoned + window - 1]).all()  # these do see some


def assert_refuses_other_head_widths(attend) -> None:
    q = jnp.zeros((1, 16, 1, 80))
    with pytest.raises(ValueError, match=r"head_dim 80; expected one of \(64, 128\).*'chunked'"):
        attend(q, q, q, causal_mask(1, 16))
