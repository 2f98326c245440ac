"""AdamW without its learning rate, which the step applies itself: schedules count tokens, not
updates.
"""

from __future__ import annotations

import jax
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
