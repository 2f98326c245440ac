"""The one mask of every attention backend: causal AND window AND same document.

With documents contiguous in a row, the keys that a query sees are an interval that ends at the
query, so the whole mask is one integer per query. ``sliding_window = W`` counts W keys, the query's
own included.

B batch, T query position, S key position (T = S here).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def document_starts(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Index of the first position of each position's document (or run of padding)."""
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None, :]
    is_start = segment_ids[:, 1:] != segment_ids[:, :-1]
    is_start = jnp.concatenate([jnp.ones_like(segment_ids[:, :1], dtype=bool), is_start], axis=1)
    return jax.lax.cummax(jnp.where(is_start, index, 0), axis=1)


def key_starts(segment_ids: Int[Array, "B T"], sliding_window: int | None) -> Int[Array, "B T"]:
    """First key index that each query sees; the last is the query itself.

    A padding query (segment 0) sees nothing: its start lies one past itself.
    """
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None, :]
    starts = document_starts(segment_ids)
    if sliding_window is not None:
        starts = jnp.maximum(starts, index - (sliding_window - 1))
    return jnp.where(segment_ids == 0, index + 1, starts)


def dense_mask(segment_ids: Int[Array, "B T"], sliding_window: int | None) -> Bool[Array, "B T T"]:
    """``[b, t, s]`` is True where query t sees key s; T x S, for oracles and small tests."""
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    starts = key_starts(segment_ids, sliding_window)
    return (index <= index[:, None]) & (index >= starts[:, :, None])


def slot_mask(
    positions: Int[Array, "B T"], num_slots: int, sliding_window: int | None
) -> Bool[Array, "B T S"]:
    """``[b, t, s]`` is True where the query at ``positions[b, t]`` sees slot s of its row's cache.

    A row of a cache is one document from position 0, and slot s holds position s.
    """
    slots = jnp.arange(num_slots, dtype=jnp.int32)
    mask = slots <= positions[:, :, None]
    if sliding_window is not None:
        mask &= slots > positions[:, :, None] - sliding_window
    return mask
