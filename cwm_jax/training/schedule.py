"""The learning rate as a function of tokens: warm-up, then cosine or constant."""

from __future__ import annotations

import jax.numpy as jnp

from cwm_jax.config import OptimizerConfig


def learning_rate_at(tokens, config: OptimizerConfig, *, peak: float, horizon_tokens: int):
    """Learning rate of the step that ends at ``tokens`` of the schedule.

    Args:
        tokens: number or array; float32 carries 13T tokens to 1 part in 10^7, enough for a rate.
        config: shape of the schedule.
        peak: learning rate at the end of the warm-up.
        horizon_tokens: where the cosine reaches ``final_learning_rate_fraction * peak`` and stays.
    """
    warmup = float(config.warmup_tokens)  # tokens pass int32
    rise = jnp.minimum(tokens / warmup, 1.0) if warmup else 1.0
    if config.schedule == "constant":
        return peak * rise
    progress = jnp.clip((tokens - warmup) / max(horizon_tokens - warmup, 1.0), 0.0, 1.0)
    final = config.final_learning_rate_fraction
    cosine = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return peak * jnp.where(tokens < warmup, rise, cosine)
