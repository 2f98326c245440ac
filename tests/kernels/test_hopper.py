"""Oracle: the Hopper kernels in Pallas' GPU interpreter, values and gradients.

The interpreter runs copies, barriers and warpgroups as threads, about a second for each tile: few
and small cases here. The same masks at full size run before every timing in
benchmarks/attention_gpu.py.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_agrees, cases, make_case, results, segments_from_lengths
from hypothesis import given, settings
from tolerances import KERNEL_BF16_GRADIENT_RTOL, KERNEL_BF16_RTOL

from cwm_jax.kernels.hopper import hopper_attention
from cwm_jax.kernels.mask import causal_mask


def attend(q, k, v, mask):
    scale = q.shape[-1] ** -0.5
    return hopper_attention(q, k, v, mask, scale=scale, interpret=True)


@settings(max_examples=6, deadline=None)
@given(cases(shapes=[(1, 70, 1, 2, 64), (2, 40, 1, 1, 128)]))
def test_agrees_with_the_reference(case):
    assert_agrees(attend, case)


CASES = {
    "several tiles, window over a border": ((1, 270, 1, 1, 64), [300], 0, 129),
    "documents and padding across tiles": ((1, 200, 1, 2, 64), [40, 1, 120], 9, None),
    "GQA 6": ((1, 64, 1, 6, 64), [20], 3, 17),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_on_several_tiles(name):
    shape, lengths, padding, window = CASES[name]
    segments = segments_from_lengths(shape[1], lengths, padding)[None]
    assert_agrees(attend, make_case(*shape, segments, window))


def test_bfloat16_is_within_its_bound():
    segments = segments_from_lengths(130, [50], 5)[None]
    case = make_case(1, 130, 1, 1, 128, segments, 100, dtype=jnp.bfloat16)
    assert_agrees(attend, case, rtol=KERNEL_BF16_RTOL, gradient_rtol=KERNEL_BF16_GRADIENT_RTOL)


def test_tiles_of_another_document_are_never_read():
    """A NaN in a tile that is read would survive its zero weight."""
    case = make_case(1, 256, 1, 1, 64, segments_from_lengths(256, [128], 0)[None], None)
    clean = results(attend, case)
    poisoned = case._replace(k=case.k.at[:, :128].set(jnp.nan), v=case.v.at[:, :128].set(jnp.nan))
    for name, got in results(attend, poisoned).items():
        np.testing.assert_array_equal(got[:, 128:], clean[name][:, 128:], err_msg=name)


@pytest.mark.parametrize(
    ("head_dim", "dtype", "message"),
    [
        (96, jnp.bfloat16, "head_dim 64 and 128; got 96: use implementation='chunked'"),
        (64, jnp.float32, "bfloat16 and float16; got float32: cast"),
    ],
)
def test_refusals(head_dim, dtype, message):
    q = jnp.zeros((1, 64, 2, head_dim), dtype)
    with pytest.raises(ValueError, match=message):
        hopper_attention(q, q, q, causal_mask(1, 64), scale=1.0)
