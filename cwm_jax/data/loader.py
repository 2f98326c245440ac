"""Rows out of shards, for training and for held-out evaluation; the one module that needs grain."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import itertools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from grain.sources import ArrayRecordDataSource

from cwm_jax.config import DataConfig
from cwm_jax.data.mixture import Bucket, SourceShare, bucket_of_step, make_buckets
from cwm_jax.data.packing import GROUP_ROWS, Cursor, Row, pack, stack_rows
from cwm_jax.data.prefetch import Prefetched
from cwm_jax.data.shards import CONTEXT_MARK, Shards, tokens_from_record
from cwm_jax.data.sources import DataError

_STREAM_VERSION = 3  # raised when the same fingerprint would no longer mean the same rows
_HELDOUT_SEED = 0  # held-out rows are the same for every run


class Loader:
    """Endless streams of packed rows of the training split, one per length bucket, for one host.

    Documents are drawn so that the sources' tokens come in the proportion of their shares, from
    each in an order that the seed fixes, anew each epoch. Host i of n takes every n-th of them, so
    in each epoch of a source every document goes to one host. Rows are prepared in a thread for
    each bucket; closing ends them.

    A stream is a function of the fingerprint in ``state`` and of its cursor there: resuming reads
    again the documents of the row (or group of ``GROUP_ROWS`` rows) at hand, nothing before them.
    """

    def __init__(
        self,
        shards: Sequence[Shards],
        data_config: DataConfig,
        *,
        shares: Sequence[SourceShare],
        max_target_length: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """Sets each stream to its first row; no document is read yet.

        Args:
            shards: as ``prepare`` made them, one for each of ``data_config.sources``, in their
                order.
            data_config: packing, shuffle, prefetch_rows, length_buckets and trace_context_loss are
                read.
            shares: of the sources, from ``source_shares``.
            max_target_length: tokens T in a row.
            seed: of the order of the documents and of the buckets.
            process_index: this host.
            process_count: hosts that read together.

        Raises:
            ValueError: sources and shards do not match, or the host is not one of them.
        """
        _check_sources(shards, data_config)
        if not 0 <= process_index < process_count:
            raise ValueError(
                f"process_index is {process_index}; expected 0 to {process_count - 1} (below "
                "process_count)"
            )
        self.buckets = make_buckets(shards, data_config.length_buckets, shares)
        self._shares = tuple(shares)
        self._seed, self._process_count = seed, process_count
        self._streams = [
            _Stream(
                _mixture(shards, bucket, data_config, seed, process_index, process_count),
                data_config,
                max_target_length,
            )
            for bucket in self.buckets
        ]
        self._fingerprint = {
            "stream_version": _STREAM_VERSION,
            "sources": {
                share.name: {
                    "share": share.share,
                    "tokens_sha256": s.split("train").tokens_sha256,
                }
                for share, s in zip(shares, shards, strict=True)
            },
            "length_buckets": [b.max_document_tokens for b in data_config.length_buckets],
            "trace_context_loss": data_config.trace_context_loss,
            "packing": data_config.packing,
            "group_rows": GROUP_ROWS,
            "shuffle": data_config.shuffle,
            "max_target_length": max_target_length,
            "seed": seed,
            "process_index": process_index,
            "process_count": process_count,
        }

    def bucket(self, step: int) -> int:
        """Number of the bucket of all rows of that step, on every host."""
        return bucket_of_step(self.buckets, self._seed, step)

    def next_rows(self, num_rows: int, bucket: int = 0) -> Row:
        """Next rows of a bucket: ``tokens targets positions segment_ids loss_mask``, ``[n, T]``.

        Raises:
            DataError: a shard cannot be read; the state stays where it was.
        """
        return self._streams[bucket].next_rows(num_rows)

    def epochs(self) -> dict[str, float]:
        """Source -> how often its tokens have been drawn so far, over all hosts.

        Within 1 % (grain rounds the proportions of a mixture so) and but for the documents of the
        row, or group of rows, at hand.
        """
        tokens = [0.0] * len(self._shares)
        for bucket, stream in zip(self.buckets, self._streams, strict=True):
            documents = stream.cursor.document * self._process_count
            per_token = sum(part.documents_per_token for part in bucket.parts)
            for part in bucket.parts:
                tokens[part.source] += documents * part.share / per_token
        return {
            share.name: drawn / share.unique_tokens
            for share, drawn in zip(self._shares, tokens, strict=True)
        }

    def state(self) -> dict[str, Any]:
        """For ``restore``, fit for JSON: fingerprint, cursors after the last rows delivered."""
        cursors = [dataclasses.asdict(stream.cursor) for stream in self._streams]
        return {"fingerprint": self._fingerprint, "cursors": cursors}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues exactly after the last rows that were delivered before ``state`` was taken.

        Raises:
            ValueError: the state is another stream's (what differs is named), or none at all.
        """
        try:
            different = _differences(dict(state["fingerprint"]), self._fingerprint)
            cursors = [] if different else [Cursor(**cursor) for cursor in state["cursors"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"loader state is {state!r}; expected what Loader.state() returned"
            ) from error
        if different:
            raise ValueError(
                f"the saved data position belongs to another stream: {'; '.join(different)}; "
                "restore those settings, or start from the saved parameters alone "
                "(checkpoint.load_parameters_path)"
            )
        self.close()
        for stream, cursor in zip(self._streams, cursors, strict=True):
            stream.cursor = cursor

    def close(self) -> None:
        """Ends the threads; ``next_rows`` starts one again where its stream stands."""
        for stream in self._streams:
            stream.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Stream:
    """The rows of one bucket, and the cursor after the last one delivered."""

    def __init__(
        self, documents: grain.MapDataset, data_config: DataConfig, max_target_length: int
    ) -> None:
        self.cursor = Cursor()
        self.documents = documents
        self._data_config = data_config
        self._max_target_length = max_target_length
        self._rows: Prefetched | None = None

    def next_rows(self, num_rows: int) -> Row:
        if self._rows is None:
            # The thread holds the dataset, not the stream, which it would else keep alive.
            rows = pack(
                _tokens_from(self.documents, self.cursor.document, self._data_config),
                packing=self._data_config.packing,
                max_target_length=self._max_target_length,
                cursor=self.cursor,
            )
            self._rows = Prefetched(rows, self._data_config.prefetch_rows, name="loader")
            self._finalizer = weakref.finalize(self, self._rows.close)
        try:
            delivered = [self._rows.get() for _ in range(num_rows)]
        except BaseException:
            self.close()
            raise
        if delivered:
            self.cursor = delivered[-1][1]
        return stack_rows(row for row, _ in delivered)

    def close(self) -> None:
        if self._rows is not None:
            self._finalizer.detach()
            self._rows.close()
            self._rows = None


def heldout_rows(
    shards: Sequence[Shards],
    data_config: DataConfig,
    *,
    shares: Sequence[SourceShare],
    max_target_length: int,
    num_rows: int,
) -> Row:
    """The first ``num_rows`` rows of the held-out split, or all there are; ``[n, T]`` each.

    Documents of all lengths come once, by the shares of their sources, in one order for any seed
    and any hosts.
    """
    _check_sources(shards, data_config)
    readers = [_reader(s, "heldout").shuffle(seed=_HELDOUT_SEED) for s in shards]
    (everything,) = make_buckets(shards, (), shares)
    turns = [
        _turns(part.documents_per_token, part.source, len(readers[part.source]))
        for part in everything.parts
    ]
    documents = (_read(readers[number], at, data_config) for _, number, at in heapq.merge(*turns))
    rows = pack(documents, packing=data_config.packing, max_target_length=max_target_length)
    return stack_rows(row for row, _ in itertools.islice(rows, num_rows))


def _turns(weight: float, number: int, count: int) -> Iterator[tuple[float, int, int]]:
    """(when, source, position) of a source's documents: merged, sources follow their weights."""
    for position in range(count):
        yield (position + 1) / weight, number, position


def _check_sources(shards: Sequence[Shards], data_config: DataConfig) -> None:
    names = [s.manifest.source.name for s in shards]
    expected = [source.name for source in data_config.sources]
    if names != expected:
        raise ValueError(
            f"shards of the sources {names}; expected those of data.sources, {expected}, in order"
        )


def _mixture(
    shards: Sequence[Shards],
    bucket: Bucket,
    data_config: DataConfig,
    seed: int,
    index: int,
    count: int,
) -> grain.MapDataset:
    """A bucket's endless sequence of documents for this host, in constant time at any index."""
    datasets = []
    for part in bucket.parts:
        s = shards[part.source]
        dataset = _reader(s, "train", part.indices)
        if data_config.shuffle:
            # grain adds the epoch to the seed: hashed, so that no run repeats another's epochs.
            digest = hashlib.sha256(f"{seed}/{s.manifest.source.name}".encode()).digest()
            dataset = dataset.shuffle(seed=int.from_bytes(digest[:4], "big"))
        datasets.append(dataset.repeat()[index::count])
    if not datasets:
        return grain.MapDataset.source([])  # of a bucket that no step draws
    weights = [part.documents_per_token for part in bucket.parts]
    return grain.MapDataset.mix(datasets, weights=weights)


class _Chosen:
    """Some of the records of a data source, by their indices."""

    def __init__(self, records: Any, indices: np.ndarray) -> None:
        self._records, self._indices = records, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        return self._records[int(self._indices[index])]


def _reader(shards: Shards, split: str, indices: np.ndarray | None = None) -> grain.MapDataset:
    records: Any = ArrayRecordDataSource(shards.paths(split))  # grain types it more loosely
    return grain.MapDataset.source(records if indices is None else _Chosen(records, indices))


def _tokens_from(
    documents: grain.MapDataset, start: int, data_config: DataConfig
) -> Iterator[np.ndarray]:
    for index in itertools.count(start):
        yield _read(documents, index, data_config)


def _read(documents: grain.MapDataset, index: int, data_config: DataConfig) -> np.ndarray:
    try:
        record: Any = documents[index]  # None only after a filter, and there is none
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"a shard cannot be read ({error}); delete its folder to tokenise again"
        ) from error
    tokens = tokens_from_record(record)
    return tokens & ~CONTEXT_MARK if data_config.trace_context_loss else tokens


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} was {theirs.get(key)!r} and is {ours.get(key)!r}"
        for key in sorted({*theirs, *ours})
        if theirs.get(key) != ours.get(key)
    ]
