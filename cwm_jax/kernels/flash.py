"""What the blocked kernels share: constants of the softmax in base 2, products, whole blocks."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Shaped

HEAD_DIMS = (64, 128)  # of the Pallas kernels; below 64 and above 128 nothing was compiled

LOG2_E = math.log2(math.e)
MASKED = -1e30
LOWEST_PEAK = -1e20  # above what is masked: a row that is all masked has weights 0, not exp2(0)


def require_head_dim(name: str, head_dim: int) -> None:
    """Raises ValueError for a head width that the kernels do not have."""
    if head_dim not in HEAD_DIMS:
        raise ValueError(
            f"{name} attention got head_dim {head_dim}; expected one of {HEAD_DIMS}: take "
            "implementation 'chunked', which has any"
        )


def pad_to_multiple(x: Shaped[Array, ...], axis: int, multiple: int) -> Shaped[Array, ...]:
    """Whole blocks along the axis; the interval of a position added is empty."""
    return jnp.pad(x, [(0, -n % multiple if i == axis else 0) for i, n in enumerate(x.shape)])


def row_products(
    out: Float[Array, "*rows H"], d_out: Float[Array, "*rows H"]
) -> Float[Array, "*rows"]:
    """Sum of each row's output times its gradient, in float32: delta of the backward pass."""
    return (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(-1)


def dot(x, y, x_dim: int, y_dim: int):
    """Product of matrices over these dimensions, summed in float32.

    float32 operands are cut neither to 16 bit (TPU) nor to tf32 (GPU).
    """
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return lax.dot_general(
        x,
        y,
        (((x_dim,), (y_dim,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def attention_residuals(out: Array, lse: Array) -> tuple[Array, Array]:
    """Marks what the backward pass reads of a forward pass as the tensor ``attention`` of remat."""
    return checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
