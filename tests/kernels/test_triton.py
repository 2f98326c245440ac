"""Oracle: the Triton kernels, interpreted on the CPU, against the dense reference."""

import jax.numpy as jnp
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
from tolerances import KERNEL_BF16_GRADIENT_RTOL, KERNEL_BF16_RTOL

from cwm_jax.kernels.triton import Tile, TritonBlocks, default_blocks, triton_attention

# small, and rows and columns differ, so that none can be taken for another
BLOCKS = TritonBlocks(Tile(32, 16, 4, 2), Tile(16, 32, 4, 2), Tile(16, 32, 4, 2))


def attend(q, k, v, mask, blocks=BLOCKS):
    scale = q.shape[-1] ** -0.5
    return triton_attention(q, k, v, mask, scale=scale, blocks=blocks, interpret=True)


def attend_by_default(q, k, v, mask):
    return attend(q, k, v, mask, blocks=None)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cases([(2, 77, 2, 2, 64), (1, 96, 1, 6, 128), (1, 9, 2, 1, 64)]))
def test_values_and_gradients_are_those_of_the_oracle(case):
    assert_agrees(attend, case)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(cases([(1, 96, 1, 2, 128)], dtype=jnp.bfloat16))
def test_bfloat16_is_rounded_where_the_products_need_it_and_nowhere_else(case):
    bounds = dict(rtol=KERNEL_BF16_RTOL, gradient_rtol=KERNEL_BF16_GRADIENT_RTOL)
    assert_agrees(attend, case, **bounds)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_default_blocks_agree_too(dtype):
    segments = segments_from_lengths(200, [30, 65], 7)[None]
    case = make_case(1, 200, 1, 2, 64, segments, 90, dtype=dtype)
    if dtype == jnp.float32:
        assert_agrees(attend_by_default, case)
    else:
        bounds = dict(rtol=KERNEL_BF16_RTOL, gradient_rtol=KERNEL_BF16_GRADIENT_RTOL)
        assert_agrees(attend_by_default, case, **bounds)


def test_blocks_of_another_document_are_never_read():
    assert_other_documents_are_never_read(attend, 128, 64)


def test_blocks_outside_the_window_are_never_read():
    assert_blocks_before_the_window_are_never_read(attend, 160, 17, poisoned=64, unharmed_from=96)


def test_padding_outputs_zero_and_has_zero_gradient():
    assert_padding_is_zero(attend, 77, 30)


def test_vmap_equals_batch():
    assert_vmap_equals_batch(attend, 48, (11, 30))


def test_refuses_a_head_width_that_it_does_not_have():
    assert_refuses_other_head_widths(attend)


def test_every_tile_is_a_power_of_two_that_the_tensor_cores_take():
    for dtype in (jnp.float32, jnp.bfloat16):
        blocks = default_blocks(dtype)
        for tile in (blocks.forward, blocks.dq, blocks.dkv):
            for size in (tile.rows, tile.columns):
                assert size >= 16 and size & (size - 1) == 0
