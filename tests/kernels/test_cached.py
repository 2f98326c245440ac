"""Attention to a cache against the dense oracle."""

import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import ATTENTION_F32_ATOL

from cwm_jax.kernels import attention, cached_attention


@pytest.mark.parametrize("window", [None, 1, 5, 64])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (6, 1)])
def test_queries_at_any_position_see_what_the_oracle_sees(window, heads, kv_heads):
    rng = np.random.default_rng(0)
    B, S, H = 3, 24, 8
    q = rng.normal(size=(B, S, heads, H)).astype(np.float32)
    k, v = rng.normal(size=(2, B, S, kv_heads, H)).astype(np.float32)
    expected = attention(
        *(jnp.asarray(x) for x in (q, k, v)), sliding_window=window, implementation="reference"
    )
    positions = np.array([[0, 1], [10, 11], [22, 23]])
    rows = np.arange(B)[:, None]
    out = cached_attention(
        jnp.asarray(q[rows, positions]),
        *(jnp.asarray(x.transpose(0, 2, 1, 3)) for x in (k, v)),
        jnp.asarray(positions),
        sliding_window=window,
    )
    assert np.abs(out - np.asarray(expected)[rows, positions]).max() <= ATTENTION_F32_ATOL
