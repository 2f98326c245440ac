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
from cwm_jax.data.packing import GROUP_ROWS, Cursor, Row, describe_cut, pack, stack_rows
from cwm_jax.data.pieces import describe_split
from cwm_jax.data.prefetch import Prefetched
from cwm_jax.data.shards import (
    CONTEXT_MARK,
    OBSERVATION_MARK,
    TOKEN_BITS,
    Shards,
    tokens_from_record,
)
from cwm_jax.data.sources import DataError

_STREAM_VERSION = 4  # raised when the same fingerprint would no longer mean the same rows
_HELDOUT_SEED = 0  # held-out rows are the same for every run
_DIALOGS_LOOKED_AT = 256  # for a line at the start of a run: no wait, whatever the corpus


class Loader:
    """Endless packed rows of the training split, for each length bucket and for any hosts.

    Documents are drawn so that the sources' tokens come in the proportion of their shares, from
    each in an order that the seed fixes, anew each epoch. They are dealt to ``num_streams``
    streams, each packed by itself: a batch's first rows are of the first stream, and so on. So
    batches are the same on any number of hosts, and a host reads the streams of its rows alone.
    Rows are prepared in a thread for each bucket; closing ends them.

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
        own_rows: Sequence[int] = (0,),
        micro_batch_rows: int = 1,
    ) -> None:
        """Sets each stream to its first row; no document is read yet.

        Args:
            shards: as ``prepare`` made them, one for each of ``data_config.sources``, in their
                order.
            data_config: packing, long_dialogs, shuffle, prefetch_rows, num_streams, length_buckets,
                trace_context_loss and observation_loss are read.
            shares: of the sources, from ``source_shares``.
            max_target_length: tokens T in a row.
            seed: of the order of the documents and of the buckets.
            own_rows: rows of each micro-batch that this process needs, rising.
            micro_batch_rows: rows of a micro-batch over all processes.

        Raises:
            ValueError: sources and shards do not match, or rows beyond the micro-batch.
        """
        _check_sources(shards, data_config)
        if not own_rows or not 0 <= min(own_rows) <= max(own_rows) < micro_batch_rows:
            raise ValueError(
                f"own_rows is {own_rows}; expected some of 0 to {micro_batch_rows - 1} (below "
                "micro_batch_rows)"
            )
        self.buckets = make_buckets(shards, data_config.length_buckets, shares)
        self._shares = tuple(shares)
        self._seed, self._num_streams = seed, data_config.num_streams
        self._own_rows, self._micro_batch_rows = tuple(own_rows), micro_batch_rows
        own_streams = _streams_of(self._own_rows, micro_batch_rows, self._num_streams)
        self._rows = [
            _BucketRows(
                {
                    stream: _mixture(shards, bucket, data_config, seed, stream)
                    for stream in own_streams
                },
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
            "observation_loss": data_config.observation_loss,
            "packing": data_config.packing,
            "long_dialogs": data_config.long_dialogs,
            "group_rows": GROUP_ROWS,
            "shuffle": data_config.shuffle,
            "max_target_length": max_target_length,
            "seed": seed,
            "num_streams": self._num_streams,
        }

    def bucket(self, step: int) -> int:
        """Number of the bucket of all rows of that step, on every host."""
        return bucket_of_step(self.buckets, self._seed, step)

    def next_rows(self, num_rows: int, bucket: int = 0) -> Row:
        """This process's part of the next ``num_rows`` rows of a bucket.

        Of A micro-batches of R rows, row b of micro-batch a is number ``b A + a``: one process's
        are neighbours. ``num_rows`` is A R.

        Returns:
            ``tokens targets positions segment_ids loss_mask``, each ``[len(own_rows) A, T]``, in
            the order of their numbers.

        Raises:
            ValueError: rows that do not divide into micro-batches or over the streams.
            DataError: a shard cannot be read; the state stays where it was.
        """
        for name, count in (
            ("micro_batch_rows", self._micro_batch_rows),
            ("data.num_streams", self._num_streams),
        ):
            if num_rows % count:
                raise ValueError(f"{num_rows} rows are no multiple of {name} {count}")
        from_each, A = num_rows // self._num_streams, num_rows // self._micro_batch_rows
        read = self._rows[bucket].next_rows(from_each)
        numbers = (b * A + a for b in self._own_rows for a in range(A))
        return stack_rows(read[n // from_each][n % from_each] for n in numbers)

    def epochs(self) -> dict[str, float]:
        """Source -> how often its tokens have been drawn so far, over all hosts.

        Within 1 % (grain rounds the proportions of a mixture so) and but for the documents of the
        row, or group of rows, at hand; other hosts' streams count as those of this one.
        """
        tokens = [0.0] * len(self._shares)
        for bucket, rows in zip(self.buckets, self._rows, strict=True):
            read = [cursor.document for cursor in rows.cursors.values()]
            documents = sum(read) / len(read) * self._num_streams
            per_token = sum(part.documents_per_token for part in bucket.parts)
            for part in bucket.parts:
                tokens[part.source] += documents * part.share / per_token
        return {
            share.name: drawn / share.unique_tokens
            for share, drawn in zip(self._shares, tokens, strict=True)
        }

    def state(self) -> dict[str, Any]:
        """Fit for JSON: fingerprint, and for each bucket the cursors of this process's streams."""
        cursors = [
            {str(stream): dataclasses.asdict(cursor) for stream, cursor in rows.cursors.items()}
            for rows in self._rows
        ]
        return {"fingerprint": self._fingerprint, "cursors": cursors}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues exactly after the last rows that were delivered before ``state`` was taken.

        Args:
            state: of ``state()``, or of ``merge_states`` where several processes took it.

        Raises:
            ValueError: the state is another stream's (what differs is named), lacks some that this
                process reads, or is none at all.
        """
        try:
            different = _differences(dict(state["fingerprint"]), self._fingerprint)
            saved = [] if different else [dict(cursors) for cursors in state["cursors"]]
            cursors = [
                {stream: Cursor(**theirs[str(stream)]) for stream in rows.cursors}
                for rows, theirs in zip(self._rows, saved, strict=not different)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"loader state is {state!r}; expected what Loader.state() returned, of every "
                f"stream that is read here ({error!r})"
            ) from error
        if different:
            raise ValueError(
                f"the saved data position belongs to another stream: {'; '.join(different)}; "
                "restore those settings, or start from the saved parameters alone "
                "(checkpoint.load_parameters_path)"
            )
        self.close()
        for rows, at in zip(self._rows, cursors, strict=True):
            rows.cursors = at

    def close(self) -> None:
        """Ends the threads; ``next_rows`` starts one again where its streams stand."""
        for rows in self._rows:
            rows.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One state of those that the processes of a run took after the same step.

    Raises:
        ValueError: they are of different streams, or disagree on a cursor.
    """
    merged = {"fingerprint": states[0]["fingerprint"], "cursors": []}
    for bucket in range(len(states[0]["cursors"])):
        cursors: dict[str, Any] = {}
        for number, state in enumerate(states):
            for stream, cursor in state["cursors"][bucket].items():
                if state["fingerprint"] != merged["fingerprint"] or (
                    cursors.setdefault(stream, cursor) != cursor
                ):
                    raise ValueError(
                        f"process {number} has other data than the processes before it (stream "
                        f"{stream}: {cursor}, {cursors[stream]} there): do all read the same files?"
                    )
        merged["cursors"].append(dict(sorted(cursors.items(), key=lambda item: int(item[0]))))
    return merged


