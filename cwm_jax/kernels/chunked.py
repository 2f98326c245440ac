"""Blocked attention in portable XLA: never materialises T x S, and skips what the mask excludes.

Queries and keys are cut into blocks. For each block of queries a loop runs over the key blocks
between the first one that any of its queries sees (window and documents) and the block on the
diagonal; its bounds are values, so other documents cost nothing, forward and backward. The softmax
is accumulated online; the backward pass recomputes the weights from the saved log-sum-exp.

The query heads of a group are folded into the query rows: a tile is one batched product
``[B, K, G*Q, H] x [B, K, C, H]``. On CPU this shape, and tiles small enough to stay in cache,
decide the speed (docs/LOG.md, benchmarks/train_step_cpu.py).

B batch, T positions, N heads, K kv heads, G = N/K, H head width, n blocks, Q = C tokens in a block.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cwm_jax.kernels.mask import key_starts

_MASKED = -1e30  # finite: a row whose first tile is all masked must not become NaN
_HEAD_DIMS = ((0, 1), (0, 1))  # batch dimensions of every product below: B and K


def chunked_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    *,
    sliding_window: int | None,
    scale: float,
    block_tokens: int | None = None,
) -> Float[Array, "B T N H"]:
    """See ``cwm_jax.kernels.attention``; scores and sums are float32 whatever the inputs' dtype."""
    T = q.shape[1]
    block = min(block_tokens or _default_block_tokens(), T)
    padding = -T % block

    def pad(x):
        return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))

    starts = key_starts(pad(segment_ids), sliding_window)
    out: Any = _blocked(pad(q), pad(k), pad(v), starts, block, scale)
    return out[:, :T]


def _default_block_tokens() -> int:
    """128: fastest of 64, 128, 256 on CPU (measured, docs/LOG.md); 512 elsewhere is assumed."""
    return 128 if jax.default_backend() == "cpu" else 512


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _blocked(q, k, v, starts, block: int, scale: float):
    return _forward(q, k, v, starts, block, scale)[0]


