"""Attention for NVIDIA Hopper (sm_90a) in Pallas Mosaic GPU: forward, dq, and dk with dv.

A thread block has three warpgroups. Two compute, each 64 rows of a tile of 128, with their sums in
registers; the third fills a ring of shared-memory slots by bulk copies (TMA). ``ready`` barriers
say that a slot is full, ``consumed`` barriers that both have read it. The tiles that a block of
rows needs are a range from the interval mask (``block_bounds``): copies and products start at its
first tile and stop at its last, so a window or another document costs nothing in either pass, and
only tiles outside ``full_start .. full_end`` are masked.

The backward pass is split in two kernels without atomics, so it is deterministic: dq walks over
the keys that its queries see, dk and dv walk over the queries (of each head of the group) that see
their keys, on transposed scores, where every product finds its operands as the tensor cores want
them. What was tried and measured is in docs/kernels.md and docs/LOG.md.

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
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from cwm_jax.kernels.flash import (
    HEAD_DIMS,
    LOG2_E,
    LOWEST_PEAK,
    MASKED,
    attention_residuals,
    dot,
    pad_to_multiple,
    row_products,
)
from cwm_jax.kernels.mask import IntervalMask, block_bounds

DTYPES = ("bfloat16", "float16")

_ROWS = 64  # of one warpgroup's products: what wgmma computes at once
_COMPUTE = 2  # warpgroups that compute; one more copies
_TILE = _ROWS * _COMPUTE
_COMPUTE_REGISTERS, _COPY_REGISTERS = 240, 24  # for each thread; 504 for the three together

_TILED = plgpu.Layout.WGMMA
_ROW = _TILED.reduce(1)  # one value for each row of a product
_COLUMN = _TILED.reduce(0)


@dataclasses.dataclass(frozen=True)
class HopperBlocks:
    """(columns of a tile, slots of the ring) of each kernel; measured on an H200, docs/LOG.md.

    Slots are powers of two: the remainder by three alone made the dk, dv kernel 10 % slower.
    """

    forward: tuple[int, int] = (128, 2)
    dq: tuple[int, int] = (64, 4)
    dkv: tuple[int, int] = (64, 2)


def hopper_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask,
    *,
    scale: float,
    blocks: HopperBlocks | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """See ``cwm_jax.kernels.attention``; float32 scores, softmax and sums.

    Args:
        blocks: None is the measured default.
        interpret: True runs Pallas' GPU interpreter, for tests (float32 works there too).

    Raises:
        ValueError: a head_dim or, on a GPU, a dtype that these kernels do not have.
    """
    if q.shape[-1] not in HEAD_DIMS:
        raise ValueError(
            f"the hopper kernels have head_dim {' and '.join(map(str, HEAD_DIMS))}; got "
            f"{q.shape[-1]}: use implementation='chunked'"
        )
    if q.dtype.name not in DTYPES and not interpret:
        raise ValueError(
            f"the hopper kernels take {' and '.join(DTYPES)}; got {q.dtype}: cast, or use "
            "implementation='triton' or 'chunked'"
        )
    blocks = blocks or HopperBlocks()
    T, multiple = q.shape[1], math.lcm(_TILE, blocks.forward[0], blocks.dq[0], blocks.dkv[0])

    def pad(x):
        return pad_to_multiple(x, 1, multiple)

    keys, queries = (mask.key_start, mask.key_end), (mask.query_start, mask.query_end)
    ranges = tuple(map(pad, keys)), tuple(map(pad, queries))
    out: Any = _attention(pad(q), pad(k), pad(v), ranges, blocks, scale, interpret)
    return out[:, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attention(q, k, v, ranges, blocks, scale, interpret):
    return _forward(q, k, v, ranges, blocks, scale, interpret)[0]


def _forward(q, k, v, ranges, blocks, scale, interpret):
    B, T, N, _ = q.shape
    keys, block = ranges[0], blocks.forward
    out, lse = _call(
        functools.partial(_forward_kernel, scale, block, _Registers(interpret)),
        "forward",
        [q, jax.ShapeDtypeStruct((B, N, T), jnp.float32)],
        scratch=_forward_scratch(q, block),
        grid=(B, T // _TILE, N),
        interpret=interpret,
    )(q, k, v, *keys, _bounds(keys, block))
    out, lse = attention_residuals(out, lse)
    return out, (q, k, v, ranges, out, lse)


def _backward(blocks, scale, interpret, residuals, d_out):
    q, k, v, (keys, queries), out, lse = residuals
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    delta = row_products(out, d_out).transpose(0, 2, 1)
    inputs = q, k, v, d_out, lse, delta
    d_q = _call(
        functools.partial(_dq_kernel, scale, blocks.dq, _Registers(interpret)),
        "dq",
        q,
        scratch=_dq_scratch(q, blocks.dq),
        grid=(B, T // _TILE, N),
        interpret=interpret,
    )(*inputs, *keys, _bounds(keys, blocks.dq))
    d_k, d_v = _call(
        functools.partial(_dkv_kernel, scale, blocks.dkv, _Registers(interpret)),
        "dkv",
        [k, v],
        scratch=_dkv_scratch(q, blocks.dkv),
        grid=(B, S // _TILE, K),
        interpret=interpret,
    )(*inputs, *queries, _bounds(queries, blocks.dkv))
    return d_q, d_k, d_v, None


_attention.defvjp(_forward, _backward)


def _bounds(interval, block):
    start, end = interval
    return jnp.stack(block_bounds(start, end, _TILE, block[0]))


def _call(kernel, name, out_type, *, scratch, grid, interpret):
    """The heads of a tile, which share its keys, run at the same time: the last axis is fastest."""
    return plgpu.kernel(
        kernel,
        out_type=out_type,
        scratch_types=scratch,
        grid=grid,
        grid_names=("batch", "tile", "head"),
        num_threads=_COMPUTE + 1,
        thread_name="warpgroup",
        kernel_name=f"cwm_attention_{name}",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=_interpreter() if interpret else False,
    )


def _interpreter():
    from jax._src.pallas.mosaic_gpu.interpret import params  # public from jax 0.11 on

    return params.InterpretGPUParams()


# ---------------------------------------------------------------- forward


def _forward_scratch(q, block):
    columns, slots = block
    H, dtype = q.shape[-1], q.dtype
    return dict(
        q_smem=_matrix((_COMPUTE, _ROWS, H), dtype),
        k_smem=_matrix((slots, columns, H), dtype),
        v_smem=_matrix((slots, columns, H), dtype),
        interval_smem=plgpu.SMEM((_COMPUTE, 2, _ROWS), jnp.int32),
        lse_smem=plgpu.SMEM((_COMPUTE, _ROWS), jnp.float32),
        q_ready=plgpu.Barrier(num_arrivals=3, num_barriers=_COMPUTE),
        k_ready=plgpu.Barrier(num_barriers=slots),
        v_ready=plgpu.Barrier(num_barriers=slots),
        k_consumed=plgpu.Barrier(num_arrivals=_COMPUTE, num_barriers=slots),
        v_consumed=plgpu.Barrier(num_arrivals=_COMPUTE, num_barriers=slots),
        turn=plgpu.Barrier(num_arrivals=_COMPUTE),
    )


def _forward_kernel(
    scale, block, registers,
    q_ref, k_ref, v_ref, start_ref, end_ref, bounds_ref, out_ref, lse_ref,
    *, q_smem, k_smem, v_smem, interval_smem, lse_smem,
    q_ready, k_ready, v_ready, k_consumed, v_consumed, turn,
):  # fmt: skip
    (columns, slots), factor = block, scale * LOG2_E
    b, n = lax.axis_index("batch"), lax.axis_index("head")
    # the last queries see the most keys: the long tiles start first
    tile = bounds_ref.shape[2] - 1 - lax.axis_index("tile")
    warpgroup = lax.axis_index("warpgroup")
    first, full_first, full_end, end = (bounds_ref[i, b, tile] for i in range(4))

    def take_turns():
        """One warpgroup's products run while the other computes its softmax."""
        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(turn)

    @pl.when(warpgroup < _COMPUTE)
    def _compute():
        plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
        rows = pl.ds(tile * _TILE + warpgroup * _ROWS, _ROWS)
        q_tile, interval, ready = (x.at[warpgroup] for x in (q_smem, interval_smem, q_ready))
        plgpu.copy_gmem_to_smem(q_ref.at[b, rows, n], q_tile, ready)
        plgpu.copy_gmem_to_smem(start_ref.at[b, rows], interval.at[0], ready)
        plgpu.copy_gmem_to_smem(end_ref.at[b, rows], interval.at[1], ready)
        plgpu.barrier_wait(ready)

        def wait_for_k(j):
            @pl.when(j < end)
            def _():
                plgpu.barrier_wait(k_ready.at[lax.rem(j, slots)])

        def step(j, carry):
            out, peak, total = carry
            slot = lax.rem(j, slots)
            scores = registers.multiply_transposed(q_tile, k_smem.at[slot], meanwhile=take_turns)
            plgpu.barrier_arrive(k_consumed.at[slot])
            is_full = (full_first <= j) & (j < full_end)
            scores = registers.mask_unless(is_full, scores, j * columns, interval)
            new_peak = jnp.maximum(peak, scores.max(axis=1) * factor)
            fade = jnp.exp2(peak - new_peak)
            weights = jnp.exp2(scores * factor - _along_rows(new_peak, scores.shape))
            out *= _along_rows(fade, out.shape)
            total = total * fade + weights.sum(axis=1)
            weights = weights.astype(v_smem.dtype)
            # all of the softmax is done before the turn goes to the other warpgroup
            out, total, new_peak, weights = lax.optimization_barrier(
                (out, total, new_peak, weights)
            )
            plgpu.barrier_arrive(turn)
            plgpu.barrier_wait(v_ready.at[slot])
            plgpu.barrier_wait(turn)
            (out,) = registers.multiply_add(
                (out, weights, v_smem.at[slot]), meanwhile=lambda: wait_for_k(j + 1)
            )
            plgpu.barrier_arrive(v_consumed.at[slot])
            return out, new_peak, total

        out = registers.full((_ROWS, q_tile.shape[1]), 0.0, _TILED)
        peak = registers.full((_ROWS,), LOWEST_PEAK, _ROW)
        total = registers.full((_ROWS,), 0.0, _ROW)
        wait_for_k(first)
        pl.when(warpgroup == 1)(take_turns)
        out, peak, total = lax.fori_loop(first, end, step, (out, peak, total))
        pl.when(warpgroup == 0)(take_turns)

        key_start, key_end = (registers.cast(interval[i], _ROW) for i in range(2))
        sees_any = key_start < key_end
        total = jnp.where(sees_any, total, 1.0)
        inverse = jnp.where(sees_any, 1.0 / total, 0.0)
        q_tile[...] = (out * _along_rows(inverse, out.shape)).astype(out_ref.dtype)
        # far above every score where nothing is seen: weights 0 when recomputed
        lse_smem.at[warpgroup][...] = jnp.where(sees_any, peak + jnp.log2(total), -MASKED)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q_tile, out_ref.at[b, rows, n])
        plgpu.copy_smem_to_gmem(lse_smem.at[warpgroup], lse_ref.at[b, n, rows])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == _COMPUTE)
    def _copy():
        plgpu.set_max_registers(_COPY_REGISTERS, action="decrease")
        kv_head = lax.div(n, q_ref.shape[2] // k_ref.shape[2])
        buffers = (k_ref, k_smem, k_ready, k_consumed), (v_ref, v_smem, v_ready, v_consumed)

        @pl.loop(first, end)
        def _(j):
            slot, source = lax.rem(j, slots), (b, pl.ds(j * columns, columns), kv_head)
            for ref, smem, ready, consumed in buffers:
                _wait_if(j >= first + slots, consumed.at[slot])
                plgpu.copy_gmem_to_smem(ref.at[source], smem.at[slot], ready.at[slot])

        _wait_for_the_last(first, end, slots, k_consumed, v_consumed)


# ---------------------------------------------------------------- backward: dq


def _dq_scratch(q, block):
    columns, slots = block
    H, dtype = q.shape[-1], q.dtype
    return dict(
        q_smem=_matrix((_COMPUTE, _ROWS, H), dtype),
        d_out_smem=_matrix((_COMPUTE, _ROWS, H), dtype),
        k_smem=_matrix((slots, columns, H), dtype),
        v_smem=_matrix((slots, columns, H), dtype),
        interval_smem=plgpu.SMEM((_COMPUTE, 2, _ROWS), jnp.int32),
        row_smem=plgpu.SMEM((_COMPUTE, 2, _ROWS), jnp.float32),
        rows_ready=plgpu.Barrier(num_arrivals=6, num_barriers=_COMPUTE),
        kv_ready=plgpu.Barrier(num_arrivals=2, num_barriers=slots),
        kv_consumed=plgpu.Barrier(num_arrivals=_COMPUTE, num_barriers=slots),
    )


def _dq_kernel(
    scale, block, registers,
    q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, start_ref, end_ref, bounds_ref, d_q_ref,
    *, q_smem, d_out_smem, k_smem, v_smem, interval_smem, row_smem,
    rows_ready, kv_ready, kv_consumed,
):  # fmt: skip
    (columns, slots), factor = block, scale * LOG2_E
    b, n = lax.axis_index("batch"), lax.axis_index("head")
    tile = bounds_ref.shape[2] - 1 - lax.axis_index("tile")
    warpgroup = lax.axis_index("warpgroup")
    first, full_first, full_end, end = (bounds_ref[i, b, tile] for i in range(4))

    @pl.when(warpgroup < _COMPUTE)
    def _compute():
        plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
        rows = pl.ds(tile * _TILE + warpgroup * _ROWS, _ROWS)
        q_tile, d_out_tile, interval, values, ready = (
            x.at[warpgroup] for x in (q_smem, d_out_smem, interval_smem, row_smem, rows_ready)
        )
        plgpu.copy_gmem_to_smem(q_ref.at[b, rows, n], q_tile, ready)
        plgpu.copy_gmem_to_smem(d_out_ref.at[b, rows, n], d_out_tile, ready)
        plgpu.copy_gmem_to_smem(start_ref.at[b, rows], interval.at[0], ready)
        plgpu.copy_gmem_to_smem(end_ref.at[b, rows], interval.at[1], ready)
        plgpu.copy_gmem_to_smem(lse_ref.at[b, n, rows], values.at[0], ready)
        plgpu.copy_gmem_to_smem(delta_ref.at[b, n, rows], values.at[1], ready)
        plgpu.barrier_wait(ready)
        # the sums start there: exp2(factor * scores) are the weights, and no row is subtracted
        minus_lse = registers.cast(values[0], _ROW) * (-1 / factor)
        minus_delta = -registers.cast(values[1], _ROW)

        def scores_and_d_weights(j):
            """Terms of the products of tile j."""
            slot, shape = lax.rem(j, slots), (_ROWS, columns)
            plgpu.barrier_wait(kv_ready.at[slot])
            return (
                (_along_rows(minus_lse, shape), q_tile, _Transposed(k_smem.at[slot])),
                (_along_rows(minus_delta, shape), d_out_tile, _Transposed(v_smem.at[slot])),
            )

        def step(j, carry, *, is_last=False):
            """dq of tile j together with the scores of the next: one wait for three products."""
            d_q, scores, d_weights = carry
            slot, is_full = lax.rem(j, slots), (full_first <= j) & (j < full_end)
            scores = registers.mask_unless(is_full, scores, j * columns, interval)
            d_scores = (jnp.exp2(scores * factor) * d_weights).astype(k_smem.dtype)
            following = () if is_last else scores_and_d_weights(j + 1)
            carry = registers.multiply_add((d_q, d_scores, k_smem.at[slot]), *following)
            plgpu.barrier_arrive(kv_consumed.at[slot])
            return tuple(carry)

        d_q = registers.full((_ROWS, q_tile.shape[1]), 0.0, _TILED)

        def all_steps():
            carry = d_q, *registers.multiply_add(*scores_and_d_weights(first))
            carry = lax.fori_loop(first, end - 1, step, carry)
            return step(end - 1, carry, is_last=True)[0]

        d_q = lax.cond(first < end, all_steps, lambda: d_q)
        q_tile[...] = (d_q * scale).astype(d_q_ref.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q_tile, d_q_ref.at[b, rows, n])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == _COMPUTE)
    def _copy():
        plgpu.set_max_registers(_COPY_REGISTERS, action="decrease")
        kv_head = lax.div(n, q_ref.shape[2] // k_ref.shape[2])

        @pl.loop(first, end)
        def _(j):
            slot, source = lax.rem(j, slots), (b, pl.ds(j * columns, columns), kv_head)
            _wait_if(j >= first + slots, kv_consumed.at[slot])
            plgpu.copy_gmem_to_smem(k_ref.at[source], k_smem.at[slot], kv_ready.at[slot])
            plgpu.copy_gmem_to_smem(v_ref.at[source], v_smem.at[slot], kv_ready.at[slot])

        _wait_for_the_last(first, end, slots, kv_consumed)


# ---------------------------------------------------------------- backward: dk and dv


def _dkv_scratch(q, block):
    columns, slots = block
    H, dtype = q.shape[-1], q.dtype
    return dict(
        k_smem=_matrix((_COMPUTE, _ROWS, H), dtype),
        v_smem=_matrix((_COMPUTE, _ROWS, H), dtype),
        q_smem=_matrix((slots, columns, H), dtype),
        d_out_smem=_matrix((slots, columns, H), dtype),
        lse_smem=plgpu.SMEM((slots, columns), jnp.float32),
        delta_smem=plgpu.SMEM((slots, columns), jnp.float32),
        interval_smem=plgpu.SMEM((_COMPUTE, 2, _ROWS), jnp.int32),
        rows_ready=plgpu.Barrier(num_arrivals=4, num_barriers=_COMPUTE),
        q_ready=plgpu.Barrier(num_arrivals=4, num_barriers=slots),
        q_consumed=plgpu.Barrier(num_arrivals=_COMPUTE, num_barriers=slots),
    )


def _dkv_kernel(
    scale, block, registers,
    q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, start_ref, end_ref, bounds_ref,
    d_k_ref, d_v_ref,
    *, k_smem, v_smem, q_smem, d_out_smem, lse_smem, delta_smem, interval_smem,
    rows_ready, q_ready, q_consumed,
):  # fmt: skip
    (columns, slots), factor = block, scale * LOG2_E
    G, dtype = q_ref.shape[2] // k_ref.shape[2], q_ref.dtype
    b, kv_head = lax.axis_index("batch"), lax.axis_index("head")
    tile, warpgroup = lax.axis_index("tile"), lax.axis_index("warpgroup")
    first, full_first, full_end, end = (bounds_ref[i, b, tile] for i in range(4))

    def slot_of(g, j):
        """Of tile j of the g-th query head of the group; the heads follow one another."""
        return lax.rem(g * (end - first) + j - first, slots)

    @pl.when(warpgroup < _COMPUTE)
    def _compute():
        plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
        rows = pl.ds(tile * _TILE + warpgroup * _ROWS, _ROWS)
        k_tile, v_tile, interval, ready = (
            x.at[warpgroup] for x in (k_smem, v_smem, interval_smem, rows_ready)
        )
        plgpu.copy_gmem_to_smem(k_ref.at[b, rows, kv_head], k_tile, ready)
        plgpu.copy_gmem_to_smem(v_ref.at[b, rows, kv_head], v_tile, ready)
        plgpu.copy_gmem_to_smem(start_ref.at[b, rows], interval.at[0], ready)
        plgpu.copy_gmem_to_smem(end_ref.at[b, rows], interval.at[1], ready)
        plgpu.barrier_wait(ready)

        def column(smem, slot, by):
            return _along_columns(registers.cast(smem[slot], _COLUMN) * by, (_ROWS, columns))

        def step(i, carry):
            j, d_k, d_v = carry
            slot, is_full = lax.rem(i, slots), (full_first <= j) & (j < full_end)
            q_tile, d_out_tile = q_smem.at[slot], d_out_smem.at[slot]
            plgpu.barrier_wait(q_ready.at[slot])
            scores, d_weights = registers.multiply_add(
                (column(lse_smem, slot, -1 / factor), k_tile, _Transposed(q_tile)),
                (column(delta_smem, slot, -1.0), v_tile, _Transposed(d_out_tile)),
            )
            scores = registers.mask_unless(is_full, scores, j * columns, interval)
            weights = jnp.exp2(scores * factor)
            d_scores = (weights * d_weights).astype(dtype)
            d_v, d_k = registers.multiply_add(
                (d_v, weights.astype(dtype), d_out_tile), (d_k, d_scores, q_tile)
            )
            plgpu.barrier_arrive(q_consumed.at[slot])
            return jnp.where(j + 1 == end, first, j + 1), d_k, d_v

        zeros = registers.full((_ROWS, k_tile.shape[1]), 0.0, _TILED)
        num_steps = G * (end - first)
        _, d_k, d_v = lax.fori_loop(0, num_steps, step, (first, zeros, zeros))
        k_tile[...] = (d_k * scale).astype(d_k_ref.dtype)
        v_tile[...] = d_v.astype(d_v_ref.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(k_tile, d_k_ref.at[b, rows, kv_head])
        plgpu.copy_smem_to_gmem(v_tile, d_v_ref.at[b, rows, kv_head])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == _COMPUTE)
    def _copy():
        plgpu.set_max_registers(_COPY_REGISTERS, action="decrease")

        @pl.loop(0, G)
        def _(g):
            n = kv_head * G + g

            @pl.loop(first, end)
            def _(j):
                slot, queries = slot_of(g, j), pl.ds(j * columns, columns)
                ready = q_ready.at[slot]
                _wait_if(g * (end - first) + j - first >= slots, q_consumed.at[slot])
                plgpu.copy_gmem_to_smem(q_ref.at[b, queries, n], q_smem.at[slot], ready)
                plgpu.copy_gmem_to_smem(d_out_ref.at[b, queries, n], d_out_smem.at[slot], ready)
                plgpu.copy_gmem_to_smem(lse_ref.at[b, n, queries], lse_smem.at[slot], ready)
                plgpu.copy_gmem_to_smem(delta_ref.at[b, n, queries], delta_smem.at[slot], ready)

        _wait_for_the_last(0, G * (end - first), slots, q_consumed)


# ---------------------------------------------------------------- shared by the kernels


@dataclasses.dataclass(frozen=True)
class _Transposed:
    """The second operand ``ref.T``."""

    ref: Any

    def view(self):
        if hasattr(self.ref, "transpose"):
            return self.ref.transpose((1, 0))
        return plgpu.transpose_ref(self.ref, (1, 0))  # its name before jax 0.11


class _Registers:
    """Values of a warpgroup in registers, and products into them.

    The interpreter knows neither layouts nor products of transposed references: there the copies,
    the barriers and the arithmetic are the same, and the products are plain ones.
    """

    def __init__(self, interpret):
        self.interpret = interpret

    def cast(self, x, layout):
        return x if self.interpret else plgpu.layout_cast(x, layout)

    def full(self, shape, value, layout):
        return self.cast(jnp.full(shape, value, jnp.float32), layout)

    def mask_unless(self, is_full, scores, first_column, interval):
        """Scores outside each row's interval are replaced; both are read where they are needed."""

        def masked():
            iota = self.cast(lax.broadcasted_iota(jnp.int32, scores.shape, 1), _TILED)
            start, end = (_along_rows(self.cast(interval[i], _ROW), scores.shape) for i in range(2))
            column = first_column + iota
            return jnp.where((column >= start) & (column < end), scores, MASKED)

        return lax.cond(is_full, lambda: scores, masked)

    def multiply_transposed(self, a, b, *, meanwhile=lambda: None):
        """``a @ b.T``; ``meanwhile`` runs between the issue of the product and its end."""
        if self.interpret:
            meanwhile()
            return dot(a[...], b[...], 1, 1)

        def product(accumulator):
            plgpu.wgmma(accumulator, a, _Transposed(b).view())
            meanwhile()
            return accumulator[...]

        return pl.run_scoped(
            product, plgpu.WGMMAAccumulatorRef((a.shape[0], b.shape[0]), jnp.float32)
        )

    def multiply_add(self, *terms, meanwhile=lambda: None):
        """``into + a @ b`` of each ``(into, a, b)``, all issued before the first is waited for."""
        if self.interpret:
            meanwhile()
            return [self._plain_multiply_add(*term) for term in terms]

        def products(accumulators):
            for accumulator, (_, a, b) in zip(accumulators, terms, strict=True):
                plgpu.wgmma(accumulator, a, b.view() if isinstance(b, _Transposed) else b)
            meanwhile()

        return pl.run_state(products)(
            [plgpu.WGMMAAccumulatorRef.init(into) for into, _, _ in terms]
        )

    def _plain_multiply_add(self, into, a, b):
        if isinstance(b, _Transposed):
            return into + dot(a[...], b.ref[...], 1, 1)
        return into + dot(a[...], b[...], 1, 0)


def _matrix(shape, dtype):
    """Shared memory in the swizzled layout that bulk copies write and products read."""
    transforms = (
        plgpu.TilingTransform((8, 128 // jnp.dtype(dtype).itemsize)),
        plgpu.SwizzleTransform(128),
    )
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def _along_rows(x, shape):
    return lax.broadcast_in_dim(x, shape, [0])


def _along_columns(x, shape):
    return lax.broadcast_in_dim(x, shape, [1])


def _wait_if(condition, barrier):
    pl.when(condition)(lambda: plgpu.barrier_wait(barrier))


def _wait_for_the_last(first, end, slots, *barriers):
    """Every phase of a barrier is waited for, those of the last steps' slots too."""

    @pl.loop(jnp.maximum(first, end - slots), end)
    def _(j):
        for barrier in barriers:
            plgpu.barrier_wait(barrier.at[lax.rem(j, slots)])
