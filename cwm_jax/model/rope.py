"""Rotary position embedding, plain or with Llama 3's frequency scaling; rotate-half layout."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cwm_jax.config import RopeParameters


def inverse_frequencies(rope: RopeParameters, head_dim: int) -> np.ndarray:
    """Radians per token of each rotated pair: float32 ``[H/2]``.

    Source: Llama 3's ``rope_type: llama3`` as in HF's ``modeling_rope_utils`` (bit-equal for H =
        128).
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    freqs = (np.float32(1.0) / np.float32(rope.rope_theta) ** exponents).astype(np.float32)
    if rope.rope_type == "default":
        return freqs
    wavelength = np.float32(2 * math.pi) / freqs  # tokens in a whole turn
    original = rope.original_max_position_embeddings
    low, high = rope.low_freq_factor, rope.high_freq_factor
    kept_share = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    scaled = (1 - kept_share) * freqs / rope.factor + kept_share * freqs
    return scaled.astype(np.float32)


def rope_tables(
    positions: Int[Array, "B T"], rope: RopeParameters, head_dim: int
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Cosine and sine of every position's angles, float32."""
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(rope, head_dim)
    return jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]


def apply_rope(
    x: Float[Array, "B T heads H"],
    cos: Float[Array, "B T 1 half"],
    sin: Float[Array, "B T 1 half"],
) -> Float[Array, "B T heads H"]:
    """Rotates the pairs (i, i + H/2) in float32; the result has x's dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
