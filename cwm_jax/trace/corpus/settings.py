"""What a trace corpus is a function of, besides the programs."""

from __future__ import annotations

import dataclasses
from typing import Any

from cwm_jax.config.schema import check_positive, check_types
from cwm_jax.storage import StorageError
from cwm_jax.trace.corpus.deduplication import NearDuplicates
from cwm_jax.trace.tracer import TraceLimits


class CorpusError(StorageError):
    """A trace corpus that cannot be written or read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """Settings of `write_corpus`; they are in the manifest, and a run goes on with the same only.

    Attributes:
        limits: of each trace.
        repeats: times that each item is traced; what differs is dropped (assumed).
        keep_truncated: keep traces that a limit has cut, which their status says (report: dropped).
        near_duplicates: which are dropped; None drops equal texts alone.
        item_s: wall time of all traces of an item, for those that run many (assumed).
        chunk_items: items that a worker gets at a time, and that are traced again after a kill.
        shard_bytes: uncompressed size from which a shard is closed.
        unsafe: trace without bubblewrap.
        description: what the work comes from, for people and for the comparison.
    """

    limits: TraceLimits = dataclasses.field(default_factory=TraceLimits)
    repeats: int = 2
    keep_truncated: bool = False
    near_duplicates: NearDuplicates | None = dataclasses.field(default_factory=NearDuplicates)
    item_s: float = 600.0
    chunk_items: int = 64
    shard_bytes: int = 256 << 20
    unsafe: bool = False
    description: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "repeats", "item_s", "chunk_items", "shard_bytes")

    def to_json(self) -> dict[str, Any]:
        """Of all but the limits, which a manifest shows by themselves."""
        values = dataclasses.asdict(self)
        del values["limits"]
        return values
