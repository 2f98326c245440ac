"""The trainer's weights for those who play: copies, since the trainer's own are donated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from cwm_jax.config import MeshConfig, RunConfig
from cwm_jax.distributed import Hosts
from cwm_jax.model.transformer import logical_axes
from cwm_jax.sharding import make_mesh, tree_shardings
from cwm_jax.training.state import abstract_state


class WeightCopies:
    """Makes them, in ``rl.rollout_dtype`` and on the devices that play: each process' own."""

    def __init__(self, config: RunConfig, mesh: Mesh, playing: Sequence[Any], hosts: Hosts):
        """``playing``: this process' devices that play; none: those that it trains with."""
        assert config.rl is not None
        shared = hosts.count == 1 and not playing
        self.mesh = mesh if shared else playing_mesh(playing or mesh.local_devices)
        shapes = abstract_state(config).params
        axes = logical_axes(config.model)
        self._gathered = self._elsewhere = None
        if hosts.count > 1:
            local = playing_mesh(mesh.local_devices)
            self._local = tree_shardings(local, axes, shapes)
            self._gathered = jax.tree.map(
                lambda s: NamedSharding(_on_each_process(mesh, local), s.spec), self._local
            )
        if playing:
            self._elsewhere = tree_shardings(self.mesh, axes, shapes)
        dtype = config.rl.rollout_dtype

        def copy(params):
            return jax.tree.map(lambda x: jnp.copy(x).astype(dtype or x.dtype), params)

        self._copy = jax.jit(copy)

    def of(self, params: Any) -> Any:
        """On several processes all of them call it, and each gets the whole."""
        copied = self._copy(params)
        if self._gathered is not None:
            gathered = jax.device_put(copied, self._gathered)
            copied = jax.tree.map(_own_copy, gathered, self._local)
        return copied if self._elsewhere is None else jax.device_put(copied, self._elsewhere)


def _on_each_process(mesh: Mesh, local: Mesh) -> Mesh:
    """The devices of a mesh, arranged in each process as ``local`` is in this one."""
    devices = sorted(mesh.devices.flat, key=lambda device: (device.process_index, device.id))
    order = sorted(local.devices.flat, key=lambda device: device.id)
    places = [order.index(device) for device in local.devices.flat]
    by_process = np.array(devices).reshape(-1, len(order))[:, places]
    axes = ("process", *local.axis_names)
    shape = (-1, *local.devices.shape)
    return Mesh(by_process.reshape(shape), axes, axis_types=(AxisType.Auto,) * len(axes))


def _own_copy(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """An array that each process has the whole of, as one of this process alone."""
    shards = [shard.data for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)


def playing_mesh(devices: Sequence[Any]) -> Mesh:
    """All of them share the weights of one engine."""
    return make_mesh(MeshConfig(fsdp=1, tensor=len(devices)), devices)
