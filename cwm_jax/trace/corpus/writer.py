"""Writes a corpus: traced in parallel, chosen and stored in the order of the work."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import platform
import socket
import time
from collections.abc import Generator, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np

from cwm_jax.config.schema import to_json
from cwm_jax.storage import MANIFEST, RecordWriter, write_json
from cwm_jax.trace.corpus.decontamination import Benchmarks
from cwm_jax.trace.corpus.deduplication import NearDuplicateIndex
from cwm_jax.trace.corpus.engines import Engine
from cwm_jax.trace.corpus.partial import PartialCorpus
from cwm_jax.trace.corpus.progress import Progress
from cwm_jax.trace.corpus.report import BENCHMARK, DUPLICATE, NEAR_DUPLICATE, CorpusReport
from cwm_jax.trace.corpus.settings import CorpusError, CorpusSettings
from cwm_jax.trace.corpus.shards import KIND, SCHEMA_VERSION, Manifest
from cwm_jax.trace.corpus.worker import (
    ItemResult,
    TracedEpisode,
    Work,
    decode_results,
    died_result,
    trace_items,
)

RUN = "run.json"
_FREE_SPACE = "free space there and start again: what is traced is kept"


def write_corpus(
    work: Iterable[Work],
    folder: str | os.PathLike,
    *,
    settings: CorpusSettings,
    engine: Engine,
    benchmarks: Benchmarks | None = None,
) -> CorpusReport:
    """Traces work and writes what is worth keeping into a new folder.

    The folder's content, but for ``run.json``, is a function of the work and the settings: not of
    the engine, its workers, or whether the run was killed and called again, when it goes on after
    the last chunk that was done. Runs that a clock ends are dropped, and what differs when it is
    repeated; what two runs in a row share but not two days or machines (the date, the number of
    cores) is kept.

    Args:
        work: the same items in the same order at each call; names are unique.
        folder: must not exist; until it is whole, ``NAME.partial`` beside it is written.
        settings: how.
        engine: where.
        benchmarks: whose functions no context may hold.

    Raises:
        CorpusError: the folder exists, or was begun with other settings or work; two items have
            one name; or work that was traced by another version of Python.
        SandboxError: no sandbox can be had.
    """
    started_s, folder = time.time(), Path(folder)
    benchmarks = benchmarks or Benchmarks()
    described = _described(settings, benchmarks)
    with PartialCorpus(folder, described) as partial:
        resumed = partial.done_chunks()
        choice = _Choice(settings, benchmarks)
        with (
            Progress(len(work) if isinstance(work, Sized) else None) as progress,
            RecordWriter(
                partial.output, "traces", shard_bytes=settings.shard_bytes, next_step=_FREE_SPACE
            ) as writer,
        ):
            stream = _chunk_results(work, partial, settings, engine, benchmarks)
            with contextlib.closing(stream):  # ends the processes at once, whatever happens here
                for number, results in stream:
                    for record in choice.records(results):
                        writer.add(record)
                    progress.show(choice.report, resumed=number < resumed)
            files = writer.finish()
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            kind=KIND,
            files=files,
            num_episodes=choice.report.total.kept,
            num_events=choice.report.total.events,
            report=choice.report.to_json(),
            **described,
        )
        write_json(partial.output / MANIFEST, to_json(manifest))
        write_json(partial.output / RUN, _run(choice.report, engine, started_s, resumed))
        partial.finish()
    return choice.report


def _described(settings: CorpusSettings, benchmarks: Benchmarks) -> dict[str, Any]:
    """The keys of a manifest that are known before anything is traced."""
    values = settings.to_json() | {"benchmarks": benchmarks.to_json()}
    return {
        "python": platform.python_version(),
        "limits": dataclasses.asdict(settings.limits),
        "settings": values,
    }


def _run(report: CorpusReport, engine: Engine, started_s: float, resumed: int) -> dict[str, Any]:
    """What may differ from run to run."""
    return {
        "engine": repr(engine),
        "host": socket.gethostname(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started_s)),
        "seconds": round(time.time() - started_s, 3),
        "resumed_chunks": resumed,
        "messages": report.messages,
    }


def _chunk_results(
    work: Iterable[Work],
    partial: PartialCorpus,
    settings: CorpusSettings,
    engine: Engine,
    benchmarks: Benchmarks,
) -> Generator[tuple[int, list[ItemResult]], None, None]:
    """Number and results of each chunk, from its file, or from the engine and then into it."""
    chunks = _chunks(work, settings.chunk_items)
    resumed = partial.done_chunks()
    for number, items in zip(range(resumed), chunks, strict=False):
        yield number, partial.read(number, [item.name for item in items])
    function = functools.partial(
        trace_items, settings=settings, with_functions=bool(benchmarks.digests)
    )
    with contextlib.closing(engine.map_chunks(function, chunks, died_result)) as encoded:
        for number, data in enumerate(encoded, resumed):
            partial.write(number, data)
            yield number, decode_results(data)


def _chunks(work: Iterable[Work], size: int) -> Iterator[list[Work]]:
    stream = _with_unique_names(work)
    while chunk := list(itertools.islice(stream, size)):
        yield chunk


def _with_unique_names(work: Iterable[Work]) -> Iterator[Work]:
    seen: dict[str, int] = {}
    for number, item in enumerate(work):
        if (first := seen.setdefault(item.name, number)) != number:
            raise CorpusError(
                f"items {first} and {number} of the work are both named {item.name!r}; expected a "
                "name of its own for each, as splits are a function of it: rename one"
            )
        yield item


class _Choice:
    """Decides, in the order of the work, which episodes are kept; the first of equals is."""

    def __init__(self, settings: CorpusSettings, benchmarks: Benchmarks) -> None:
        self.report = CorpusReport()
        self._benchmarks = benchmarks.digests
        self._digests: set[bytes] = set()
        options = settings.near_duplicates
        self._index = None if options is None else NearDuplicateIndex(options)

    def records(self, results: Sequence[ItemResult]) -> Iterator[bytes]:
        """The records of a chunk that are kept."""
        for result in results:
            self.report.count_item(result)
            for episode in result.episodes:
                _check_python(episode)
                reason = self._reason_against(episode)
                if reason is None:
                    self.report.keep(episode)
                    yield episode.record
                else:
                    self.report.drop(episode, reason)

    def _reason_against(self, episode: TracedEpisode) -> str | None:
        if not self._benchmarks.isdisjoint(episode.functions):
            return BENCHMARK
        if episode.digest in self._digests:
            return DUPLICATE
        self._digests.add(episode.digest)
        if self._index is not None:
            signature = np.frombuffer(episode.signature, np.uint32)
            if self._index.add(signature) is not None:
                return NEAR_DUPLICATE
        return None


def _check_python(episode: TracedEpisode) -> None:
    if episode.python != platform.python_version():
        raise CorpusError(
            f"episode {episode.name!r} was traced by Python {episode.python}; expected "
            f"{platform.python_version()}, as here: traces differ between versions, so let all "
            "workers have one"
        )
