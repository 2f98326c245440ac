"""Keys and values that layers keep of earlier tokens, and how a layer writes and reads them.

A slot holds the token of its own position, in layers of both kinds.

B rows and T tokens of a call, C rows of the cache, S slots, K kv heads, H head width; R repeats of
the group.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CacheAccess:
    """What a call of the model writes and reads of a cache; the same in all layers."""

    positions: Int[Array, "B T"]
    """Of the tokens in their rows: the slots that they are written to; past S they are dropped."""
    rows: Int[Array, " B"]
    """Rows of the cache that are written; past the last they are dropped. Reading reads all."""
    num_keys: int = dataclasses.field(metadata={"static": True})
    """Slots that are read, from the first on."""


class LayerCache(NamedTuple):
    """Of the layers at one place of the group, stacked; R is 1 for a layer of the tail."""

    keys: Float[Array, "R C K S H"]
    """RoPE applied."""
    values: Float[Array, "R C K S H"]

    def write(
        self,
        repeat: int | Int[Array, ""],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        access: CacheAccess,
    ) -> LayerCache:
        """Puts the tokens' keys and values into their slots."""

        def put(cache, new):
            # the scan's carry is written in place; scan's ys would copy the whole cache
            place = cache.at[repeat, access.rows[:, None], :, access.positions]
            return place.set(new.astype(cache.dtype), mode="drop")

        return LayerCache(put(self.keys, k), put(self.values, v))

    def read(
        self, repeat: int | Int[Array, ""], num_keys: int
    ) -> tuple[Float[Array, "C K S2 H"], Float[Array, "C K S2 H"]]:
        """Keys and values in the first ``num_keys`` slots of all rows."""

        def get(cache):
            sizes = (1, *cache.shape[1:3], num_keys, cache.shape[4])
            return jax.lax.dynamic_slice(cache, (repeat, 0, 0, 0, 0), sizes)[0]

        return get(self.keys), get(self.values)


class Caches(NamedTuple):
    """Of all layers, in the order of ``params["layers"]`` and ``params["tail"]``."""

    layers: list[Any]
    """LayerCache, or None in training, where nothing is kept."""
    tail: list[Any]
