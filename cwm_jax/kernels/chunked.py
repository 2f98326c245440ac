"""Blocked attention in portable XLA: never materialises T x S, and skips what the mask excludes.

Queries and keys are cut into blocks. For each block of queries a loop runs over the key blocks that
any of its queries sees (window and documents); its bounds are values, so other documents cost
nothing, forward and backward (the rows of a device share the bounds: the longest document of a
block's queries decides). The softmax is accumulated online; the backward pass recomputes the
weights from the saved log-sum-exp.

The query heads of a group are folded into the query rows: a tile is one batched product
``[B, K, Q*G, H] x [B, K, C, H]``. On CPU this shape, tiles small enough to stay in cache, and
products whose wide operand needs no transposition (the gradients of keys and values are summed as
``[B, K, H, T]``) decide the speed (docs/LOG.md, benchmarks/train_step_cpu.py).

B batch, T positions, N heads, K kv heads, G = N/K, H head width, n blocks, Q = C tokens in a block.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cwm_jax.kernels.flash import attention_residuals, pad_to_multiple, row_products
from cwm_jax.kernels.mask import IntervalMask, block_bounds

_MASKED = -1e30  # finite: a row whose first tile is all masked must not become NaN
_HEAD_DIMS = ((0, 1), (0, 1))  # batch dimensions of every product below: B and K


def chunked_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask,
    *,
    scale: float,
    block_tokens: int | None = None,
) -> Float[Array, "B T N H"]:
    """See ``cwm_jax.kernels.attention``; scores and sums are float32 whatever the inputs' dtype."""
    T = q.shape[1]
    block = min(block_tokens or _default_block_tokens(), T)

    def pad(x):
        return pad_to_multiple(x, 1, block)

    bounds = block_bounds(mask.key_start, mask.key_end, block, block)
    tiles = jnp.min(bounds.start, axis=0), jnp.max(bounds.end, axis=0)
    interval = pad(mask.key_start), pad(mask.key_end)
    out: Any = _blocked(pad(q), pad(k), pad(v), interval, tiles, block, scale)
    return out[:, :T]


def _default_block_tokens() -> int:
    """128: fastest of 64, 128, 256 on CPU (measured, docs/LOG.md); 512 elsewhere is assumed."""
    return 128 if jax.default_backend() == "cpu" else 512


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _blocked(q, k, v, interval, tiles, block: int, scale: float):
    return _forward(q, k, v, interval, tiles, block, scale)[0]


