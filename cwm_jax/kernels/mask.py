"""The one mask of every attention backend: causal AND window AND same document, as intervals.

With documents contiguous in a row, the keys that a query sees are an interval, and so are the
queries that see a key. ``IntervalMask`` holds both: O(T + S) integers, made on the device from the
segment ids, and never a T x S array. ``block_bounds`` turns either side into the range of tiles
that a block of rows needs and, within it, the range that every row sees whole.

``sliding_window = W`` counts W keys, the query's own included.

B batch, T query position, S key position (T = S unless the queries are a part of the row).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class IntervalMask:
    """Query t sees the keys ``key_start[t] <= s < key_end[t]``; both never fall along t.

    The three static fields say what is known while staging; they decide which implementations can
    honour the mask, and ``key_start`` to ``query_end`` alone decide what is computed.
    """

    key_start: Int[Array, "B T"]
    key_end: Int[Array, "B T"]
    query_start: Int[Array, "B S"]
    """Key s is seen by the queries ``query_start[s] <= t < query_end[s]``."""
    query_end: Int[Array, "B S"]
    sliding_window: int | None = dataclasses.field(metadata={"static": True})
    packed: bool = dataclasses.field(metadata={"static": True})
    """False: every row is one document without padding."""
    aligned: bool = dataclasses.field(metadata={"static": True})
    """True: query t sits at key t, and T = S."""


def interval_mask(
    segment_ids: Int[Array, "B S"],
    sliding_window: int | None = None,
    *,
    query_index: Int[Array, " T"] | None = None,
    packed: bool = True,
) -> IntervalMask:
    """The mask of packed rows.

    Args:
        segment_ids: of the keys, int32; 0 is padding (sees nothing, is seen by nothing), equal
            neighbours are one document.
        sliding_window: keys that a query sees, its own included; None sees the whole document so
            far. A capped global layer is this with its cap.
        query_index: the key at which each query sits, ascending; None: query t sits at key t. With
            it the queries can be a part of the row: a shard of a context-parallel layout (also
            two pieces of one row), or a block after the halo of keys before it.
        packed: False promises one document without padding in each row.

    Raises:
        ValueError: a window below 1.
    """
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(
            f"sliding_window is {sliding_window}; expected 1 or more (it counts the query)"
        )
    S = segment_ids.shape[1]
    starts, aligned = document_starts(segment_ids), query_index is None
    if query_index is None:
        query_index = jnp.arange(S, dtype=jnp.int32)
    else:
        query_index = query_index.astype(jnp.int32)
        starts, segment_ids = starts[:, query_index], segment_ids[:, query_index]
    if sliding_window is not None:
        starts = jnp.maximum(starts, query_index - (sliding_window - 1))
    key_start = jnp.where(segment_ids == 0, query_index + 1, starts)  # padding: an empty interval
    key_end = jnp.broadcast_to(query_index + 1, key_start.shape)
    return IntervalMask(
        key_start=key_start,
        key_end=key_end,
        query_start=_num_rows_up_to(key_end, S),
        query_end=_num_rows_up_to(key_start, S),
        sliding_window=sliding_window,
        packed=packed,
        aligned=aligned,
    )


def extending_mask(
    segment_ids: Int[Array, "B T"],
    offsets: Int[Array, " B"],
    num_keys: int,
    sliding_window: int | None = None,
) -> IntervalMask:
    """The mask of rows that go on behind keys of earlier positions.

    Args:
        segment_ids: of the queries; documents of the id 1 begin with the earlier keys, the others
            in the row itself; 0 is padding.
        offsets: earlier keys of each row: its query t sits at key ``offset + t``.
        num_keys: S of the mask, at least offset + T.
        sliding_window: as for ``interval_mask``.
    """
    queries = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None] + offsets[:, None]
    starts = jnp.where(segment_ids == 1, 0, document_starts(segment_ids) + offsets[:, None])
    if sliding_window is not None:
        starts = jnp.maximum(starts, queries - (sliding_window - 1))
    key_start = jnp.where(segment_ids == 0, queries + 1, starts)
    return IntervalMask(
        key_start=key_start,
        key_end=queries + 1,
        query_start=_num_rows_up_to(queries + 1, num_keys),
        query_end=_num_rows_up_to(key_start, num_keys),
        sliding_window=sliding_window,
        packed=True,
        aligned=False,
    )


def causal_mask(B: int, T: int, sliding_window: int | None = None) -> IntervalMask:
    """The mask of rows that are one document each, without padding."""
    return interval_mask(jnp.ones((B, T), jnp.int32), sliding_window, packed=False)


def document_starts(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Index of the first position of each position's document (or run of padding)."""
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None, :]
    is_start = segment_ids[:, 1:] != segment_ids[:, :-1]
    is_start = jnp.concatenate([jnp.ones_like(segment_ids[:, :1], dtype=bool), is_start], axis=1)
    return jax.lax.cummax(jnp.where(is_start, index, 0), axis=1)


def _num_rows_up_to(bounds: Int[Array, "B T"], S: int) -> Int[Array, "B S"]:
    """For each s the number of t with ``bounds[t] <= s``; bounds never fall."""
    keys = jnp.arange(S, dtype=jnp.int32)
    count = functools.partial(jnp.searchsorted, v=keys, side="right")
    return jax.vmap(count)(bounds).astype(jnp.int32)


class BlockBounds(NamedTuple):
    """Tiles that each block of rows needs: ``start <= j < end``, the others are never read.

    Of those the tiles ``full_start <= j < full_end`` are seen whole by every row and need no mask;
    ``start <= full_start <= full_end <= end``.
    """

    start: Int[Array, "B n"]
    full_start: Int[Array, "B n"]
    full_end: Int[Array, "B n"]
    end: Int[Array, "B n"]


def block_bounds(
    start: Int[Array, "B R"], end: Int[Array, "B R"], block_rows: int, block_columns: int
) -> BlockBounds:
    """Bounds for rows that see the columns ``start <= c < end``; O(R).

    For the forward pass and dq the rows are queries (``key_start``, ``key_end``), for dk and dv
    they are keys (``query_start``, ``query_end``). Rows after the last whole block count as seeing
    nothing, and a row that sees nothing makes the tiles of its block partial.
    """
    padding = -start.shape[1] % block_rows
    start, end = (jnp.pad(x, ((0, 0), (0, padding))) for x in (start, end))
    start, end = (x.reshape(x.shape[0], -1, block_rows) for x in (start, end))
    sees_any = start < end
    first = jnp.min(jnp.where(sees_any, start, jnp.iinfo(jnp.int32).max), axis=2)
    last = jnp.max(jnp.where(sees_any, end, 0), axis=2)
    first = jnp.minimum(first, last) // block_columns  # no row sees any: an empty range
    last = -(-last // block_columns)
    all_see = sees_any.all(axis=2)
    full_first = jnp.where(all_see, -(-jnp.max(start, axis=2) // block_columns), first)
    full_last = jnp.where(all_see, jnp.min(end, axis=2) // block_columns, first)
    full_first = jnp.clip(full_first, first, last)
    return BlockBounds(first, full_first, jnp.clip(full_last, full_first, last), last)


def dense_mask(mask: IntervalMask) -> Bool[Array, "B T S"]:
    """``[b, t, s]`` is True where query t sees key s; T x S, for oracles and small tests."""
    keys = jnp.arange(mask.query_start.shape[1], dtype=jnp.int32)
    return (keys >= mask.key_start[:, :, None]) & (keys < mask.key_end[:, :, None])
