"""Context parallelism: a row's tokens on several devices, and what attention fetches of them.

Everything but attention treats each token by itself, so a device keeps its tokens through the whole
model. For attention a layer with a window W fetches the W - 1 keys before each of its pieces
(``Halo``): what it exchanges does not depend on the row's length. A global layer, or a window that
is wider than the rest of the row, gathers all keys (``Gathered``).

A row of T tokens is cut into equal pieces. In a ``contiguous`` layout device i of n holds piece i;
in a ``zigzag`` layout pieces i and 2n - 1 - i, so that every device sees as many keys:

    contiguous, n = 4     0 0 0 0 1 1 1 1 2 2 2 2 3 3 3 3      keys seen 1 : 3 : 5 : 7
    zigzag, n = 4         0 0 1 1 2 2 3 3 3 3 2 2 1 1 0 0      the same on all

The functions of an exchange run inside of ``map_over_shards``, on a device's own block.

B batch, T tokens of a row, t of it on a device, P in a piece.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from cwm_jax.kernels.mask import IntervalMask, interval_mask
from cwm_jax.sharding import BATCH_AXES, mesh_axes, shard, shards_of


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """Which pieces of a row each device along the context axis holds, and in which order."""

    kind: Literal["contiguous", "zigzag"] = "contiguous"
    num_shards: int = 1

    @property
    def slots(self) -> int:
        """Pieces on a device."""
        return 2 if self.kind == "zigzag" and self.num_shards > 1 else 1

    @property
    def num_pieces(self) -> int:
        return self.slots * self.num_shards

    def piece(self, shard: Any, slot: int) -> Any:
        """Number of the piece in a slot of a device (an int, or an int32 array of one)."""
        return shard if slot == 0 else self.num_pieces - 1 - shard

    def owner(self, piece: int) -> tuple[int, int]:
        """Device and slot of a piece."""
        if piece < self.num_shards:
            return piece, 0
        return self.num_pieces - 1 - piece, 1

    def arrange(self, x: Array) -> Array:
        """``[B, T, ...]`` of rows in reading order, in the order in which the devices hold it."""
        if self.slots == 1:
            return x
        order = [self.piece(i, slot) for i in range(self.num_shards) for slot in range(self.slots)]
        return shard(_take_pieces(x, order), *BATCH_AXES, *[None] * (x.ndim - 2))

    def restore(self, x: Array) -> Array:
        """Inverse of ``arrange``; not for arrays that are cut along context."""
        if self.slots == 1:
            return x
        owners = (self.owner(piece) for piece in range(self.num_pieces))
        return _take_pieces(x, [i * self.slots + slot for i, slot in owners])

    def check(self, T: int) -> None:
        """Raises ValueError unless rows of T tokens can be cut so."""
        if T % self.num_pieces:
            raise ValueError(
                f"rows of {T} tokens do not divide into {self.num_pieces} pieces ({self.slots} for "
                f"each device along context, {self.kind}); change batch.max_target_length or "
                "mesh.context"
            )


def row_layout(kind: Literal["contiguous", "zigzag"]) -> RowLayout:
    """The layout on the mesh in use."""
    return RowLayout(kind, shards_of("seq"))


def make_exchange(layout: RowLayout, T: int, sliding_window: int | None) -> Exchange:
    """The exchange that moves fewer keys.

    Raises:
        ValueError: rows of T tokens do not divide over the layout.
    """
    layout.check(T)
    if layout.num_shards == 1:
        return Exchange()
    halo = None if sliding_window is None else sliding_window - 1
    if halo is None or layout.slots * halo >= T - T // layout.num_shards:
        return Gathered(layout)
    return Halo(layout, T // layout.num_pieces, halo)


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Of rows that lie whole on each device: none."""

    def queries(self, x: Array) -> Array:
        """A device's ``[B, t, ...]`` as the rows that attention gets."""
        return x

    def outputs(self, x: Array) -> Array:
        """Inverse of ``queries``."""
        return x

    def keys(self, x: Array) -> Array:
        """All positions that the device's queries may see, for as many rows as ``queries``."""
        return x

    def mask(
        self, segment_ids: Int[Array, "B t"], sliding_window: int | None, *, packed: bool
    ) -> IntervalMask:
        """What ``queries`` see of ``keys``."""
        return interval_mask(segment_ids, sliding_window, packed=packed)


