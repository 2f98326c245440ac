"""Keys and values that layers keep of earlier tokens, in pages; how a call writes and reads them.

A page holds some consecutive positions of one row, for one place of the group in all repeats. Which
pages belong to which row is not known here: the caller says for each kind of layer where tokens are
written (``Places``) and what is read. A call either appends one token to each row (``Decoding``)
or many, packed like training rows, of which the first go on where a cached row ends
(``Extending``). Such a call reads what is cached before it writes, so a local layer needs no more
pages than its window.

B rows and T tokens of a call, S keys that its tokens may see, n pages of a row, K kv heads, H head
width; R repeats of the group.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8

from cwm_jax.kernels.mask import IntervalMask
from cwm_jax.sharding import shard


class Places(NamedTuple):
    """Where tokens are written."""

    pages: Int[Array, "B T"]
    """A page past the last is nowhere."""
    slots: Int[Array, "B T"]
    """In the page."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding:
    """One token for each row: it is written, then it sees what its row holds."""

    places: Places
    pages: Int[Array, "B n"] | None
    """Of each row: slot s of page j holds position ``j * slots + s``; None: row b is page b."""
    positions: Int[Array, "B 1"]
    ring: bool = dataclasses.field(metadata={"static": True})
    """True: positions go on in the first page after the last."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Extending:
    """Many tokens for each row: they see what is cached before them, and each other, under a mask.

    Their keys lie at ``offsets`` behind the cached ones in one array of ``n * slots + T``.
    """

    places: Places
    pages: Int[Array, "B n"]
    """Cached ones, in the order of their positions; n may be 0."""
    offsets: Int[Array, " B"]
    mask: IntervalMask


CacheAccess = dict[str, Decoding] | dict[str, Extending]
"""By layer type: what a call writes and reads in each layer of it."""


class LayerCache(NamedTuple):
    """Of the layers at one place of the group, stacked; R is 1 for a layer of the tail."""

    keys: Float[Array, "R pages K slots H"] | Int8[Array, "R pages K slots H"]
    """RoPE applied."""
    values: Float[Array, "R pages K slots H"] | Int8[Array, "R pages K slots H"]
    key_scales: Float[Array, "R pages K slots"] | None = None
    """Of an int8 cache: a key is ``keys * key_scales``."""
    value_scales: Float[Array, "R pages K slots"] | None = None

    def write(
        self,
        repeat: int | Int[Array, ""],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        places: Places,
    ) -> LayerCache:
        """Puts the tokens' keys and values into their places."""

        def put(cache, new) -> Any:
            if cache is None:
                return None
            # The scan's carry is written in place; scan's ys would copy the whole cache.
            place = cache.at[repeat, places.pages, :, places.slots]
            return place.set(new.astype(cache.dtype), mode="drop")

        # What overflowed must not reach the next row with this page: 0 times NaN is NaN.
        k, v = jnp.nan_to_num(k), jnp.nan_to_num(v)
        k_scale = v_scale = None
        if self.key_scales is not None:
            (k, k_scale), (v, v_scale) = _int8(k), _int8(v)
        new = (k, v, k_scale, v_scale)
        return LayerCache(*(put(cache, x) for cache, x in zip(self, new, strict=True)))

    def row_keys(self, repeat, pages: Int[Array, "B n"], dtype) -> Float[Array, "B S K H"]:
        """Keys of whole pages, in their order."""
        return _in_order(self.keys, self.key_scales, repeat, pages, dtype)

    def row_values(self, repeat, pages: Int[Array, "B n"], dtype) -> Float[Array, "B S K H"]:
        """Values of whole pages, in their order."""
        return _in_order(self.values, self.value_scales, repeat, pages, dtype)


class Caches(NamedTuple):
    """Of all layers, in the order of ``params["layers"]`` and ``params["tail"]``."""

    layers: list[Any]
    """LayerCache, or None in training, where nothing is kept."""
    tail: list[Any]


def behind(
    cached: Float[Array, "B S K H"], new: Float[Array, "B T K H"], offsets: Int[Array, " B"]
) -> Float[Array, "B S2 K H"]:
    """``cached`` and T more places, with ``new`` from each row's offset on."""
    if not cached.shape[1]:
        return new
    whole = jnp.pad(cached, ((0, 0), (0, new.shape[1]), (0, 0), (0, 0)))

    def put(whole, new, offset):
        return jax.lax.dynamic_update_slice(whole, new, (offset, 0, 0))

    return jax.vmap(put)(whole, new, offsets)


def _in_order(cache, scales, repeat, pages, dtype):
    B, n = pages.shape
    K, slots, H = cache.shape[2:]
    rows = cache[repeat, pages].astype(dtype)  # [B, n, K, slots, H]
    if scales is not None:
        rows *= scales[repeat, pages].astype(dtype)[..., None]
    rows = rows.swapaxes(2, 3).reshape(B, n * slots, K, H)
    return shard(rows, None, None, "act_kv_heads", "head_dim")


def _int8(x: Float[Array, "B T K H"]) -> tuple[Int8[Array, "B T K H"], Float[Array, "B T K"]]:
    """Rounded to 255 steps between the largest magnitudes of each token and head, and the step."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(-1), 1e-30) / 127  # zeros stay zeros
    return jnp.round(x / scale[..., None]).astype(jnp.int8), scale
