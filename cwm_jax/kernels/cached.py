"""Attention of new tokens to keys that a cache keeps, in portable XLA: dense over the slots.

B batch, T queries, S slots, N heads, K kv heads, G = N/K, H head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cwm_jax.kernels.mask import slot_mask

_HEAD_DIMS = ((0, 1), (0, 1))  # batch dimensions of both products: B and K


def cached_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    positions: Int[Array, "B T"],
    *,
    sliding_window: int | None,
    scale: float | None = None,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention under CWM's mask, in rows of one document each.

    Args:
        q: RoPE applied; query head n reads kv head ``n // (N/K)``.
        k, v: slot s holds the row's position s, the queries' own included.
        positions: of the queries, below S; slots after them may hold anything finite.
        sliding_window: keys that a query sees, its own included; None sees all before it.
        scale: of the scores; None is ``H**-0.5``.
    """
    (B, T, N, H), (K, S) = q.shape, k.shape[1:3]
    folded = q.reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4).reshape(B, K, T * N // K, H)
    scores = _dot(folded, k, 3) * (H**-0.5 if scale is None else scale)
    mask = slot_mask(positions, S, sliding_window)[:, None, :, None]
    scores = jnp.where(mask, scores.reshape(B, K, T, N // K, S), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).reshape(B, K, T * N // K, S)
    out = _dot(weights.astype(v.dtype), v, 2).astype(q.dtype)
    return out.reshape(B, K, T, N // K, H).transpose(0, 2, 1, 3, 4).reshape(B, T, N, H)


def _dot(x, y, y_dim: int):
    dims = (((3,), (y_dim,)), _HEAD_DIMS)
    return jax.lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)
