"""Attention under one mask, with an oracle and faster implementations behind one call."""

from cwm_jax.kernels.cached import cached_attention
from cwm_jax.kernels.dispatch import attention, attention_to_pages
from cwm_jax.kernels.mask import IntervalMask, causal_mask, interval_mask

__all__ = [
    "IntervalMask",
    "attention",
    "attention_to_pages",
    "cached_attention",
    "causal_mask",
    "interval_mask",
]
