"""Code World Models in JAX: the pure functions that everything else is made of.

Names are loaded on first use, so that the parts without JAX (tokenizer, traces, sandbox) stay
without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cwm_jax.config import ModelConfig, RunConfig
    from cwm_jax.cwm import CWM
    from cwm_jax.model.transformer import forward, init
    from cwm_jax.training.losses import loss
    from cwm_jax.training.state import init_state
    from cwm_jax.training.step import make_train_step

_HOMES = {
    "CWM": "cwm_jax.cwm",
    "ModelConfig": "cwm_jax.config",
    "RunConfig": "cwm_jax.config",
    "forward": "cwm_jax.model.transformer",
    "init": "cwm_jax.model.transformer",
    "init_state": "cwm_jax.training.state",
    "loss": "cwm_jax.training.losses",
    "make_train_step": "cwm_jax.training.step",
}

__all__ = [
    "CWM",
    "ModelConfig",
    "RunConfig",
    "forward",
    "init",
    "init_state",
    "loss",
    "make_train_step",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(
            f"module 'cwm_jax' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(importlib.import_module(_HOMES[name]), name)
