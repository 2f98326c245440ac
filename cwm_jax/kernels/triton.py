"""Attention for NVIDIA GPUs in Pallas Triton: forward, dq, and dk with dv; any float dtype.

The fallback for GPUs without the Hopper kernels' instructions. One program computes a block of
rows: it walks over the tiles that the rows need (``block_bounds``), so windows and other documents
cost nothing in either pass, and masks only the tiles at both ends of the range. For the forward
pass and dq the rows are queries of one head and the tiles hold keys; for dk and dv the rows are
keys and the tiles hold queries, of each head of the group in turn, so that no gradient is summed
between programs and the result is deterministic.

Scores and sums are float32; the softmax is in base 2, ``exp2(scores * scale * log2(e))``, and so is
the saved log-sum-exp. Weights are rounded to the inputs' dtype before their products.

B batch, T query positions, S key positions, N heads, K kv heads, G = N/K, H head width.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from cwm_jax.kernels.flash import (
    LOG2_E,
    attention_residuals,
    dot,
    pad_to_multiple,
    require_head_dim,
    row_products,
)
from cwm_jax.kernels.mask import IntervalMask, block_bounds

_LEAST = -1e30  # below every score, and finite: a row may see nothing of its first tile


@dataclasses.dataclass(frozen=True)
class Tile:
    """Of one kernel: rows of a program, columns of a step of its loop, and how it is compiled."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int
    """Tiles in flight: each keeps both of its operands in shared memory."""


@dataclasses.dataclass(frozen=True)
class TritonBlocks:
    """Tiles of the three kernels; rows and columns are powers of two from 16 on."""

    forward: Tile
    dq: Tile
    dkv: Tile


def default_blocks(dtype) -> TritonBlocks:
    """The same for both head widths; assumed: other tiles were not timed.

    What is known is static: they fit the 99 KiB of shared memory that a block has on sm_86 and
    sm_89, and ptxas spills no register in 16 bit. In float32, whose exact products have no tensor
    cores, dq spills.
    """
    if jnp.dtype(dtype).itemsize == 2:
        return TritonBlocks(Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(64, 32, 4, 2))
    return TritonBlocks(Tile(32, 32, 8, 1), Tile(32, 16, 8, 1), Tile(32, 32, 8, 1))


