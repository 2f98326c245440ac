"""Attention under one mask, with an oracle and faster implementations behind one call."""

from cwm_jax.kernels.cached import cached_attention
from cwm_jax.kernels.dispatch import attention

__all__ = ["attention", "cached_attention"]
