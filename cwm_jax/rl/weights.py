"""The trainer's weights for those who play: copies, since the trainer's own are donated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cwm_jax.config import MeshConfig, RunConfig
from cwm_jax.model.transformer import logical_axes
from cwm_jax.sharding import make_mesh, tree_shardings
from cwm_jax.training.state import abstract_state


class WeightCopies:
    """Makes them, in ``rl.rollout_dtype`` and on the devices that play."""

    def __init__(self, config: RunConfig, mesh: Mesh, playing: Sequence[Any]):
        """``playing``: devices that play, which share the weights; none: those of the trainer."""
        assert config.rl is not None
        self.mesh = mesh
        if playing:
            self.mesh = playing_mesh(playing)
        shapes = abstract_state(config).params
        self._elsewhere = bool(playing)
        self._shardings = tree_shardings(self.mesh, logical_axes(config.model), shapes)
        dtype = config.rl.rollout_dtype

        def copy(params):
            return jax.tree.map(lambda x: jnp.copy(x).astype(dtype or x.dtype), params)

        self._copy = jax.jit(copy)

    def of(self, params: Any) -> Any:
        copied = self._copy(params)
        return jax.device_put(copied, self._shardings) if self._elsewhere else copied


def playing_mesh(devices: Sequence[Any]) -> Mesh:
    """All of them share the weights of one engine."""
    return make_mesh(MeshConfig(fsdp=1, tensor=len(devices)), devices)
