"""Attention for TPUs in Pallas (Mosaic): forward, dq, and dk with dv, over live tiles alone.

A tile is a block of queries, of all heads of a group, against a block of keys of their kv head.
From the mask's block bounds the device makes a list of the tiles that are needed, one int32 each,
ordered by rows; the grid is as long as that list. The list is prefetched as scalars: it says which
blocks a step fetches, whether a row of tiles begins or ends with it, and whether the mask has to be
applied. So windows and other documents cost neither time nor fetches, in either pass, and rows of
unequal length leave no idle steps behind.

For the forward pass and dq the rows of tiles are queries; for dk and dv they are keys, on
transposed scores. In both the products need no operand transposed, and no sum crosses programs: the
backward pass is deterministic. Arrays that hold one value for each query stay rows, never broadcast
to lanes in memory; kernels turn them into columns once for each row of tiles.

Scores and sums are float32; the softmax is in base 2, ``exp2(scores * scale * log2(e))``, and so is
the saved log-sum-exp. Weights are rounded to the inputs' dtype before their products.

B batch, T query positions, S key positions, N heads, K kv heads, G = N/K, H head width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from cwm_jax.kernels.flash import (
    LOG2_E,
    LOWEST_PEAK,
    MASKED,
    attention_residuals,
    dot,
    pad_to_multiple,
    require_head_dim,
    row_products,
)
from cwm_jax.kernels.mask import IntervalMask, block_bounds
from cwm_jax.kernels.tuning import TpuBlocks, TpuTile, tpu_blocks, tpu_chip

_LANES = 128


def tpu_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask,
    *,
    scale: float,
    blocks: TpuBlocks | None = None,
    interpret: Any = False,
) -> Float[Array, "B T N H"]:
    """See ``cwm_jax.kernels.attention``; differentiable in q, k and v.

    The kernels want heads before positions; a transposition here is a change of layout, which the
    compiler asks of whatever makes the operand.

    Args:
        q, k, v, mask, scale: as for ``attention``.
        blocks: None is ``tuning.tpu_blocks`` for this process's device.
        interpret: True, or ``pltpu.InterpretParams()``, runs the kernels on any device, slowly, for
            tests.

    Raises:
        ValueError: a head width that the kernels do not have.
    """
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    require_head_dim("tpu", H)
    blocks = blocks or tpu_blocks(tpu_chip(), T, mask.sliding_window, N // K, q.dtype)
    blocks = blocks.clipped(T, S)
    tiles = blocks.forward, blocks.dq, blocks.dkv
    num_queries = math.lcm(*(tile.queries for tile in tiles))
    num_keys = math.lcm(*(tile.keys for tile in tiles))
    q = pad_to_multiple(q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4), 3, num_queries)
    k, v = (pad_to_multiple(x.transpose(0, 2, 1, 3), 2, num_keys) for x in (k, v))
    ranges = _Ranges(
        keys=pad_to_multiple(jnp.stack([mask.key_start, mask.key_end], axis=1), 2, num_queries),
        queries=pad_to_multiple(jnp.stack([mask.query_start, mask.query_end], axis=1), 2, num_keys),
    )
    reach = _Reach(mask.aligned, mask.sliding_window)
    out: Any = _attention(q, k, v, ranges, blocks, reach, scale, interpret)
    return out[:, :, :, :T].transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


class _Ranges(NamedTuple):
    """Start and end of each position's interval."""

    keys: Int[Array, "B 2 T"]
    queries: Int[Array, "B 2 S"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _attention(q, k, v, ranges, blocks, reach, scale, interpret):
    return _forward(q, k, v, ranges, blocks, reach, scale, interpret)[0]


def _forward(q, k, v, ranges, blocks, reach, scale, interpret):
    B, K, G, T, H = q.shape
    tile = blocks.forward
    queries, specs = tile.queries, _Specs(tile, G, H, rows_are_queries=True)
    out, lse = _call(
        functools.partial(_forward_kernel, tile=tile, scale=scale),
        "cwm_attention_forward",
        _live_tiles(ranges, tile, reach, rows_are_queries=True),
        specs,
        inputs=[("ranges", ranges.keys), ("queries", q), ("keys", k), ("keys", v)],
        outputs=[
            ("queries", jax.ShapeDtypeStruct(q.shape, q.dtype)),
            ("sums", jax.ShapeDtypeStruct((B, K, G, 1, T), jnp.float32)),
        ],
        scratch=[
            pltpu.VMEM((2, queries, _LANES), jnp.int32),
            pltpu.VMEM((G, queries, _LANES), jnp.float32),
            pltpu.VMEM((G, queries, _LANES), jnp.float32),
            pltpu.VMEM((G, queries, H), jnp.float32),
        ],
        interpret=interpret,
    )
    out, lse = attention_residuals(out, lse)
    return out, (q, k, v, ranges, out, lse)


def _backward(blocks, reach, scale, interpret, residuals, d_out):
    q, k, v, ranges, out, lse = residuals
    delta = row_products(out, d_out)[:, :, :, None]
    inputs = [
        ("ranges", ranges.keys),
        ("queries", q),
        ("queries", d_out),
        ("sums", lse),
        ("sums", delta),
        ("keys", k),
        ("keys", v),
    ]
    options = dict(inputs=inputs, interpret=interpret)
    G, H = q.shape[2], q.shape[-1]
    tile = blocks.dq
    (d_q,) = _call(
        functools.partial(_dq_kernel, tile=tile, scale=scale),
        "cwm_attention_dq",
        _live_tiles(ranges, tile, reach, rows_are_queries=True),
        _Specs(tile, G, H, rows_are_queries=True),
        outputs=[("queries", jax.ShapeDtypeStruct(q.shape, q.dtype))],
        scratch=[
            pltpu.VMEM((2, tile.queries, _LANES), jnp.int32),
            pltpu.VMEM((2, G, tile.queries, _LANES), jnp.float32),
            pltpu.VMEM((G, tile.queries, H), jnp.float32),
        ],
        **options,
    )
    tile = blocks.dkv
    d_k, d_v = _call(
        functools.partial(_dkv_kernel, tile=tile, scale=scale),
        "cwm_attention_dkv",
        _live_tiles(ranges, tile, reach, rows_are_queries=False),
        _Specs(tile, G, H, rows_are_queries=False),
        outputs=[("keys", jax.ShapeDtypeStruct(x.shape, x.dtype)) for x in (k, v)],
        scratch=[pltpu.VMEM((tile.keys, H), jnp.float32)] * 2,
        **options,
    )
    return d_q, d_k, d_v, None


_attention.defvjp(_forward, _backward)


# ---------------------------------------------------------------- the list of live tiles

# an entry, from its lowest bit: four flags, then the tile's column and its row
_FIRST, _LAST, _WHOLE, _PARTIAL = 1, 2, 4, 8  # of its row; to compute without or with the mask
_COLUMN_SHIFT, _ROW_SHIFT = 4, 17  # 8192 columns and 16384 rows: 1M keys in blocks of 128
_COLUMN_BITS = (1 << (_ROW_SHIFT - _COLUMN_SHIFT)) - 1


class _Reach(NamedTuple):
    """What is known of the mask while staging: enough for the longest list there can be."""

    aligned: bool
    window: int | None


class _Tiles(NamedTuple):
    entries: Int[Array, " B_max_steps"]
    """Of each row of the batch; flat, as 2-D scalars would be padded to whole registers."""
    num_steps: Int[Array, ""]
    """Longest list of the batch; after the end of a shorter one nothing is done."""
    max_steps: int


def _live_tiles(ranges: _Ranges, tile: TpuTile, reach: _Reach, *, rows_are_queries: bool) -> _Tiles:
    sizes = (tile.queries, tile.keys) if rows_are_queries else (tile.keys, tile.queries)
    start, end = (ranges.keys if rows_are_queries else ranges.queries).transpose(1, 0, 2)
    bounds = block_bounds(start, end, *sizes)
    num_columns = ranges.queries.shape[2] // tile.keys
    if not rows_are_queries:
        num_columns = ranges.keys.shape[2] // tile.queries
    max_steps = _most_tiles(bounds.start.shape[1], num_columns, sizes, reach, rows_are_queries)
    lengths = jnp.maximum(bounds.end - bounds.start, 1)  # an empty row writes its zeros
    entries = jax.vmap(functools.partial(_entries, max_steps=max_steps))(bounds, lengths)
    return _Tiles(entries.reshape(-1), lengths.sum(1).max(), max_steps)


def _entries(bounds, lengths, max_steps: int) -> Int[Array, " max_steps"]:
    step = jnp.arange(max_steps, dtype=jnp.int32)
    ends = jnp.cumsum(lengths)
    row = jnp.sum(step[:, None] >= ends[:-1], axis=1, dtype=jnp.int32)  # rows that came before
    nth = step - (ends - lengths)[row]  # of its row
    start, full_start, full_end, end = (x[row] for x in bounds)
    column = start + nth
    whole = (full_start <= column) & (column < full_end)
    flags = jnp.where(whole, _WHOLE, _PARTIAL) * (column < end)
    flags += _FIRST * (nth == 0) + _LAST * (nth == lengths[row] - 1)
    column = jnp.clip(column, 0, jnp.maximum(end - 1, 0))  # what is fetched in vain is not new
    return (row << _ROW_SHIFT) | (column << _COLUMN_SHIFT) | flags


def _most_tiles(num_rows, num_columns, sizes, reach: _Reach, rows_are_queries: bool) -> int:
    """Tiles that a mask of this reach can need, at most: the static length of the list."""
    if not reach.aligned:
        return num_rows * num_columns
    rows, columns = sizes
    first = np.arange(num_rows) * rows
    before = after = num_columns * columns if reach.window is None else reach.window - 1
    if rows_are_queries:  # a position sees keys before it, and is seen by queries after it
        after = 0
    else:
        before = 0
    start = np.maximum(first - before, 0) // columns
    end = np.minimum(-(-(first + rows + after) // columns), num_columns)
    return int(np.maximum(end - start, 1).sum())


# ---------------------------------------------------------------- kernels


def _forward_kernel(
    tiles_ref,
    ranges_ref,
    q_ref,
    k_ref,
    v_ref,
    out_ref,
    lse_ref,
    sees_ref,
    peak_ref,
    total_ref,
    sum_ref,
    *,
    tile,
    scale,
):
    entry = tiles_ref[_step(tiles_ref)]

    @pl.when(entry & _FIRST != 0)
    def begin():
        _store_columns(sees_ref, ranges_ref)
        peak_ref[...] = jnp.full_like(peak_ref, LOWEST_PEAK)
        total_ref[...] = jnp.zeros_like(total_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    def scores(unit):
        return dot(q_ref[unit.head, unit.queries], k_ref[unit.keys], 1, 1) * (scale * LOG2_E)

    def update(unit, scores, visible):
        at = unit.head, unit.queries
        scores = scores if visible is None else jnp.where(visible, scores, MASKED)
        old_peak = peak_ref[at]
        peak = jnp.maximum(old_peak, scores.max(1, keepdims=True))
        weights = jnp.exp2(scores - _widen(peak, tile.unit_keys))
        fade = jnp.exp2(old_peak - peak)
        peak_ref[at] = peak
        total_ref[at] = total_ref[at] * fade + _lane_sums(weights)
        values = dot(weights.astype(v_ref.dtype), v_ref[unit.keys], 1, 0)
        sum_ref[at] = sum_ref[at] * fade[:, : values.shape[1]] + values

    def visible(unit):
        return _visible(sees_ref, unit, entry, tile)

    _over_units(entry, tile, q_ref.shape[0], scores, update, visible)

    @pl.when(entry & _LAST != 0)
    def end():
        for head in range(q_ref.shape[0]):
            total = total_ref[head].sum(1, keepdims=True)
            empty = total == 0  # sees nothing: gives 0, and NaN stays NaN
            total = jnp.where(empty, 1.0, total)
            out_ref[head] = (sum_ref[head] / total).astype(out_ref.dtype)
            lse = jnp.where(empty, -MASKED, peak_ref[head] + jnp.log2(total))
            lse_ref[head] = lse.T[:1]


def _dq_kernel(
    tiles_ref,
    ranges_ref,
    q_ref,
    d_out_ref,
    lse_ref,
    delta_ref,
    k_ref,
    v_ref,
    d_q_ref,
    sees_ref,
    columns_ref,
    sum_ref,
    *,
    tile,
    scale,
):
    entry = tiles_ref[_step(tiles_ref)]
    num_heads = q_ref.shape[0]

    @pl.when(entry & _FIRST != 0)
    def begin():
        _store_columns(sees_ref, ranges_ref)
        for head in range(num_heads):
            columns_ref[0, head] = _column(lse_ref[head])
            columns_ref[1, head] = _column(delta_ref[head])
        sum_ref[...] = jnp.zeros_like(sum_ref)

    def scores(unit):
        q, d_out = q_ref[unit.head, unit.queries], d_out_ref[unit.head, unit.queries]
        scores = dot(q, k_ref[unit.keys], 1, 1) * (scale * LOG2_E)
        return scores, dot(d_out, v_ref[unit.keys], 1, 1)

    def update(unit, products, visible):
        scores, d_weights = products
        at = unit.head, unit.queries
        scores = scores if visible is None else jnp.where(visible, scores, MASKED)
        weights = jnp.exp2(scores - _widen(columns_ref[0, *at], tile.unit_keys))
        d_scores = weights * (d_weights - _widen(columns_ref[1, *at], tile.unit_keys))
        sum_ref[at] += dot(d_scores.astype(k_ref.dtype), k_ref[unit.keys], 1, 0)

    def visible(unit):
        return _visible(sees_ref, unit, entry, tile)

    _over_units(entry, tile, num_heads, scores, update, visible)

    @pl.when(entry & _LAST != 0)
    def end():
        d_q_ref[...] = (sum_ref[...] * scale).astype(d_q_ref.dtype)


def _dkv_kernel(
    tiles_ref,
    ranges_ref,
    q_ref,
    d_out_ref,
    lse_ref,
    delta_ref,
    k_ref,
    v_ref,
    d_k_ref,
    d_v_ref,
    k_sum_ref,
    v_sum_ref,
    *,
    tile,
    scale,
):
    entry = tiles_ref[_step(tiles_ref)]

    @pl.when(entry & _FIRST != 0)
    def begin():
        k_sum_ref[...] = jnp.zeros_like(k_sum_ref)
        v_sum_ref[...] = jnp.zeros_like(v_sum_ref)

    def scores(unit):
        q, d_out = q_ref[unit.head, unit.queries], d_out_ref[unit.head, unit.queries]
        scores = dot(k_ref[unit.keys], q, 1, 1) * (scale * LOG2_E)
        return scores, dot(v_ref[unit.keys], d_out, 1, 1)

    def update(unit, products, visible):
        scores, d_weights = products
        at = unit.head, slice(None), unit.queries
        scores = scores if visible is None else jnp.where(visible, scores, MASKED)
        weights = jnp.exp2(scores - lse_ref[at])
        d_scores = weights * (d_weights - delta_ref[at])
        q, d_out = q_ref[unit.head, unit.queries], d_out_ref[unit.head, unit.queries]
        v_sum_ref[unit.keys] += dot(weights.astype(d_out.dtype), d_out, 1, 0)
        k_sum_ref[unit.keys] += dot(d_scores.astype(q.dtype), q, 1, 0)

    def visible(unit):
        row = entry >> _ROW_SHIFT
        keys = row * tile.keys + unit.keys.start
        keys += lax.broadcasted_iota(jnp.int32, (tile.unit_keys, tile.unit_queries), 0)
        start, end = (ranges_ref[i : i + 1, unit.queries] for i in range(2))
        return (keys >= start) & (keys < end)

    _over_units(entry, tile, q_ref.shape[0], scores, update, visible)

    @pl.when(entry & _LAST != 0)
    def end():
        d_k_ref[...] = (k_sum_ref[...] * scale).astype(d_k_ref.dtype)
        d_v_ref[...] = v_sum_ref[...].astype(d_v_ref.dtype)


class _Unit(NamedTuple):
    """Queries of one head and keys, both as slices of the tile."""

    head: int
    queries: slice
    keys: slice


def _over_units(entry, tile: TpuTile, num_heads: int, scores: Callable, update: Callable, visible):
    """``update(unit, scores(unit), visible(unit) or None)`` for each unit of the tile.

    Products of the next unit come before the update of this one, which does not depend on them: the
    compiler then has work for the matrix units while the vector units are busy.
    """
    units = [
        _Unit(head, slice(i, i + tile.unit_queries), slice(j, j + tile.unit_keys))
        for j in range(0, tile.keys, tile.unit_keys)
        for head in range(num_heads)
        for i in range(0, tile.queries, tile.unit_queries)
    ]

    def compute(masked: bool):
        ahead = scores(units[0])
        for n, unit in enumerate(units):
            products, ahead = ahead, scores(units[n + 1]) if n + 1 < len(units) else None
            update(unit, products, visible(unit) if masked else None)

    pl.when(entry & _WHOLE != 0)(functools.partial(compute, False))
    pl.when(entry & _PARTIAL != 0)(functools.partial(compute, True))


def _step(tiles_ref):
    """Where the program's entry is in the flat lists."""
    return pl.program_id(0) * (tiles_ref.shape[0] // pl.num_programs(0)) + pl.program_id(2)


def _visible(sees_ref, unit: _Unit, entry, tile: TpuTile):
    """``[queries, keys]`` of the unit: which keys its queries see."""
    column = (entry >> _COLUMN_SHIFT) & _COLUMN_BITS
    keys = column * tile.keys + unit.keys.start
    keys += lax.broadcasted_iota(jnp.int32, (tile.unit_queries, tile.unit_keys), 1)
    start, end = (_widen(sees_ref[i, unit.queries], tile.unit_keys) for i in range(2))
    return (keys >= start) & (keys < end)


def _column(row):
    """``[1, n]`` as ``[n, lanes]``, the same in every lane."""
    return jnp.broadcast_to(row, (_LANES, row.shape[1])).T


def _store_columns(columns_ref, rows_ref):
    for i in range(2):
        columns_ref[i] = _column(rows_ref[i : i + 1])


def _widen(column, n: int):
    """A column, the same in every lane, n wide."""
    return jnp.tile(column, (1, n // _LANES))


def _lane_sums(x):
    """Sums over every 128th column: adding up lanes is left for the end."""
    return functools.reduce(jnp.add, jnp.split(x, x.shape[1] // _LANES, axis=1))


# ---------------------------------------------------------------- calls


class _Specs:
    """Blocks of each kind of array that a step works on; the grid is (batch, kv head, step)."""

    def __init__(self, tile: TpuTile, G: int, H: int, *, rows_are_queries: bool):
        self.tile, self.G, self.H = tile, G, H
        self.rows_are_queries = rows_are_queries

    def of(self, kind: str, max_steps: int):
        queries, keys = self._indices(max_steps)
        shape = (None, None, self.G, self.tile.queries, self.H)
        match kind:
            case "queries":
                return pl.BlockSpec(shape, lambda b, h, *x: (b, h, 0, queries(b, *x), 0))
            case "sums":
                shape = (None, None, self.G, 1, self.tile.queries)
                return pl.BlockSpec(shape, lambda b, h, *x: (b, h, 0, 0, queries(b, *x)))
            case "ranges":
                shape = (None, 2, self.tile.queries)
                return pl.BlockSpec(shape, lambda b, h, *x: (b, 0, queries(b, *x)))
            case _:
                shape = (None, None, self.tile.keys, self.H)
                return pl.BlockSpec(shape, lambda b, h, *x: (b, h, keys(b, *x), 0))

    def _indices(self, max_steps: int):
        def row(b, step, tiles_ref):
            return tiles_ref[b * max_steps + step] >> _ROW_SHIFT

        def column(b, step, tiles_ref):
            return (tiles_ref[b * max_steps + step] >> _COLUMN_SHIFT) & _COLUMN_BITS

        return (row, column) if self.rows_are_queries else (column, row)


def _call(
    kernel,
    name: str,
    tiles: _Tiles,
    specs: _Specs,
    *,
    inputs: Sequence[tuple[str, Any]],
    outputs: Sequence[tuple[str, Any]],
    scratch: Sequence[Any],
    interpret,
):
    B, K = inputs[-1][1].shape[:2]
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, K, tiles.num_steps),
            in_specs=[specs.of(kind, tiles.max_steps) for kind, _ in inputs],
            out_specs=[specs.of(kind, tiles.max_steps) for kind, _ in outputs],
            scratch_shapes=scratch,
        ),
        out_shape=[shape for _, shape in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        name=name,
        interpret=interpret,
    )(tiles.entries, *(x for _, x in inputs))
