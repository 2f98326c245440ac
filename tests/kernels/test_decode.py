"""Oracle: attention to caches of every kind, in XLA and in the GPU kernel, interpreted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tolerances import KERNEL_BF16_RTOL, KERNEL_F32_RTOL

from cwm_jax.kernels.cached import cached_attention, cached_attention_in_pages
from cwm_jax.kernels.decode import (
    DecodeBlocks,
    decode_attention,
    decode_attention_in_pages,
)
from cwm_jax.kernels.mask import causal_mask
from cwm_jax.kernels.reference import reference_attention

LENGTH = 60  # of the rows: keys at every position, of which a query sees those before it
HEADS, KV_HEADS, H = 6, 2, 16
BLOCKS = DecodeBlocks(num_splits=3, slots=16)

cached = functools.partial(cached_attention, num_splits=1)
split = functools.partial(cached_attention, num_splits=4)
kernel = functools.partial(decode_attention, blocks=BLOCKS, interpret=True)


def in_pages(attend, q, k, v, positions, *, k_scale=None, v_scale=None, **options):
    """Cuts the rows of a cache into pages, and strews them."""
    B, K, S = k.shape[:3]
    n = S // PAGE_SLOTS
    order = np.random.default_rng(S).permutation(B * n + 3)[: B * n]

    def strew(x):
        if x is None:
            return None
        rows = x.reshape(B, K, n, PAGE_SLOTS, *x.shape[3:])
        rows = rows.swapaxes(1, 2).reshape(B * n, K, PAGE_SLOTS, *x.shape[3:])
        return jnp.zeros((B * n + 3, *rows.shape[1:]), x.dtype).at[order].set(rows)

    k, v, k_scale, v_scale = map(strew, (k, v, k_scale, v_scale))
    options |= dict(k_scale=k_scale, v_scale=v_scale)
    return attend(q, k, v, jnp.asarray(order).reshape(B, n), positions, **options)


PAGE_SLOTS = 4  # less than a tile
paged = functools.partial(in_pages, cached_attention_in_pages)
paged_kernel = functools.partial(
    in_pages,
    functools.partial(
        decode_attention_in_pages, blocks=DecodeBlocks(num_splits=3, slots=4), interpret=True
    ),
)
IMPLEMENTATIONS = {
    "cached": cached,
    "split": split,
    "kernel": kernel,
    "paged": paged,
    "paged kernel": paged_kernel,
}


def rows_of(B, seed, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = (B, LENGTH, HEADS, H), (B, LENGTH, KV_HEADS, H), (B, LENGTH, KV_HEADS, H)
    return [jax.random.normal(key, s, dtype) for key, s in zip(keys, shapes, strict=True)]


def queries_at(positions, x):
    return x[jnp.arange(len(x))[:, None], positions]


def expected_at(positions, q, k, v, window):
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    mask = causal_mask(len(q), LENGTH, window)
    return queries_at(positions, reference_attention(q, k, v, mask, scale=H**-0.5))


def cache_of(x, num_slots):
    """``[B, K, S, H]`` with slot s holding position s, and anything finite after the row."""
    x = x.transpose(0, 2, 1, 3)
    return jnp.pad(x, ((0, 0), (0, 0), (0, num_slots - LENGTH), (0, 0)), constant_values=1e3)


def ring_of(x, newest, num_slots):
    """A ring written position by position up to each row's newest."""
    B, _, K, _ = x.shape
    x, ring = np.asarray(x), np.full((B, K, num_slots, H), 1e3, np.float32)
    for b, last in enumerate(newest):
        for position in range(last + 1):
            ring[b, :, position % num_slots] = x[b, position]
    return jnp.asarray(ring)


def quantise(x):
    """int8 with a scale for each slot."""
    scale = jnp.abs(x).max(-1) / 127
    return jnp.round(x / scale[..., None]).astype(jnp.int8), scale


def assert_close(got, expected, rtol=KERNEL_F32_RTOL):
    assert got.shape == expected.shape
    error = np.abs(np.asarray(got, np.float32) - np.asarray(expected)).max()
    assert error <= rtol * max(1.0, np.abs(expected).max()), error


