"""A linear map's kernel in 8 or 4 bits, which stands in the parameters where the array stood.

B batch, T position; I and O: what a map reads and writes, flattened; G groups of inputs.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

# assumed: where sums by group, in float32, take less memory traffic than a kernel in bfloat16
_FEW_ROWS = 32
_SUMMED = 128  # assumed: inputs that a GPU sums at a time where one scale is for all


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedKernel:
    """A kernel as values times scales; scanned layers stack both on their leading axis.

    With a scale for each output, products are made of the values and scaled afterwards: nothing but
    the result is rounded.
    """

    values: Shaped[Array, "*ins *outs"]
    """int8 or float8_e4m3fn. Or uint8 with two 4-bit integers plus 8 in each, the last of the
    inputs' dimensions halved: of a group's first half in the low bits, of its second in the high.
    """
    scales: Float[Array, "*groups *outs"]
    """Of groups of consecutive inputs; 1 along each of the inputs' dimensions is one for all."""

    def product(
        self, x: Float[Array, "B T *ins"], num_in: int, dtype: jnp.dtype | None = None
    ) -> Float[Array, "B T *outs"]:
        """``x`` times the kernel over its first ``num_in`` dimensions, summed in float32.

        Args:
            x: also says in which dtype factors are multiplied.
            num_in: dimensions of the kernel that are contracted.
            dtype: of the result; None is that of ``x``.
        """
        y = jax.lax.platform_dependent(
            x.reshape(*x.shape[:2], -1),
            *self.flat(num_in),
            default=_product,
            cuda=_product_on_gpu,
        )
        return y.reshape(*x.shape[:2], *self.values.shape[num_in:]).astype(dtype or x.dtype)

    def flat(self, num_in: int) -> tuple[Shaped[Array, "J O"], Float[Array, "G O"]]:
        """Values and scales as matrices; J is I, or half of it."""
        num_out = math.prod(self.values.shape[num_in:])
        return self.values.reshape(-1, num_out), self.scales.reshape(-1, num_out)


def dequantize(
    values: Shaped[Array, "J O"], scales: Float[Array, "G O"], dtype
) -> Float[Array, "I O"]:
    """Values times scales, multiplied in float32."""
    G, num_out = scales.shape
    parts = _halves(values, G) if _is_packed(values) else (values.reshape(G, -1, num_out),)
    wide = jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=1)
    return (wide * scales[:, None].astype(jnp.float32)).reshape(-1, num_out).astype(dtype)


def _is_packed(values) -> bool:
    return values.dtype == jnp.uint8


def _halves(values, num_groups: int):
    """int8 of the first and the second half of each group, ``[G, i, O]``."""
    pairs = values.reshape(num_groups, -1, values.shape[1])
    return tuple(half.astype(jnp.int8) - 8 for half in (pairs & 15, pairs >> 4))


def _product(x: Float[Array, "B T I"], values, scales) -> Float[Array, "B T O"]:
    if not _is_packed(values):
        return _dot(x, values.astype(x.dtype)) * scales[0]
    if x.shape[0] * x.shape[1] == 1 < len(scales):  # twice as fast on a CPU (measured)
        return _by_group(x, values, scales)
    return _dot(x, dequantize(values, scales, x.dtype))


def _product_on_gpu(x: Float[Array, "B T I"], values, scales) -> Float[Array, "B T O"]:
    """What XLA for GPUs makes small programs of (seen in them, docs/LOG.md)."""
    rows = x.shape[0] * x.shape[1]
    if rows == 1:  # sums read the layer's values in the stack; a product would have them copied
        if not _is_packed(values):
            parts = len(values) // math.gcd(_SUMMED, len(values))
            sums = _sums(x, values.reshape(parts, -1, values.shape[1]))
            return jnp.sum(sums, axis=2) * scales[0]
        kernel = dequantize(values, scales, jnp.float32)
        return jnp.sum(x[0, 0, :, None].astype(jnp.float32) * kernel, axis=0)[None, None]
    # without it XLA converts the whole stack at once where the loop over layers is unrolled
    values = jax.lax.optimization_barrier(values)
    if not _is_packed(values):
        return _dot(x, values.astype(x.dtype)) * scales[0]
    if rows <= _FEW_ROWS:
        return _by_group(x, values, scales)
    return _dot(x, dequantize(values, scales, x.dtype))


def _dot(x: Float[Array, "B T I"], kernel: Float[Array, "I O"]) -> Float[Array, "B T O"]:
    dimensions = (((2,), (0,)), ((), ()))
    return jax.lax.dot_general(x, kernel, dimensions, preferred_element_type=jnp.float32)


def _by_group(x: Float[Array, "B T I"], values, scales) -> Float[Array, "B T O"]:
    """Sums of each group of a packed kernel, then their sum, scaled."""
    G = len(scales)
    first, second = jnp.split(x.reshape(*x.shape[:2], G, -1), 2, axis=3)
    low, high = _halves(values, G)
    sums = _sums(first, low) + _sums(second, high)
    return jnp.sum(sums * scales.astype(jnp.float32), axis=2)


def _sums(x: Float[Array, "B T *parts"], values: Shaped[Array, "G i O"]) -> Float[Array, "B T G O"]:
    """Of each part of the inputs."""
    return jnp.einsum(
        "btgi,gio->btgo",
        x.reshape(*x.shape[:2], *values.shape[:2]),
        values.astype(x.dtype),
        preferred_element_type=jnp.float32,
    )
