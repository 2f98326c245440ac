"""Building blocks: linear maps, embedding, RMSNorm and SwiGLU.

Each weight is declared once, with its shape, its logical axes and its initial distribution.

B batch, T position, D embed, F mlp width, N heads, H head width, V vocab.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from cwm_jax.config import ModelConfig
from cwm_jax.model.quantized import QuantizedKernel
from cwm_jax.sharding import shard


class Linear(nnx.Module):
    """A bias-free linear map that contracts ``num_in`` dimensions of its kernel.

    The kernel's initial values are normal, truncated at two standard deviations, with variance
    ``gain**2 / fan_in``. Source: assumed (CWM's initialisation is not published); scaling with
    fan-in matters at small widths, where HF's fixed 0.02 does not learn to copy.
    """

    def __init__(self, shape, axes, *, num_in=1, gain=1.0, rngs: nnx.Rngs):
        fan_in = math.prod(shape[:num_in])
        std = gain / math.sqrt(fan_in)
        value = std * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32)
        self.kernel = nnx.Param(value, out_sharding=tuple(axes))
        self.num_in = num_in

    def __call__(self, x: Float[Array, "B T *ins"]) -> Float[Array, "B T *outs"]:
        kernel = self.kernel.get_value()
        if isinstance(kernel, QuantizedKernel):
            return kernel.product(x, self.num_in)
        return product(x, kernel.astype(x.dtype), self.num_in)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "B T *ins"], kernel: Float[Array, "*ins *outs"], num_in: int
) -> Float[Array, "B T *outs"]:
    """``x`` times ``kernel`` over the kernel's first ``num_in`` dimensions.

    Its own gradient differs from autodiff's in one thing: the kernel's gradient is made as
    ``x^T dy``, not as the transpose of ``dy^T x``, so that XLA on CPU does not copy ``dy``, mostly
    the wider of the two (16 % of a training step, measured, docs/LOG.md).
    """
    return _dot(x, kernel, num_in)


def _dot(x, kernel, num_in):
    ins = tuple(range(num_in))
    return jax.lax.dot_general(x, kernel, ((tuple(2 + i for i in ins), ins), ((), ())))


def _product_forward(x, kernel, num_in):
    return _dot(x, kernel, num_in), (x, kernel)


def _product_backward(num_in, residuals, dy):
    x, kernel = residuals
    outs_dy, outs_kernel = tuple(range(2, dy.ndim)), tuple(range(num_in, kernel.ndim))
    dx = jax.lax.dot_general(dy, kernel, ((outs_dy, outs_kernel), ((), ())))
    return dx, jax.lax.dot_general(x, dy, (((0, 1), (0, 1)), ((), ())))


product.defvjp(_product_forward, _product_backward)


class Embedding(nnx.Module):
    """Rows of a table, looked up by token."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.hidden_size)
        value = jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32)
        std = 1 / math.sqrt(config.hidden_size)  # assumed
        self.embedding = nnx.Param(std * value, out_sharding=("vocab", "embed"))

    def __call__(self, tokens: Int[Array, "B T"], dtype) -> Float[Array, "B T D"]:
        table = shard(self.embedding[...].astype(dtype), "vocab", None)
        return shard(jnp.take(table, tokens, axis=0), "batch", "seq", "act_embed")


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation in float32, then a scale in the input's dtype (as in HF)."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones(width, jnp.float32), out_sharding=("norm",))
        self.eps = eps

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return self.scale[...].astype(x.dtype) * y.astype(x.dtype)


class Mlp(nnx.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        wide = (config.hidden_size, config.intermediate_size)
        self.gate_proj = Linear(wide, ("embed", "mlp"), rngs=rngs)
        self.up_proj = Linear(wide, ("embed", "mlp"), rngs=rngs)
        gain = residual_gain(config)
        self.down_proj = Linear(wide[::-1], ("mlp", "embed"), gain=gain, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate = checkpoint_name(self.gate_proj(x), "gate")
        wide = jax.nn.silu(gate) * checkpoint_name(self.up_proj(x), "up")
        return self.down_proj(shard(wide, "batch", "seq", "act_mlp"))


def residual_gain(config: ModelConfig) -> float:
    """Gain of the maps that write to the residual stream: their sum over layers keeps its size.

    Source: GPT-2's 1/sqrt(2L); assumed for CWM.
    """
    return 1 / math.sqrt(2 * config.num_hidden_layers)