def _streams_of(own_rows: Sequence[int], num_rows: int, num_streams: int) -> list[int]:
    """Streams of these rows: a batch is cut into equal parts by stream, and by row."""
    return sorted(
        {
            stream
            for row in own_rows
            for stream in range(
                row * num_streams // num_rows, -(-(row + 1) * num_streams // num_rows)
            )
        }
    )


class _BucketRows:
    """The rows of one bucket's streams, and the cursors after the last ones delivered."""

    def __init__(
        self,
        documents: Mapping[int, grain.MapDataset],
        data_config: DataConfig,
        max_target_length: int,
    ) -> None:
        self.cursors = {stream: Cursor() for stream in documents}
        self._documents = documents
        self._data_config = data_config
        self._max_target_length = max_target_length
        self._rows: Prefetched | None = None

    def next_rows(self, from_each: int) -> dict[int, list[Row]]:
        """As many rows from each stream."""
        if self._rows is None:
            # The thread holds the datasets, not the bucket, which it would else keep alive.
            rows = _in_turns(
                [
                    pack(
                        _tokens_from(self._documents[stream], cursor.document, self._data_config),
                        packing=self._data_config.packing,
                        max_target_length=self._max_target_length,
                        long_dialogs=self._data_config.long_dialogs,
                        cursor=cursor,
                    )
                    for stream, cursor in self.cursors.items()
                ]
            )
            self._rows = Prefetched(rows, self._data_config.prefetch_rows, name="loader")
            self._finalizer = weakref.finalize(self, self._rows.close)
        delivered: dict[int, list[Row]] = {stream: [] for stream in self.cursors}
        cursors = dict(self.cursors)
        try:
            for _ in range(from_each):
                for stream in delivered:
                    row, cursors[stream] = self._rows.get()
                    delivered[stream].append(row)
        except BaseException:
            self.close()
            raise
        self.cursors = cursors
        return delivered

    def close(self) -> None:
        if self._rows is not None:
            self._finalizer.detach()
            self._rows.close()
            self._rows = None


