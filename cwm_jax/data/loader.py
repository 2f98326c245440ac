"""Rows out of shards, for training and for held-out evaluation; the one module that needs grain."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import heapq
import itertools
import queue
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from grain.sources import ArrayRecordDataSource

from cwm_jax.config import DataConfig
from cwm_jax.data.packing import GROUP_ROWS, Cursor, Row, pack, stack_rows
from cwm_jax.data.shards import Shards, tokens_from_record
from cwm_jax.data.sources import DataError

_STREAM_VERSION = 2  # raised when the same fingerprint would no longer mean the same rows
_HELDOUT_SEED = 0  # held-out rows are the same for every run


class Loader:
    """An endless stream of packed rows of the training split, for one host.

    Documents are drawn so that the sources' tokens come in the proportion of their weights, from
    each in an order that the seed fixes, anew each epoch. Host i of n takes every n-th of them, so
    in each epoch of a source every document goes to one host. Rows are prepared in a thread;
    closing ends it.

    The stream is a function of the fingerprint in ``state`` and of the cursor there: resuming reads
    again the documents of the row (or group of ``GROUP_ROWS`` rows) at hand, nothing before them.
    """

    def __init__(
        self,
        shards: Sequence[Shards],
        data_config: DataConfig,
        *,
        max_target_length: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """Sets the stream to its first row; nothing is read yet.

        Args:
            shards: as ``prepare`` made them, one for each of ``data_config.sources``, in their
                order.
            data_config: weights, packing, shuffle and prefetch_rows are read.
            max_target_length: tokens T in a row.
            seed: of the order of the documents.
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
        self._documents = _mixture(shards, data_config, seed, process_index, process_count)
        self._packing = data_config.packing
        self._max_target_length = max_target_length
        self._prefetch_rows = data_config.prefetch_rows
        self._fingerprint = {
            "stream_version": _STREAM_VERSION,
            "sources": {
                source.name: {
                    "weight": source.weight,
                    "tokens_sha256": s.split("train").tokens_sha256,
                }
                for source, s in zip(data_config.sources, shards, strict=True)
            },
            "packing": data_config.packing,
            "group_rows": GROUP_ROWS,
            "shuffle": data_config.shuffle,
            "max_target_length": max_target_length,
            "seed": seed,
            "process_index": process_index,
            "process_count": process_count,
        }
        self._cursor = Cursor()
        self._rows: _Prefetched | None = None

    def next_rows(self, num_rows: int) -> Row:
        """Next rows: ``tokens targets positions segment_ids loss_mask``, each ``[num_rows, T]``.

        Raises:
            DataError: a shard cannot be read; the state stays where it was.
        """
        if self._rows is None:
            self._rows = _Prefetched(self._stream(), self._prefetch_rows)
            self._finalizer = weakref.finalize(self, self._rows.close)
        try:
            delivered = [self._rows.get() for _ in range(num_rows)]
        except BaseException:
            self.close()
            raise
        if delivered:
            self._cursor = delivered[-1][1]
        return stack_rows(row for row, _ in delivered)

    def state(self) -> dict[str, Any]:
        """For ``restore``, fit for JSON: fingerprint, and cursor after the last row delivered."""
        return {"fingerprint": self._fingerprint, "cursor": dataclasses.asdict(self._cursor)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues exactly after the last row that was delivered before ``state`` was taken.

        Raises:
            ValueError: the state is another stream's (what differs is named), or none at all.
        """
        try:
            theirs, cursor = dict(state["fingerprint"]), Cursor(**state["cursor"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"loader state is {state!r}; expected what Loader.state() returned"
            ) from error
        different = _differences(theirs, self._fingerprint)
        if different:
            raise ValueError(
                f"the saved data position belongs to another stream: {'; '.join(different)}; "
                "restore those settings, or start from the saved parameters alone "
                "(checkpoint.load_parameters_path)"
            )
        self.close()
        self._cursor = cursor

    def close(self) -> None:
        """Ends the thread; ``next_rows`` starts one again where the stream stands."""
        if self._rows is not None:
            self._finalizer.detach()
            self._rows.close()
            self._rows = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stream(self) -> Iterator[tuple[Row, Cursor]]:
        # Holds the dataset, not the loader, which its own thread would else keep alive.
        return pack(
            _tokens_from(self._documents, self._cursor.document),
            packing=self._packing,
            max_target_length=self._max_target_length,
            cursor=self._cursor,
        )


def heldout_rows(
    shards: Sequence[Shards],
    data_config: DataConfig,
    *,
    max_target_length: int,
    num_rows: int,
) -> Row:
    """The first ``num_rows`` rows of the held-out split, or all there are; ``[n, T]`` each.

    Documents come once, by the weights of their sources, in one order for any seed and any hosts.
    """
    _check_sources(shards, data_config)
    readers = [_reader(s, "heldout").shuffle(seed=_HELDOUT_SEED) for s in shards]
    weights = _document_weights(shards, data_config)
    turns = [
        _turns(weight, number, len(reader))
        for number, (weight, reader) in enumerate(zip(weights, readers, strict=True))
    ]
    documents = (_read(readers[number], at) for _, number, at in heapq.merge(*turns))
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
    shards: Sequence[Shards], data_config: DataConfig, seed: int, index: int, count: int
) -> grain.MapDataset:
    """This host's endless sequence of documents, in constant time at any index."""
    datasets = []
    for source, s in zip(data_config.sources, shards, strict=True):
        dataset = _reader(s, "train")
        if data_config.shuffle:
            # grain adds the epoch to the seed: hashed, so that no run repeats another's epochs.
            digest = hashlib.sha256(f"{seed}/{source.name}".encode()).digest()
            dataset = dataset.shuffle(seed=int.from_bytes(digest[:4], "big"))
        datasets.append(dataset.repeat()[index::count])
    return grain.MapDataset.mix(datasets, weights=_document_weights(shards, data_config))


def _document_weights(shards: Sequence[Shards], data_config: DataConfig) -> list[float]:
    """Shares of documents that make the sources' weights shares of tokens."""
    splits = [s.manifest.train for s in shards]
    return [
        source.weight * split.documents / split.tokens
        for source, split in zip(data_config.sources, splits, strict=True)
    ]


def _reader(shards: Shards, split: str) -> grain.MapDataset:
    records: Any = ArrayRecordDataSource(shards.paths(split))  # grain types it more loosely
    return grain.MapDataset.source(records)


def _tokens_from(documents: grain.MapDataset, start: int) -> Iterator[np.ndarray]:
    for index in itertools.count(start):
        yield _read(documents, index)


def _read(documents: grain.MapDataset, index: int) -> np.ndarray:
    try:
        record: Any = documents[index]  # None only after a filter, and there is none
        return tokens_from_record(record)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"a shard cannot be read ({error}); delete its folder to tokenise again"
        ) from error


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} was {theirs.get(key)!r} and is {ours.get(key)!r}"
        for key in sorted({*theirs, *ours})
        if theirs.get(key) != ours.get(key)
    ]


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Prefetched:
    """Items of an endless iterator, taken ahead of time in a thread."""

    def __init__(self, items: Iterator[Any], size: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(size)
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=_fill, args=(items, self._queue, self._stopped), name="loader", daemon=True
        )
        self._thread.start()

    def get(self) -> Any:
        item = self._queue.get()
        if isinstance(item, _Failure):
            raise item.error
        return item

    def close(self) -> None:
        self._stopped.set()
        while self._thread.is_alive():  # it may wait for room in the queue
            with contextlib.suppress(queue.Empty):
                while True:
                    self._queue.get_nowait()
            self._thread.join(0.01)


def _fill(items: Iterator[Any], into: queue.Queue[Any], stopped: threading.Event) -> None:
    try:
        for item in items:
            if stopped.is_set():
                return
            into.put(item)
    except BaseException as error:  # handed to the reader of the queue
        into.put(_Failure(error))