def triton_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask,
    *,
    scale: float,
    blocks: TritonBlocks | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """See ``cwm_jax.kernels.attention``; differentiable in q, k and v.

    Args:
        q, k, v, mask, scale: as for ``attention``.
        blocks: None is ``default_blocks``.
        interpret: True runs the kernels on any device, slowly, for tests.

    Raises:
        ValueError: a head width that the kernels do not have.
    """
    require_head_dim("triton", q.shape[-1])
    T, blocks = q.shape[1], blocks or default_blocks(q.dtype)
    row_multiple = math.lcm(blocks.forward.rows, blocks.dq.rows, blocks.dkv.columns)
    key_multiple = math.lcm(blocks.forward.columns, blocks.dq.columns, blocks.dkv.rows)
    key_range, query_range = (mask.key_start, mask.key_end), (mask.query_start, mask.query_end)
    q, *key_range = (pad_to_multiple(x, 1, row_multiple) for x in (q, *key_range))
    k, v, *query_range = (pad_to_multiple(x, 1, key_multiple) for x in (k, v, *query_range))
    out: Any = _attention(q, k, v, key_range, query_range, blocks, scale, interpret)
    return out[:, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _attention(q, k, v, key_range, query_range, blocks, scale, interpret):
    return _forward(q, k, v, key_range, query_range, blocks, scale, interpret)[0]


def _forward(q, k, v, key_range, query_range, blocks, scale, interpret):
    B, T, N, _ = q.shape
    tile, specs = blocks.forward, _Specs(q, k, blocks.forward)
    out, lse = _call(
        _forward_kernel,
        tile,
        grid=(B, T // tile.rows, N),
        in_specs=[specs.rows(), specs.all_keys(), specs.all_keys(), *specs.ranges()],
        out_specs=[specs.rows(), specs.row_sums()],
        out_shape=[_like(q), jax.ShapeDtypeStruct((B, N, T), jnp.float32)],
        scale=scale,
        interpret=interpret,
    )(q, k, v, *key_range, _bounds(key_range, tile))
    out, lse = attention_residuals(out, lse)
    return out, (q, k, v, key_range, query_range, out, lse)


def _backward(blocks, scale, interpret, residuals, d_out):
    q, k, v, key_range, query_range, out, lse = residuals
    delta = row_products(out, d_out).transpose(0, 2, 1)  # [B, N, T]
    inputs, options = (q, d_out, lse, delta, k, v), dict(scale=scale, interpret=interpret)
    d_q = _d_q(inputs, key_range, blocks.dq, options)
    d_k, d_v = _d_kv(inputs, query_range, blocks.dkv, options)
    return d_q, d_k, d_v, None, None


def _d_q(inputs, key_range, tile, options):
    q, _, _, _, k, _ = inputs
    (B, T, N, _), specs = q.shape, _Specs(q, k, tile)
    rows, sums, keys = specs.rows(), specs.row_sums(), specs.all_keys()
    return _call(
        _dq_kernel,
        tile,
        grid=(B, T // tile.rows, N),
        in_specs=[rows, rows, sums, sums, keys, keys, *specs.ranges()],
        out_specs=rows,
        out_shape=_like(q),
        **options,
    )(*inputs, *key_range, _bounds(key_range, tile))


def _d_kv(inputs, query_range, tile, options):
    q, _, _, _, k, v = inputs
    (B, S, K, _), specs = k.shape, _Specs(q, k, tile)
    rows, queries, sums = specs.rows(), specs.all_queries(), specs.all_sums()
    return _call(
        _dkv_kernel,
        tile,
        grid=(B, S // tile.rows, K),
        in_specs=[queries, queries, sums, sums, rows, rows, *specs.ranges()],
        out_specs=[rows, rows],
        out_shape=[_like(k), _like(v)],
        **options,
    )(*inputs, *query_range, _bounds(query_range, tile))


_attention.defvjp(_forward, _backward)


def _forward_kernel(
    q_ref, k_ref, v_ref, first_ref, last_ref, bounds_ref, out_ref, lse_ref, *, tile, scale
):
    q, sees = q_ref[...], (first_ref[...], last_ref[...])

    def step(masked, j, carry):
        peak, total, out = carry
        keys = pl.ds(j * tile.columns, tile.columns)
        scores = dot(q, k_ref[keys, :], 1, 1) * (scale * LOG2_E)
        if masked:
            scores = jnp.where(_visible(sees, j, tile), scores, -jnp.inf)
        new_peak = jnp.maximum(peak, scores.max(1))
        weights = jnp.exp2(scores - new_peak[:, None])
        fade = jnp.exp2(peak - new_peak)
        update = dot(weights.astype(q.dtype), v_ref[keys, :], 1, 0)
        return new_peak, total * fade + weights.sum(1), out * fade[:, None] + update

    zeros = jnp.zeros((tile.rows,), jnp.float32)
    carry = zeros + _LEAST, zeros, jnp.zeros(q.shape, jnp.float32)
    peak, total, out = _over_tiles(bounds_ref, step, carry)
    total = jnp.where(total == 0, 1.0, total)  # sees nothing: gives 0, and NaN stays NaN
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    lse_ref[...] = peak + jnp.log2(total)


def _dq_kernel(
    q_ref,
    d_out_ref,
    lse_ref,
    delta_ref,
    k_ref,
    v_ref,
    first_ref,
    last_ref,
    bounds_ref,
    d_q_ref,
    *,
    tile,
    scale,
):
    q, d_out, sees = q_ref[...], d_out_ref[...], (first_ref[...], last_ref[...])
    lse, delta = lse_ref[...][:, None], delta_ref[...][:, None]

    def step(masked, j, d_q):
        keys = pl.ds(j * tile.columns, tile.columns)
        k = k_ref[keys, :]
        scores = dot(q, k, 1, 1) * (scale * LOG2_E)
        if masked:
            scores = jnp.where(_visible(sees, j, tile), scores, -jnp.inf)
        weights = jnp.exp2(scores - lse)
        d_scores = weights * (dot(d_out, v_ref[keys, :], 1, 1) - delta)
        return d_q + dot(d_scores.astype(k.dtype), k, 1, 0)

    d_q = _over_tiles(bounds_ref, step, jnp.zeros(q.shape, jnp.float32))
    d_q_ref[...] = (d_q * scale).astype(d_q_ref.dtype)


def _dkv_kernel(
    q_ref,
    d_out_ref,
    lse_ref,
    delta_ref,
    k_ref,
    v_ref,
    first_ref,
    last_ref,
    bounds_ref,
    d_k_ref,
    d_v_ref,
    *,
    tile,
    scale,
):
    k, v, sees = k_ref[...], v_ref[...], (first_ref[...], last_ref[...])

    def step(head, masked, i, carry):
        d_k, d_v = carry
        queries = pl.ds(i * tile.columns, tile.columns)
        q, d_out = q_ref[queries, head, :], d_out_ref[queries, head, :]
        scores = dot(k, q, 1, 1) * (scale * LOG2_E)
        if masked:
            scores = jnp.where(_visible(sees, i, tile), scores, -jnp.inf)
        weights = jnp.exp2(scores - lse_ref[head, queries][None, :])
        d_v = d_v + dot(weights.astype(v.dtype), d_out, 1, 0)
        d_scores = weights * (dot(v, d_out, 1, 1) - delta_ref[head, queries][None, :])
        return d_k + dot(d_scores.astype(k.dtype), q, 1, 0), d_v

    def one_head(head, carry):
        return _over_tiles(bounds_ref, functools.partial(step, head), carry)

    zeros = jnp.zeros(k.shape, jnp.float32)
    d_k, d_v = lax.fori_loop(0, q_ref.shape[1], one_head, (zeros, zeros))
    d_k_ref[...] = (d_k * scale).astype(d_k_ref.dtype)
    d_v_ref[...] = d_v.astype(d_v_ref.dtype)


def _over_tiles(bounds_ref, step, carry):
    """``carry = step(masked, j, carry)`` for the tiles that the program's rows need."""
    start, full_start, full_end, end = (bounds_ref[i] for i in range(4))
    carry = lax.fori_loop(start, full_start, functools.partial(step, True), carry)
    carry = lax.fori_loop(full_start, full_end, functools.partial(step, False), carry)
    return lax.fori_loop(full_end, end, functools.partial(step, True), carry)


def _visible(sees, j, tile: Tile):
    """``[rows, columns]``: which columns of the j-th tile the rows see."""
    columns = j * tile.columns + lax.broadcasted_iota(jnp.int32, (tile.rows, tile.columns), 1)
    return (columns >= sees[0][:, None]) & (columns < sees[1][:, None])


def _bounds(ranges, tile: Tile):
    """``[B, n, 4]``: ``block_bounds`` of each block of rows."""
    start, end = ranges
    return jnp.stack(block_bounds(start, end, tile.rows, tile.columns), axis=-1)


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


class _Specs:
    """What a program reads of each array; programs are (row of the batch, block of rows, head)."""

    def __init__(self, q, k, tile: Tile):
        self.T, self.N, self.H = q.shape[1:]
        self.S, self.K = k.shape[1:3]
        self.G, self.tile = self.N // self.K, tile

    def rows(self):
        """The block of rows of one head: of queries, or of keys."""
        return pl.BlockSpec((None, self.tile.rows, None, self.H), lambda b, i, n: (b, i, n, 0))

    def row_sums(self):
        """One value for each row, of ``[B, N, T]``."""
        return pl.BlockSpec((None, None, self.tile.rows), lambda b, i, n: (b, n, i))

    def all_keys(self):
        """The query head's kv head; the loop loads tiles of it."""
        return pl.BlockSpec((None, self.S, None, self.H), lambda b, i, n: (b, 0, n // self.G, 0))

    def all_queries(self):
        """The heads of the kv head's group."""
        return pl.BlockSpec((None, self.T, self.G, self.H), lambda b, i, n: (b, 0, n, 0))

    def all_sums(self):
        """The values of ``all_queries`` in ``[B, N, T]``."""
        return pl.BlockSpec((None, self.G, self.T), lambda b, i, n: (b, n, 0))

    def ranges(self):
        """First and end of the interval of each row, and the bounds of the block's tiles."""
        ends = pl.BlockSpec((None, self.tile.rows), lambda b, i, n: (b, i))
        return ends, ends, pl.BlockSpec((None, None, 4), lambda b, i, n: (b, i, 0))


def _call(kernel, tile: Tile, *, scale, interpret, **specs):
    # the parameters' class selects Triton: the default for GPUs differs between versions of jax
    params = plgpu.CompilerParams(num_warps=tile.num_warps, num_stages=tile.num_stages)
    kernel = functools.partial(kernel, tile=tile, scale=scale)
    return pl.pallas_call(kernel, compiler_params=params, interpret=interpret, **specs)
