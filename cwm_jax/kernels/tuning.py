"""Tile sizes of the kernels, by device: one table for each, with where every value comes from."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class TpuTile:
    """Of one kernel; powers of two from 128 on, the lanes of a register.

    A step of the grid fetches ``keys`` keys and works on ``queries`` queries of each head of a
    group; it computes them in units, so that one unit's products overlap with another's softmax.
    """

    queries: int
    keys: int
    unit_queries: int
    unit_keys: int

    def clipped(self, T: int, S: int) -> TpuTile:
        """For rows of T queries and S keys that are shorter than a tile."""
        queries, keys = min(self.queries, _power_of_two(T)), min(self.keys, _power_of_two(S))
        units = min(self.unit_queries, queries), min(self.unit_keys, keys)
        return TpuTile(queries, keys, *units)


@dataclasses.dataclass(frozen=True)
class TpuBlocks:
    """Tiles of the three kernels of ``cwm_jax.kernels.tpu``."""

    forward: TpuTile
    dq: TpuTile
    dkv: TpuTile

    def clipped(self, T: int, S: int) -> TpuBlocks:
        return TpuBlocks(*(x.clipped(T, S) for x in (self.forward, self.dq, self.dkv)))


def _power_of_two(n: int) -> int:
    return max(128, 1 << (n - 1).bit_length())


# "static schedule": of the tiles in docs/LOG.md, the one whose schedule without a mask keeps the
# matrix units busiest (python -m benchmarks.tpu_schedule); counted, never timed.
_TPU_BLOCKS = {
    "v5e": TpuBlocks(  # static schedule, docs/LOG.md; less vector memory than the others
        forward=TpuTile(256, 512, 256, 512),
        dq=TpuTile(256, 512, 256, 512),
        dkv=TpuTile(512, 512, 512, 512),
    ),
    "v5p": TpuBlocks(  # static schedule, docs/LOG.md
        forward=TpuTile(512, 512, 512, 512),
        dq=TpuTile(512, 512, 512, 512),
        dkv=TpuTile(512, 512, 512, 512),
    ),
    "v6e": TpuBlocks(  # static schedule, docs/LOG.md
        forward=TpuTile(512, 512, 512, 512),
        dq=TpuTile(512, 512, 512, 256),
        dkv=TpuTile(512, 512, 128, 512),
    ),
}

_MOST_QUERIES = 2048  # of all heads of a group; 3072, six times 512, compile

_TPU_CHIPS = {"TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v6 lite": "v6e", "TPU v6e": "v6e"}


def tpu_chip(device: Any = None) -> str:
    """``v5e``, ``v5p`` or ``v6e``; a device of another kind gets v5p's tiles."""
    device = device or jax.devices()[0]
    return _TPU_CHIPS.get(device.device_kind, "v5p")


def tpu_blocks(
    chip: str, T: int, window: int | None, group: int = 6, dtype: Any = jnp.bfloat16
) -> TpuBlocks:
    """Tiles for rows of T queries and groups of so many heads, of width 128 or less.

    Neither a row nor a window is shorter than the tiles: the rest of them would be masked. Groups
    of more than 6 get fewer queries of each head, as they share a chip's vector memory, and 32-bit
    types smaller tiles for the same reason.
    """
    most = 512 if jnp.dtype(dtype).itemsize == 2 else 256
    queries = min(T, most, _MOST_QUERIES // group)
    keys = min(T, most) if window is None else min(T, most, window)
    return _TPU_BLOCKS[chip].clipped(queries, keys)
