"""Attention of new tokens to a cache in one Pallas Triton kernel, for NVIDIA GPUs.

What bounds the time is reading the cache, so every program reads a part of it once and for all
queries of its group: programs are (row, kv head, split), the rows of a product are the group's
queries, and the splits share the live slots of their row evenly (between the window's first key and
the newest one), however long the cache is. The partial softmaxes are combined outside, exactly.
The slots of a row lie in pages anywhere in the cache; a whole row is one page.

B batch, T queries, S slots, N heads, K kv heads, G = N/K, H head width, P splits.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int, Int8

from cwm_jax.kernels.cached import (
    LEAST,
    Partial,
    check_cache,
    combine_splits,
    fold_queries,
    unfold_queries,
)
from cwm_jax.kernels.flash import LOG2_E, dot

_LEAST_ROWS = 16  # of a tensor core's product
_PROGRAMS, _LEAST_SLOTS = 512, 512  # see DecodeBlocks.num_splits


@dataclasses.dataclass(frozen=True)
class DecodeBlocks:
    """Assumed: they fit the 99 KiB of shared memory of sm_86 and sm_89. On an H200 other numbers of
    splits were up to 10 % faster (docs/LOG.md)."""

    num_splits: int | None = None
    """Of a row and kv head; None makes 512 programs in all, of 512 slots or more each: four for
    each core of the largest cards, and partial results that are small beside the cache."""
    slots: int = 64
    """Read at once; a power of two."""
    num_warps: int = 4
    num_stages: int = 3


def decode_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"] | Int8[Array, "B K S H"],
    v: Float[Array, "B K S H"] | Int8[Array, "B K S H"],
    positions: Int[Array, "B T"],
    *,
    sliding_window: int | None,
    scale: float | None = None,
    k_scale: Float[Array, "B K S"] | None = None,
    v_scale: Float[Array, "B K S"] | None = None,
    ring: bool = False,
    blocks: DecodeBlocks | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """``cached_attention`` on a GPU: the same arguments and result; ``interpret`` is for tests.

    Raises:
        ValueError: as ``decode_attention_in_pages``.
    """
    return decode_attention_in_pages(
        q,
        k,
        v,
        jnp.arange(q.shape[0], dtype=jnp.int32)[:, None],
        positions,
        sliding_window=sliding_window,
        scale=scale,
        k_scale=k_scale,
        v_scale=v_scale,
        ring=ring,
        blocks=blocks,
        interpret=interpret,
    )


def decode_attention_in_pages(
    q: Float[Array, "B T N H"],
    k: Float[Array, "pages K slots H"] | Int8[Array, "pages K slots H"],
    v: Float[Array, "pages K slots H"] | Int8[Array, "pages K slots H"],
    pages: Int[Array, "B n"],
    positions: Int[Array, "B T"],
    *,
    sliding_window: int | None,
    scale: float | None = None,
    k_scale: Float[Array, "pages K slots"] | None = None,
    v_scale: Float[Array, "pages K slots"] | None = None,
    ring: bool = False,
    blocks: DecodeBlocks | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """``cached_attention_in_pages`` on a GPU, reading the pages where they are.

    Raises:
        ValueError: as ``cached_attention``, and for a head width that is no power of two, pages
            that are no whole tiles, or an int8 cache too large for the kernel's indices.
    """
    num_slots = pages.shape[1] * k.shape[2]
    check_cache(q, k, v, k_scale, v_scale, sliding_window, ring, num_slots=num_slots)
    blocks = blocks or DecodeBlocks()
    if pages.shape[1] > 1 and k.shape[2] < blocks.slots:
        blocks = dataclasses.replace(blocks, slots=k.shape[2])
    _check_sizes(q, k, pages, blocks)
    scale = float(q.shape[-1] ** -0.5) if scale is None else scale
    T, K = q.shape[1], k.shape[1]
    rows = fold_queries(q, K)
    num_rows = rows.shape[2]
    padding = max(_LEAST_ROWS, pl.next_power_of_2(num_rows)) - num_rows
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, padding), (0, 0)))
    row_positions = jnp.repeat(positions, num_rows // T, axis=1)
    row_positions = jnp.pad(row_positions, ((0, 0), (0, padding)), constant_values=-1)
    live = _live_slots(positions, num_slots, sliding_window, ring)
    scales = () if k_scale is None or v_scale is None else (k_scale, v_scale)
    kernel = functools.partial(
        _decode_kernel, scale=scale, sliding_window=sliding_window, ring=ring
    )
    inputs = (rows, k, v, row_positions, live, pages.astype(jnp.int32), *scales)
    partial = _call(kernel, inputs, blocks, interpret)
    out = combine_splits(Partial(*partial))[:, :, :num_rows]
    return unfold_queries(out, T).astype(q.dtype)


def _check_sizes(q, k, pages, blocks: DecodeBlocks) -> None:
    H, slots = q.shape[-1], k.shape[2]
    if pages.shape[1] > 1 and slots % blocks.slots:
        raise ValueError(
            f"decode_attention got pages of {slots} slots; expected whole tiles of {blocks.slots}: "
            "take a power of two"
        )
    if H < _LEAST_ROWS or H & (H - 1):
        raise ValueError(
            f"decode_attention got head_dim {H}; expected a power of two from {_LEAST_ROWS} on: "
            "take cached_attention, which has any"
        )
    # Pallas counts elements in 32 bits for arrays up to 4 GiB; 16 bit elements then are few enough
    if k.dtype == jnp.int8 and k.size > 2**31 and k.size <= 2**32:
        raise ValueError(
            f"decode_attention got an int8 cache of {k.size} elements in one array; expected at "
            f"most {2**31} or more than {2**32}, which the kernel can index: shard its heads, or "
            "take another number of pages"
        )


def _live_slots(positions, num_slots: int, sliding_window: int | None, ring: bool):
    """``[B, 3]``: the first slot that any query of the row sees, the end of them, the newest one's
    position."""
    newest = positions.max(1)
    first = jnp.zeros_like(newest)
    if sliding_window is not None and not ring:
        first = jnp.maximum(positions.min(1) - (sliding_window - 1), 0)
    return jnp.stack([first, jnp.minimum(newest + 1, num_slots), newest], axis=1)


def _call(kernel, inputs, blocks: DecodeBlocks, interpret: bool):
    rows, k = inputs[:2]
    (B, K, R, H), (num_pages, _, slots, _) = rows.shape, k.shape
    num_row_pages = inputs[5].shape[1]
    S = num_row_pages * slots
    P = blocks.num_splits or max(1, min(_PROGRAMS // (B * K), S // _LEAST_SLOTS))
    cache = pl.BlockSpec((num_pages, None, slots, H), lambda b, n, p: (0, n, 0, 0))
    slot_scale = pl.BlockSpec((num_pages, None, slots), lambda b, n, p: (0, n, 0))
    row_sums = pl.BlockSpec((None, None, None, R), lambda b, n, p: (b, n, p, 0))
    in_specs = [
        pl.BlockSpec((None, None, R, H), lambda b, n, p: (b, n, 0, 0)),
        cache,
        cache,
        pl.BlockSpec((None, R), lambda b, n, p: (b, 0)),
        pl.BlockSpec((None, 3), lambda b, n, p: (b, 0)),
        pl.BlockSpec((None, num_row_pages), lambda b, n, p: (b, 0)),
    ]
    sums = jax.ShapeDtypeStruct((B, K, P, R), jnp.float32)
    return pl.pallas_call(
        functools.partial(kernel, tile_slots=blocks.slots),
        grid=(B, K, P),
        in_specs=in_specs + [slot_scale] * (len(inputs) - len(in_specs)),
        out_specs=[
            pl.BlockSpec((None, None, None, R, H), lambda b, n, p: (b, n, p, 0, 0)),
            row_sums,
            row_sums,
        ],
        out_shape=[jax.ShapeDtypeStruct((B, K, P, R, H), jnp.float32), sums, sums],
        # the parameters' class selects Triton: the default differs between versions of jax
        compiler_params=plgpu.CompilerParams(
            num_warps=blocks.num_warps, num_stages=blocks.num_stages
        ),
        interpret=interpret,
    )(*inputs)


def _decode_kernel(
    q_ref,
    k_ref,
    v_ref,
    positions_ref,
    live_ref,
    pages_ref,
    *refs,
    tile_slots: int,
    scale: float,
    sliding_window: int | None,
    ring: bool,
):
    *scale_refs, out_ref, total_ref, peak_ref = refs
    k_scale_ref, v_scale_ref = scale_refs or (None, None)
    q, positions, newest = q_ref[...], positions_ref[...], live_ref[2]
    page_slots = k_ref.shape[1]
    num_slots = pages_ref.shape[0] * page_slots

    def step(j, carry):
        peak, total, out = carry
        slots = pl.ds(j * tile_slots, tile_slots)
        if pages_ref.shape[0] == 1:
            page, in_page = pages_ref[0], slots
        else:
            page = pages_ref[lax.div(slots.start, page_slots)]
            in_page = pl.ds(lax.rem(slots.start, page_slots), tile_slots)
        scores = dot(q, _load(k_ref, page, in_page).astype(q.dtype), 1, 1) * (scale * LOG2_E)
        if k_scale_ref is not None:
            scores *= _load(k_scale_ref, page, in_page)[None, :]
        visible = _visible(positions, newest, slots, num_slots, sliding_window, ring)
        scores = jnp.where(visible, scores, -jnp.inf)
        new_peak = jnp.maximum(peak, scores.max(1))
        weights = jnp.exp2(scores - new_peak[:, None])
        fade = jnp.exp2(peak - new_peak)
        total = total * fade + weights.sum(1)
        if v_scale_ref is not None:
            weights *= _load(v_scale_ref, page, in_page)[None, :]
        update = dot(weights.astype(q.dtype), _load(v_ref, page, in_page).astype(q.dtype), 1, 0)
        return new_peak, total, out * fade[:, None] + update

    first, end = live_ref[0] // tile_slots, pl.cdiv(live_ref[1], tile_slots)
    share = pl.cdiv(end - first, pl.num_programs(2))
    first += pl.program_id(2) * share
    zeros = jnp.zeros(positions.shape, jnp.float32)
    carry = zeros + LEAST, zeros, jnp.zeros(q.shape, jnp.float32)
    peak, total, out = lax.fori_loop(first, jnp.minimum(first + share, end), step, carry)
    out_ref[...], total_ref[...], peak_ref[...] = out, total, peak / LOG2_E


def _visible(positions, newest, slots, num_slots: int, sliding_window: int | None, ring: bool):
    """``[R, slots]``: ``visible_slots``, of a tile and for every row of a product."""
    slots = slots.start + jnp.arange(slots.size)
    # remainders of negative numbers are negative: of slots that are not written, and not visible
    held = newest - lax.rem(newest - slots, num_slots) if ring else slots
    age = positions[:, None] - held[None, :]
    visible = (age >= 0) & (slots < jnp.minimum(newest + 1, num_slots))[None, :]
    return visible if sliding_window is None else visible & (age < sliding_window)


def _load(ref, page, slots):
    """Of a cache, or of its scales; 0 past the last slot of the page."""
    num_slots = ref.shape[1]
    if num_slots % slots.size == 0:
        return ref[page, slots]
    inside = slots.start + jnp.arange(slots.size) < num_slots
    inside = inside.reshape(-1, *[1] * (len(ref.shape) - 2))
    return plgpu.load(ref.at[page, slots], mask=inside, other=0)
