"""AdamW, and its learning rate apart, which the step applies: schedules count tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from cwm_jax.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam's direction plus decoupled weight decay; norms are not decayed."""
    return optax.chain(
        optax.scale_by_adam(b1=config.adam_b1, b2=config.adam_b2, eps=config.adam_eps),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )


def decayed(params) -> dict:
    """True for every parameter but the scales of norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "scale", params)


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