@settings(max_examples=25, deadline=None, derandomize=True)
@example(T=4, first=[30, 30, 30], window=16, seed=0)  # the oldest query alone sees the first tile
@given(
    st.sampled_from([1, 4]),
    st.lists(st.integers(0, LENGTH - 4), min_size=3, max_size=3),
    st.none() | st.integers(1, LENGTH + 1),
    st.integers(0, 99),
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_at_any_position_see_what_the_oracle_sees(implementation, T, first, window, seed):
    q, k, v = rows_of(3, seed)
    positions = jnp.asarray(first)[:, None] + jnp.arange(T)
    got = IMPLEMENTATIONS[implementation](
        queries_at(positions, q),
        cache_of(k, 64),
        cache_of(v, 64),
        positions,
        sliding_window=window,
    )
    assert_close(got, expected_at(positions, q, k, v, window))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.sampled_from([1, 4]),
    st.lists(st.integers(0, LENGTH - 4), min_size=3, max_size=3),
    st.sampled_from([(1, 4), (5, 8), (9, 12), (17, 20), (13, 24)]),
    st.integers(0, 99),
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_ring_gives_what_the_whole_row_gives(implementation, T, first, sizes, seed):
    window, num_slots = sizes
    q, k, v = rows_of(3, seed)
    positions = jnp.asarray(first)[:, None] + jnp.arange(T)
    newest = np.asarray(positions).max(1)
    got = IMPLEMENTATIONS[implementation](
        queries_at(positions, q),
        ring_of(k, newest, num_slots),
        ring_of(v, newest, num_slots),
        positions,
        sliding_window=window,
        ring=True,
    )
    assert_close(got, expected_at(positions, q, k, v, window))


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_int8_cache_gives_what_its_values_give(implementation, window):
    q, k, v = rows_of(3, seed=0)
    positions = jnp.array([[0], [31], [LENGTH - 1]])
    (k_int8, k_scale), (v_int8, v_scale) = quantise(cache_of(k, 64)), quantise(cache_of(v, 64))
    k, v = ((x * s[..., None]) for x, s in ((k_int8, k_scale), (v_int8, v_scale)))
    k, v = (x[:, :, :LENGTH].transpose(0, 2, 1, 3) for x in (k, v))
    got = IMPLEMENTATIONS[implementation](
        queries_at(positions, q),
        k_int8,
        v_int8,
        positions,
        sliding_window=window,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    assert_close(got, expected_at(positions, q, k, v, window))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_is_close(implementation):
    q, k, v = rows_of(2, seed=1, dtype=jnp.bfloat16)
    positions = jnp.array([[3], [50]])
    arguments = queries_at(positions, q), cache_of(k, 64), cache_of(v, 64), positions
    got = IMPLEMENTATIONS[implementation](*arguments, sliding_window=None)
    assert got.dtype == jnp.bfloat16
    assert_close(got, expected_at(positions, q, k, v, None), KERNEL_BF16_RTOL)


@pytest.mark.parametrize("num_slots", [64, 61])  # the last tile ends with the cache, or after it
def test_the_kernel_never_reads_tiles_that_no_query_sees(num_slots):
    """Poison: a NaN that is read would survive its zero weight."""
    q, k, v = rows_of(2, seed=2)
    positions = jnp.array([[40], [47]])  # with the window: slots 24 to 47, tiles 1 and 2 of 16
    dead = ((jnp.arange(num_slots) < 16) | (jnp.arange(num_slots) >= 48))[:, None]
    k_cache, v_cache = (jnp.where(dead, jnp.nan, cache_of(x, num_slots)) for x in (k, v))
    attend = functools.partial(kernel, queries_at(positions, q), positions=positions)
    got = attend(k_cache, v_cache, sliding_window=17)
    assert_close(got, expected_at(positions, q, k, v, 17))
    assert np.isnan(attend(k_cache, v_cache, sliding_window=None)).any()  # the guard can fail


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_query_at_a_negative_position_gives_zero(implementation):
    q, k, v = rows_of(2, seed=3)
    arguments = q[:, :1], cache_of(k, 64), cache_of(v, 64), jnp.array([[-1], [5]])
    got = IMPLEMENTATIONS[implementation](*arguments, sliding_window=8)
    assert not np.asarray(got[0]).any() and np.asarray(got[1]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_splits=7), "num_splits is 7 for a cache of 64 slots"),
        (dict(ring=True), "a ring of 64 slots .* a window of None"),
        (dict(ring=True, sliding_window=62), "a ring of 64 slots .* 4 queries"),
        (dict(k_scale=jnp.ones((2, KV_HEADS, 64))), "got k_scale: True, v_scale: False"),
    ],
)
def test_refusals(change, message):
    q, k, v = rows_of(2, seed=4)
    arguments = q[:, :4], cache_of(k, 64), cache_of(v, 64), jnp.zeros((2, 4), jnp.int32)
    with pytest.raises(ValueError, match=message):
        cached_attention(*arguments, **{"sliding_window": None, **change})


def test_the_kernel_refuses_a_head_width_that_it_does_not_have():
    x = jnp.zeros((1, 1, 16, 24))
    with pytest.raises(ValueError, match="head_dim 24; expected a power of two"):
        decode_attention(
            jnp.zeros((1, 1, 1, 24)), x, x, jnp.zeros((1, 1), jnp.int32), sliding_window=None
        )


def test_the_kernel_refuses_an_int8_cache_that_it_cannot_index():
    cache = jax.ShapeDtypeStruct((32, 8, 1 << 17, 128), jnp.int8)
    scale = jax.ShapeDtypeStruct(cache.shape[:3], jnp.float32)
    q = jax.ShapeDtypeStruct((32, 1, 48, 128), jnp.bfloat16)

    def attend(q, k, v, k_scale, v_scale):
        positions, scales = jnp.zeros((32, 1), jnp.int32), dict(k_scale=k_scale, v_scale=v_scale)
        return decode_attention(q, k, v, positions, sliding_window=None, **scales)

    with pytest.raises(ValueError, match="int8 cache of 4294967296 elements"):
        jax.eval_shape(attend, q, cache, cache, scale, scale)
