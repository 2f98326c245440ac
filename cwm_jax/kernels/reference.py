"""The oracle: dense masked attention in float32, which every other one is tested against."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cwm_jax.kernels.mask import IntervalMask, dense_mask


def reference_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask,
    *,
    scale: float,
) -> Float[Array, "B T N H"]:
    """Scores of all pairs, softmax over the visible ones; queries that see nothing give 0."""
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x.astype(jnp.float32), groups, axis=2) for x in (k, v))
    visible = dense_mask(mask)[:, None]
    scores = jnp.einsum("btnh,bsnh->bnts", q.astype(jnp.float32), k) * scale
    weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(jnp.float32).min), axis=-1)
    weights = jnp.where(visible, weights, 0.0)
    return jnp.einsum("bnts,bsnh->btnh", weights, v).astype(q.dtype)
