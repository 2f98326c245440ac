"""Oracle: the TPU kernels, interpreted on the CPU, against the dense reference."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    assert_agrees,
    assert_blocks_before_the_window_are_never_read,
    assert_other_documents_are_never_read,
    assert_padding_is_zero,
    assert_refuses_other_head_widths,
    assert_vmap_equals_batch,
    cases,
    make_case,
    segments_from_lengths,
)
from hypothesis import given, settings
from jax.experimental.pallas import tpu as pltpu
from tolerances import KERNEL_BF16_GRADIENT_RTOL, KERNEL_BF16_RTOL

from cwm_jax.kernels import tpu
from cwm_jax.kernels.flash import pad_to_multiple
from cwm_jax.kernels.mask import block_bounds
from cwm_jax.kernels.tpu import tpu_attention
from cwm_jax.kernels.tuning import TpuBlocks, TpuTile, tpu_blocks, tpu_chip

# queries and keys of a tile differ, and so do the kernels', so that none can be taken for another
BLOCKS = TpuBlocks(
    forward=TpuTile(128, 256, 128, 128),
    dq=TpuTile(256, 128, 128, 128),
    dkv=TpuTile(256, 256, 128, 256),
)
BF16_BOUNDS = dict(rtol=KERNEL_BF16_RTOL, gradient_rtol=KERNEL_BF16_GRADIENT_RTOL)


def attend(q, k, v, mask, blocks=BLOCKS, interpret=True):
    scale = q.shape[-1] ** -0.5
    return tpu_attention(q, k, v, mask, scale=scale, blocks=blocks, interpret=interpret)


def attend_by_default(q, k, v, mask):
    return attend(q, k, v, mask, blocks=None)


@settings(max_examples=24, deadline=None, derandomize=True)
@given(cases([(2, 300, 1, 2, 64), (1, 300, 1, 6, 128), (1, 9, 2, 1, 64)]))
def test_values_and_gradients_are_those_of_the_oracle(case):
    assert_agrees(attend, case)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(cases([(1, 300, 1, 2, 128)], dtype=jnp.bfloat16))
def test_bfloat16_is_rounded_where_the_products_need_it_and_nowhere_else(case):
    assert_agrees(attend, case, **BF16_BOUNDS)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_default_blocks_agree_too(dtype):
    segments = segments_from_lengths(700, [30, 265], 7)[None]
    case = make_case(1, 700, 1, 2, 128, segments, 290, dtype=dtype)
    assert_agrees(attend_by_default, case, **(BF16_BOUNDS if dtype == jnp.bfloat16 else {}))


@pytest.mark.parametrize(("window", "lengths"), [(None, [100]), (130, [40, 200])])
def test_the_interpreter_that_keeps_tpu_memory_apart_agrees(window, lengths):
    """It runs the copies between memories as such: nothing is there that was not fetched."""
    segments = segments_from_lengths(300, lengths, 5)[None]
    case = make_case(1, 300, 1, 2, 64, segments, window)
    assert_agrees(functools.partial(attend, interpret=pltpu.InterpretParams()), case)


def test_blocks_of_another_document_are_never_read():
    assert_other_documents_are_never_read(attend, 512, 256)


def test_blocks_outside_the_window_are_never_read():
    assert_blocks_before_the_window_are_never_read(
        attend, 1024, 129, poisoned=256, unharmed_from=512
    )


def test_padding_outputs_zero_and_has_zero_gradient():
    assert_padding_is_zero(attend, 300, 130)


def test_vmap_equals_batch():
    assert_vmap_equals_batch(attend, 200, (11, 130))


def test_refuses_a_head_width_that_it_does_not_have():
    assert_refuses_other_head_widths(attend)


# ---------------------------------------------------------------- the list of live tiles


def decoded(tiles, b):
    """(row, column, flags) of every step of that row of the batch."""
    entries = np.asarray(tiles.entries).reshape(-1, int(tiles.max_steps))[b, : int(tiles.num_steps)]
    columns = (entries >> tpu._COLUMN_SHIFT) & tpu._COLUMN_BITS
    return list(zip(entries >> tpu._ROW_SHIFT, columns, entries & 15, strict=True))


live_tiles = jax.jit(tpu._live_tiles, static_argnums=(1, 2), static_argnames="rows_are_queries")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases([(2, 1024, 1, 1, 1), (1, 640, 1, 1, 1)]))
def test_every_live_tile_is_listed_once_and_in_order(case):
    mask, tile = case.mask, TpuTile(128, 64, 128, 64)
    ranges = tpu._Ranges(
        keys=pad_to_multiple(jnp.stack([mask.key_start, mask.key_end], 1), 2, tile.queries),
        queries=pad_to_multiple(jnp.stack([mask.query_start, mask.query_end], 1), 2, tile.keys),
    )
    # the window only shortens the list, which would compile once for each
    reach = tpu._Reach(mask.aligned, None)
    for rows_are_queries in (True, False):
        tiles = live_tiles(ranges, tile, reach, rows_are_queries=rows_are_queries)
        sizes = (tile.queries, tile.keys) if rows_are_queries else (tile.keys, tile.queries)
        start, end = (ranges.keys if rows_are_queries else ranges.queries).transpose(1, 0, 2)
        bounds = jax.tree.map(np.asarray, block_bounds(start, end, *sizes))
        num_rows = bounds.start.shape[1]
        num_columns = (ranges.queries if rows_are_queries else ranges.keys).shape[2] // sizes[1]
        reach_of_window = tpu._Reach(mask.aligned, mask.sliding_window)
        most = tpu._most_tiles(num_rows, num_columns, sizes, reach_of_window, rows_are_queries)
        assert int(tiles.num_steps) <= most <= int(tiles.max_steps)
        for b in range(start.shape[0]):
            expected = [x for row in range(num_rows) for x in row_of(bounds, b, row)]
            got = decoded(tiles, b)
            assert got[: len(expected)] == expected
            assert all(flags == 0 for _, _, flags in got[len(expected) :])


def row_of(bounds, b, row):
    start, full_start, full_end, end = (int(x[b, row]) for x in bounds)
    if start == end:
        yield row, max(start - 1, 0), tpu._FIRST | tpu._LAST
    for column in range(start, end):
        flags = tpu._WHOLE if full_start <= column < full_end else tpu._PARTIAL
        flags |= tpu._FIRST * (column == start) | tpu._LAST * (column == end - 1)
        yield row, column, flags


def test_a_window_bounds_the_list_whatever_the_length():
    """8192 / 1024 blocks of keys, and one more where the window does not begin with a block."""
    reach = tpu._Reach(aligned=True, window=8192)
    longest = tpu._most_tiles(512, 128, (256, 1024), reach, rows_are_queries=True)
    assert longest <= 512 * (8 + 1)
    unbounded = tpu._most_tiles(512, 128, (256, 1024), tpu._Reach(True, None), True)
    assert unbounded == 4 * 128 * 129 // 2
    assert tpu._most_tiles(512, 128, (256, 1024), tpu._Reach(False, 8192), True) == 512 * 128


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_units_divide_their_tiles_and_all_sizes_are_powers_of_two(chip):
    for T, window in ((8192, None), (131_072, 8192), (131_072, 300), (100, None)):
        for group, dtype in ((1, jnp.bfloat16), (6, jnp.float32), (24, jnp.bfloat16)):
            blocks = tpu_blocks(chip, T, window, group, dtype)
            for tile in (blocks.forward, blocks.dq, blocks.dkv):
                sizes = dataclasses.astuple(tile)
                assert all(n >= 128 and n & (n - 1) == 0 for n in sizes)
                assert tile.unit_queries <= tile.queries and tile.unit_keys <= tile.keys
                assert tile.queries < 2 * max(T, 64)


def test_a_device_of_another_kind_gets_the_tiles_of_v5p():
    kinds = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e", "cpu": "v5p"}
    for kind, chip in kinds.items():
        assert tpu_chip(types.SimpleNamespace(device_kind=kind)) == chip
