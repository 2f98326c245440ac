"""Law: both sides of the interval mask, and its tiles, against the dense definition."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwm_jax.kernels.mask import block_bounds, causal_mask, dense_mask, interval_mask


def by_definition(segments, window, query_index):
    """Causal AND window AND same document, pair by pair."""
    segments = np.asarray(segments)
    query, key = np.asarray(query_index)[:, None], np.arange(segments.shape[1])
    visible = (key <= query) & (query - key < (window or 1 << 30))
    queries = segments[:, query_index]
    return visible & (queries[:, :, None] == segments[:, None]) & (queries[:, :, None] > 0)


@st.composite
def rows(draw):
    """Two rows of documents and padding, anywhere, of a few lengths: each compiles programs."""
    S = draw(st.sampled_from((1, 2, 17, 60)))
    lengths = st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=S)
    segments = np.zeros((2, S), np.int32)
    for row in segments:
        position = 0
        for i, (length, padding) in enumerate(draw(lengths)):
            row[position : position + length] = 0 if padding else i + 1
            position += length
    return segments


@settings(max_examples=60, deadline=None)
@given(
    rows(),
    st.none() | st.integers(1, 70),
    st.integers(0, 59),
    st.sampled_from((1, 7, 60)),
)
def test_intervals_equal_the_definition(segments, window, first, size):
    S = segments.shape[1]
    indices = [None, np.arange(S)[min(first, S - 1) :][:size]]
    indices.append(np.unique(np.r_[np.arange(min(size, S)), S - 1 - np.arange(min(size, S))]))
    for index in indices:
        given_index = None if index is None else jnp.asarray(index, jnp.int32)
        mask = interval_mask(jnp.asarray(segments), window, query_index=given_index)
        expected = by_definition(segments, window, np.arange(S) if index is None else index)
        np.testing.assert_array_equal(dense_mask(mask), expected)
        queries = np.arange(expected.shape[1])[None, :, None]
        start, end = (np.asarray(x)[:, None] for x in (mask.query_start, mask.query_end))
        np.testing.assert_array_equal((queries >= start) & (queries < end), expected)
        for x in (mask.key_start, mask.key_end):
            assert (np.diff(np.asarray(x), axis=1) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(rows(), st.none() | st.integers(1, 70), st.sampled_from([(4, 4), (8, 4), (4, 16), (1, 7)]))
def test_block_bounds_hold_exactly_the_tiles_that_rows_see(segments, window, blocks):
    mask = interval_mask(jnp.asarray(segments), window)
    dense = np.asarray(dense_mask(mask))
    for sides, visible in (
        ((mask.key_start, mask.key_end), dense),
        ((mask.query_start, mask.query_end), dense.transpose(0, 2, 1)),
    ):
        bounds = [np.asarray(x) for x in block_bounds(*sides, *blocks)]
        R, C = blocks
        for b, i in np.ndindex(*bounds[0].shape):
            block = visible[b, i * R : (i + 1) * R]
            tiles = [block[:, j : j + C] for j in range(0, visible.shape[2], C)]
            some = [j for j, tile in enumerate(tiles) if tile.any()]
            whole = [j for j, x in enumerate(tiles) if x.all() and x.shape == blocks]
            start, full_start, full_end, end = (x[b, i] for x in bounds)
            assert start <= full_start <= full_end <= end
            assert (start, end) == ((some[0], some[-1] + 1) if some else (start, start))
            assert list(range(full_start, full_end)) == whole


def test_facts_known_while_staging():
    mask = causal_mask(2, 8, 3)
    assert (mask.sliding_window, mask.packed, mask.aligned) == (3, False, True)
    mask = interval_mask(jnp.ones((2, 8), jnp.int32), query_index=jnp.arange(4, 8))
    assert (mask.sliding_window, mask.packed, mask.aligned) == (None, True, False)


def test_refuses_a_window_below_one():
    with pytest.raises(ValueError, match="sliding_window is 0"):
        causal_mask(1, 8, 0)