def _in_turns(streams: Sequence[Iterator[Any]]) -> Iterator[Any]:
    """An item of each in turn, for ever."""
    while True:
        for stream in streams:
            yield next(stream)


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
    rows = pack(
        documents,
        packing=data_config.packing,
        max_target_length=max_target_length,
        long_dialogs=data_config.long_dialogs,
    )
    return stack_rows(row for row, _ in itertools.islice(rows, num_rows))


def describe_long_dialogs(
    shards: Shards, data_config: DataConfig, *, max_target_length: int
) -> str | None:
    """What becomes of a source's dialogs that no row holds, for the start of a run; None: nothing.

    Of those that are split the first ``_DIALOGS_LOOKED_AT`` are read.
    """
    lengths = np.asarray(shards.lengths("train"), np.int64)
    if data_config.long_dialogs == "cut":
        return describe_cut(
            lengths, packing=data_config.packing, max_target_length=max_target_length
        )
    longer = np.flatnonzero(lengths - 1 > max_target_length)
    if not len(longer):
        return None
    some = longer[:_DIALOGS_LOOKED_AT]
    reader = _reader(shards, "train", some)
    dialogs = (_read(reader, at, data_config) for at in range(len(some)))
    return describe_split(dialogs, max_target_length, longer=len(longer), count=len(lengths))


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
    stream: int,
) -> grain.MapDataset:
    """A bucket's endless sequence of documents of a stream, in constant time at any index."""
    datasets = []
    for part in bucket.parts:
        s = shards[part.source]
        dataset = _reader(s, "train", part.indices)
        if data_config.shuffle:
            # grain adds the epoch to the seed: hashed, so that no run repeats another's epochs.
            digest = hashlib.sha256(f"{seed}/{s.manifest.source.name}".encode()).digest()
            dataset = dataset.shuffle(seed=int.from_bytes(digest[:4], "big"))
        datasets.append(dataset.repeat()[stream :: data_config.num_streams])
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
    if data_config.trace_context_loss:
        tokens = tokens & ~CONTEXT_MARK
    return _with_counted_observations(tokens, data_config.observation_loss)


def _with_counted_observations(tokens: np.ndarray, share: float) -> np.ndarray:
    """``[n]``: the mark is off in that share of the runs that have it, each a result of a tool."""
    marked = (tokens & OBSERVATION_MARK) > 0
    if not share or not marked.any():
        return tokens
    begins = marked & ~np.concatenate(([False], marked[:-1]))
    identity = hashlib.sha256((tokens & TOKEN_BITS).astype("<u4").tobytes()).hexdigest()
    drawn = [_draw(identity, number) < share for number in range(int(begins.sum()))]
    counted = marked & np.array([False, *drawn])[np.cumsum(begins)]
    return np.where(counted, tokens & ~OBSERVATION_MARK, tokens)


def _draw(identity: str, number: int) -> float:
    """From 0 up to 1, below it."""
    digest = hashlib.sha256(f"observation {identity} {number}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} was {theirs.get(key)!r} and is {ours.get(key)!r}"
        for key in sorted({*theirs, *ours})
        if theirs.get(key) != ours.get(key)
    ]