@dataclasses.dataclass(frozen=True)
class Gathered(Exchange):
    """Every device gets the keys of the whole row."""

    layout: RowLayout

    def keys(self, x: Array) -> Array:
        return self.layout.restore(jax.lax.all_gather(x, mesh_axes("seq"), axis=1, tiled=True))

    def mask(self, segment_ids, sliding_window, *, packed) -> IntervalMask:
        layout, P = self.layout, segment_ids.shape[1] // self.layout.slots
        shard = jax.lax.axis_index(mesh_axes("seq"))
        starts = jnp.stack([layout.piece(shard, slot) * P for slot in range(layout.slots)])
        query_index = (starts[:, None] + jnp.arange(P)).reshape(-1)
        segment_ids = self.keys(segment_ids)
        return interval_mask(segment_ids, sliding_window, query_index=query_index, packed=packed)


@dataclasses.dataclass(frozen=True)
class Halo(Exchange):
    """Every piece gets the ``halo`` keys before it from the devices that hold them.

    The pieces of a device become rows of their own: ``[B * slots, P]`` queries, ``halo + P`` keys.
    Before the start of a row the halo is zeros, and of segment 0, padding.
    """

    layout: RowLayout
    piece_tokens: int
    halo: int

    def queries(self, x: Array) -> Array:
        return x.reshape(-1, self.piece_tokens, *x.shape[2:])

    def outputs(self, x: Array) -> Array:
        return x.reshape(-1, self.layout.slots * self.piece_tokens, *x.shape[2:])

    def keys(self, x: Array) -> Array:
        slots = x.reshape(-1, self.layout.slots, self.piece_tokens, *x.shape[2:])
        with_halo = [
            jnp.concatenate([*self._before(slots, slot), slots[:, slot]], axis=1)
            for slot in range(self.layout.slots)
        ]
        return jnp.stack(with_halo, axis=1).reshape(-1, *with_halo[0].shape[1:])

    def mask(self, segment_ids, sliding_window, *, packed) -> IntervalMask:
        query_index = self.halo + jnp.arange(self.piece_tokens)
        return interval_mask(self.keys(segment_ids), sliding_window, query_index=query_index)

    def _before(self, slots: Array, slot: int) -> list[Array]:
        """The positions before the piece in a slot, in order: from the piece next to it, and so on.

        Each permutation of a distance moves what some devices hold in one slot.
        """
        P, found = self.piece_tokens, []
        for distance in range(math.ceil(self.halo / P), 0, -1):
            skipped = max(0, distance * P - self.halo)  # of the farthest piece the end is enough
            found.append(
                sum(
                    jax.lax.ppermute(slots[:, source, skipped:], mesh_axes("seq"), pairs)
                    for source, pairs in self._senders(slot, distance)
                )
            )
        return found

    def _senders(self, slot: int, distance: int) -> list[tuple[int, list[tuple[int, int]]]]:
        """Slot of the sender, and (sender, receiver) pairs, for the pieces at a distance before."""
        pairs: dict[int, list[tuple[int, int]]] = {}
        for receiver in range(self.layout.num_shards):
            wanted = self.layout.piece(receiver, slot) - distance
            if wanted >= 0:
                sender, source = self.layout.owner(wanted)
                pairs.setdefault(source, []).append((sender, receiver))
        return list(pairs.items())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowView:
    """What a device's queries see, and the exchange that brings it the keys."""

    mask: IntervalMask
    exchange: Exchange = dataclasses.field(metadata={"static": True})


def _take_pieces(x: Array, order: list[int]) -> Array:
    pieces = jnp.split(x, len(order), axis=1)
    return jnp.concatenate([pieces[i] for i in order], axis=1)