def _forward(q, k, v, interval, tiles, block, scale):
    T, N, K = q.shape[1], q.shape[2], k.shape[2]
    q_rows, k_rows, v_rows = (_fold(x, K) for x in (q, k, v))
    rows = N // K * block  # in a block of queries

    def query_block(i, results):
        q_block, sees = _block(q_rows, i, rows), _interval(interval, i, block)

        def key_block(j, carry):
            peak, total, out = carry
            k_block, v_block = _block(k_rows, j, block), _block(v_rows, j, block)
            scores = _scores(q_block, k_block, sees, j, scale)
            new_peak = jnp.maximum(peak, _over_keys(jnp.max, scores))
            weights = jnp.exp(scores - new_peak)
            fade = jnp.exp(peak - new_peak)
            update = _dot(weights.astype(v.dtype), v_block, 3, 2)
            return new_peak, total * fade + _over_keys(jnp.sum, weights), out * fade + update

        zeros = jnp.zeros(q_block.shape, jnp.float32)
        carry = (zeros[..., :1] + _MASKED, zeros[..., :1], zeros)
        peak, total, out = jax.lax.fori_loop(tiles[0][i], tiles[1][i], key_block, carry)
        sees_any = _to_rows(sees[0] < sees[1], N // K)
        lse = jnp.where(sees_any, peak + jnp.log(total), jnp.inf)  # inf: weights 0 when recomputed
        out = jnp.where(sees_any, out / total, 0.0).astype(q.dtype)
        return _put_block(results[0], out, i), _put_block(results[1], lse, i)

    out = jnp.zeros_like(q_rows), jnp.zeros((*q_rows.shape[:3], 1), jnp.float32)
    out, lse = jax.lax.fori_loop(0, T // block, query_block, out)
    out, lse = attention_residuals(_unfold(out, T), lse)
    return out, (q, k, v, interval, tiles, out, lse)


def _backward(block, scale, residuals, d_out):
    q, k, v, interval, tiles, out, lse = residuals
    T, S, K = q.shape[1], k.shape[1], k.shape[2]
    q_rows, k_rows, v_rows, d_out_rows = (_fold(x, K) for x in (q, k, v, d_out))
    delta = _fold(row_products(out, d_out)[..., None], K)
    rows = q.shape[2] // K * block

    def query_block(i, gradients):
        q_block, d_out_block = _block(q_rows, i, rows), _block(d_out_rows, i, rows)
        lse_block, delta_block = _block(lse, i, rows), _block(delta, i, rows)
        sees = _interval(interval, i, block)

        def key_block(j, carry):
            d_k, d_v, d_q = carry
            k_block, v_block = _block(k_rows, j, block), _block(v_rows, j, block)
            scores = _scores(q_block, k_block, sees, j, scale)
            weights = jnp.exp(scores - lse_block)
            d_weights = _dot(d_out_block, v_block, 3, 3)
            d_scores = (weights * (d_weights - delta_block) * scale).astype(q.dtype)
            d_q = d_q + _dot(d_scores, k_block, 3, 2)
            d_k = _add_block(d_k, _dot(q_block, d_scores, 2, 2), j)
            d_v = _add_block(d_v, _dot(d_out_block, weights.astype(v.dtype), 2, 2), j)
            return d_k, d_v, d_q

        d_k, d_v, d_q = gradients
        carry = d_k, d_v, jnp.zeros(q_block.shape, jnp.float32)
        d_k, d_v, d_q_block = jax.lax.fori_loop(tiles[0][i], tiles[1][i], key_block, carry)
        return d_k, d_v, _put_block(d_q, d_q_block.astype(q.dtype), i)

    zeros = jnp.zeros(k_rows.mT.shape, jnp.float32)
    gradients = (zeros, zeros, jnp.zeros_like(q_rows))
    d_k, d_v, d_q = jax.lax.fori_loop(0, T // block, query_block, gradients)
    d_k, d_v = (_unfold(x.mT, S).astype(k.dtype) for x in (d_k, d_v))
    return _unfold(d_q, T), d_k, d_v, None, None


_blocked.defvjp(_forward, _backward)


def _interval(interval, i, block):
    """First key, and one past the last, of each query of the i-th block."""
    return tuple(_block(x, i, block, axis=1) for x in interval)


def _scores(q_block, k_block, sees, j, scale):
    """Masked float32 scores ``[B, K, Q*G, C]`` of one tile."""
    scores = _dot(q_block, k_block, 3, 3) * scale
    B, K, rows, C = scores.shape
    Q, key = sees[0].shape[1], j * C + jnp.arange(C)
    visible = (key >= sees[0][:, :, None]) & (key < sees[1][:, :, None])
    scores = scores.reshape(B, K, Q, rows // Q, C)
    return jnp.where(visible[:, None, :, None], scores, _MASKED).reshape(B, K, rows, C)


def _dot(x, y, x_dim: int, y_dim: int):
    dims = (((x_dim,), (y_dim,)), _HEAD_DIMS)
    return jax.lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)


def _over_keys(reduce, x):
    """``reduce(x, -1)`` in two short steps: XLA on CPU vectorises those, and not a long one."""
    lanes = math.gcd(x.shape[-1], 16)
    return reduce(reduce(x.reshape(*x.shape[:-1], -1, lanes), -2), -1, keepdims=True)


def _to_rows(flags, G: int):
    """``[B, Q]`` -> ``[B, 1, Q*G, 1]``: one flag for each folded query row."""
    return jnp.repeat(flags, G, axis=1)[:, None, :, None]


def _fold(x, K: int):
    """``[B, T, heads, H]`` -> ``[B, K, T*(heads/K), H]``; no copy where K is 1."""
    B, T, heads, H = x.shape
    x = x.reshape(B, T, K, heads // K, H).transpose(0, 2, 1, 3, 4)
    return x.reshape(B, K, T * (heads // K), H)


def _unfold(x, T: int):
    """The inverse of ``_fold``."""
    B, K, rows, H = x.shape
    return x.reshape(B, K, T, rows // T, H).transpose(0, 2, 1, 3, 4).reshape(B, T, -1, H)


def _block(x, i, size: int, axis: int = 2):
    return jax.lax.dynamic_slice_in_dim(x, i * size, size, axis)


def _put_block(x, block, i):
    return jax.lax.dynamic_update_slice_in_dim(x, block, i * block.shape[2], 2)


def _add_block(x, block, i):
    """Adds to the i-th block of the last dimension."""
    size = block.shape[3]
    return jax.lax.dynamic_update_slice_in_dim(
        x, _block(x, i, size, axis=3) + block, i * size, axis=3
    )