def _forward(q, k, v, starts, block, scale):
    _, T, N, H = q.shape
    K = k.shape[2]
    q_blocks, k_blocks, v_blocks = (_to_blocks(x, K, block) for x in (q, k, v))

    def query_block(_, x):
        i, q_block, start = x

        def key_block(j, carry):
            peak, total, out = carry
            scores = _scores(q_block, k_blocks[j], start, i, j, scale)
            new_peak = jnp.maximum(peak, scores.max(-1, keepdims=True))
            weights = jnp.exp(scores - new_peak)
            fade = jnp.exp(peak - new_peak)
            update = _dot(weights.astype(v.dtype), v_blocks[j], 3, 2)
            return new_peak, total * fade + weights.sum(-1, keepdims=True), out * fade + update

        rows = q_block.shape[:3]
        zeros = jnp.zeros((*rows, 1), jnp.float32)
        carry = (zeros + _MASKED, zeros, jnp.zeros((*rows, H), jnp.float32))
        peak, total, out = jax.lax.fori_loop(*_key_blocks(start, i, block), key_block, carry)
        sees_any = _fold_rows(start <= i * block + jnp.arange(block), rows)
        lse = jnp.where(sees_any, peak + jnp.log(total), jnp.inf)  # inf: weights 0 when recomputed
        out = jnp.where(sees_any, out / total, 0.0)
        return None, (out.astype(q.dtype), lse)

    xs = (jnp.arange(T // block), q_blocks, _starts_to_blocks(starts, block))
    _, (out, lse) = jax.lax.scan(query_block, None, xs)
    out = _from_blocks(out, N, block)
    return out, (q, k, v, starts, out, lse)


def _backward(block, scale, residuals, d_out):
    q, k, v, starts, out, lse = residuals
    T, N, K = q.shape[1], q.shape[2], k.shape[2]
    q_blocks, k_blocks, v_blocks, d_out_blocks = (_to_blocks(x, K, block) for x in (q, k, v, d_out))
    products = out.astype(jnp.float32) * d_out.astype(jnp.float32)
    delta = _to_blocks(products.sum(-1, keepdims=True), K, block)

    def query_block(d_kv, x):
        i, q_block, start, d_out_block, delta_block, lse_block = x

        def key_block(j, carry):
            d_k, d_v, d_q = carry
            scores = _scores(q_block, k_blocks[j], start, i, j, scale)
            weights = jnp.exp(scores - lse_block)
            d_weights = _dot(d_out_block, v_blocks[j], 3, 3)
            d_scores = (weights * (d_weights - delta_block) * scale).astype(q.dtype)
            d_q = d_q + _dot(d_scores, k_blocks[j], 3, 2)
            d_k = d_k.at[j].add(_dot(d_scores, q_block, 2, 2))
            d_v = d_v.at[j].add(_dot(weights.astype(v.dtype), d_out_block, 2, 2))
            return d_k, d_v, d_q

        carry = (*d_kv, jnp.zeros(q_block.shape, jnp.float32))
        *d_kv, d_q = jax.lax.fori_loop(*_key_blocks(start, i, block), key_block, carry)
        return tuple(d_kv), d_q.astype(q.dtype)

    d_kv = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k_blocks, v_blocks))
    starts = _starts_to_blocks(starts, block)
    xs = (jnp.arange(T // block), q_blocks, starts, d_out_blocks, delta, lse)
    (d_k, d_v), d_q = jax.lax.scan(query_block, d_kv, xs)
    d_k, d_v = (_from_blocks(x, K, block).astype(k.dtype) for x in (d_k, d_v))
    return _from_blocks(d_q, N, block), d_k, d_v, None


_blocked.defvjp(_forward, _backward)


def _key_blocks(start, i, block):
    """First and one-past-last key block that the i-th block of queries needs."""
    return jnp.minimum(jnp.min(start) // block, i + 1), i + 1


def _scores(q_block, k_block, start, i, j, scale):
    """Masked float32 scores ``[B, K, G*Q, C]`` of one tile."""
    scores = _dot(q_block, k_block, 3, 3) * scale
    B, K, rows, C = scores.shape
    Q = start.shape[1]
    query, key = i * Q + jnp.arange(Q), j * C + jnp.arange(C)
    visible = (key <= query[:, None]) & (key >= start[:, :, None])
    scores = scores.reshape(B, K, rows // Q, Q, C)
    return jnp.where(visible[:, None, None], scores, _MASKED).reshape(B, K, rows, C)


def _dot(x, y, x_dim: int, y_dim: int):
    dims = (((x_dim,), (y_dim,)), _HEAD_DIMS)
    return jax.lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)


def _fold_rows(visible, rows):
    """``[B, Q]`` -> ``[B, K, G*Q, 1]``: one flag for each folded query row."""
    B, K, folded = rows
    Q = visible.shape[1]
    tiled = jnp.broadcast_to(visible[:, None, None], (B, K, folded // Q, Q))
    return tiled.reshape(B, K, folded, 1)


def _to_blocks(x, K: int, block: int):
    """``[B, T, heads, H]`` -> ``[n, B, K, (heads/K)*block, H]``."""
    B, T, heads, H = x.shape
    x = x.reshape(B, T // block, block, K, heads // K, H)
    return x.transpose(1, 0, 3, 4, 2, 5).reshape(T // block, B, K, heads // K * block, H)


def _from_blocks(x, heads: int, block: int):
    """The inverse of ``_to_blocks``."""
    n, B, K, _, H = x.shape
    x = x.reshape(n, B, K, heads // K, block, H).transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(B, n * block, heads, H)


def _starts_to_blocks(starts, block: int):
    B, T = starts.shape
    return starts.reshape(B, T // block, block).transpose(1, 0, 2)
