"""Traces items of work: what every process of an engine does, and how it says what came out.

The results of a chunk travel and are stored in one form, gzip'd lines: per item an object, and
after it the records of its episodes as they will stand in a shard. Several of them after one
another are one again.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import dataclasses
import functools
import gzip
import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from cwm_jax.sandbox import SandboxError
from cwm_jax.trace.corpus.decontamination import function_digests
from cwm_jax.trace.corpus.deduplication import trace_signature
from cwm_jax.trace.corpus.settings import CorpusSettings
from cwm_jax.trace.episodes import Episode
from cwm_jax.trace.tracer import TraceError, TraceLimits, Tracer

WORKER_DIED = "worker-died"
_MESSAGE_CHARS = 400
_AGE = 7  # assumed: between two tracers; a few more calls of one do not make them equal
# Which of the two limits is met first is the machine's matter.
_TIME = {"cpu": "time", "wall": "time"}


class Work(Protocol):
    """Something to be traced: `Program`, or what else can be pickled and has these.

    ``source`` and ``difficulty`` are read for the report if they are there.
    """

    @property
    def name(self) -> str: ...
    def episodes(self, tracer: Tracer, /) -> list[Episode]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracedEpisode:
    """An episode as its record, and what the choice among all of them needs.

    Attributes:
        record: UTF-8 JSON without a newline.
        digest: of its text.
        signature: `trace_signature` as bytes, or empty.
        functions: `function_digests` of its context, or empty.
    """

    name: str
    source: str
    difficulty: int | None
    num_events: int
    python: str
    record: bytes
    digest: bytes
    signature: bytes
    functions: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """An item or an episode of which nothing is kept, and why."""

    name: str
    source: str
    difficulty: int | None
    reason: str
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemResult:
    """What came of one item of work."""

    name: str
    episodes: tuple[TracedEpisode, ...] = ()
    failures: tuple[Failure, ...] = ()


def trace_items(
    items: Sequence[Work], *, settings: CorpusSettings, with_functions: bool = False
) -> bytes:
    """Traces items with this process's warm tracers; returns their results, encoded.

    Args:
        items: whatever one of them does, short of ending the process, the others are traced.
        settings: see there.
        with_functions: digest the functions of the contexts.

    Raises:
        SandboxError: no sandbox can be had.
    """
    tracers = _warm_tracers(settings.limits, settings.unsafe, min(settings.repeats, 2), os.getpid())
    return encode_results(
        [_item_result(item, tracers, settings, with_functions=with_functions) for item in items]
    )


def died_result(item: Work) -> bytes:
    """The result of an item that has ended two processes that traced it, encoded."""
    message = "the process that traced it ended"
    return encode_results([_failed_item(item, WORKER_DIED, message)])


def encode_results(results: Sequence[ItemResult]) -> bytes:
    """Results as bytes; those of several calls can be joined."""
    lines = []
    for result in results:
        fields = [dataclasses.asdict(episode) for episode in result.episodes]
        lines += [
            json.dumps(
                {
                    "name": result.name,
                    "failures": [dataclasses.asdict(failure) for failure in result.failures],
                    "episodes": [_to_json(values) for values in fields],
                }
            ).encode(),
            *(episode.record for episode in result.episodes),
        ]
    return gzip.compress(b"".join(line + b"\n" for line in lines), 1, mtime=0)


def decode_results(data: bytes) -> list[ItemResult]:
    """The inverse of `encode_results`.

    Raises:
        ValueError, OSError, EOFError, KeyError, TypeError, StopIteration, zlib.error: damaged.
    """
    lines = iter(gzip.decompress(data).split(b"\n")[:-1])
    return [_decode_result(json.loads(line), lines) for line in lines]


def _decode_result(head: dict[str, Any], lines: Iterator[bytes]) -> ItemResult:
    return ItemResult(
        name=head["name"],
        episodes=tuple(_from_json(values, next(lines)) for values in head["episodes"]),
        failures=tuple(Failure(**values) for values in head["failures"]),
    )


def _to_json(values: dict[str, Any]) -> dict[str, Any]:
    del values["record"]
    for key in ("digest", "signature"):
        values[key] = base64.b64encode(values[key]).decode()
    values["functions"] = [digest.hex() for digest in values["functions"]]
    return values


def _from_json(values: dict[str, Any], record: bytes) -> TracedEpisode:
    for key in ("digest", "signature"):
        values[key] = base64.b64decode(values[key])
    values["functions"] = tuple(map(bytes.fromhex, values["functions"]))
    return TracedEpisode(**values, record=record)


@functools.lru_cache(maxsize=1)
def _warm_tracers(limits: TraceLimits, unsafe: bool, count: int, pid: int) -> tuple[Tracer, ...]:
    # A second interpreter has other addresses, and one of another age has other numbers of
    # processes and files: what depends on them differs when it is repeated.
    ages = range(0, count * _AGE, _AGE)
    tracers = tuple(Tracer(limits, unsafe=unsafe, age=age) for age in ages)
    for tracer in tracers:
        atexit.register(tracer.close)
    return tracers


def _item_result(
    item: Work, tracers: Sequence[Tracer], settings: CorpusSettings, *, with_functions: bool
) -> ItemResult:
    try:
        with _deadline(settings.item_s):
            runs = [
                item.episodes(tracers[number % len(tracers)]) for number in range(settings.repeats)
            ]
            return _compared(item, runs, settings, with_functions=with_functions)
    except (SandboxError, KeyboardInterrupt):
        raise
    except TraceError as error:
        return _failed_item(item, _TIME.get(error.reason, error.reason), str(error))
    except _OvertimeError:
        return _failed_item(item, "time", f"more than {settings.item_s} s for the item")
    except BaseException as error:  # SystemExit and the like too: one item never stops the rest
        return _failed_item(item, f"internal:{type(error).__name__}", _text(error))


def _compared(
    item: Work, runs: list[list[Episode]], settings: CorpusSettings, *, with_functions: bool
) -> ItemResult:
    """The episodes that are the same in every run, and what becomes of the others."""
    names = list(dict.fromkeys(episode.name for run in runs for episode in run))
    by_name = [{episode.name: episode for episode in run} for run in runs]
    if not names:
        return _failed_item(item, "no-episode", "it has none")
    episodes, failures = [], []
    for name in names:
        versions = [run.get(name) for run in by_name]
        first = next(version for version in versions if version is not None)
        if any(version != first for version in versions):
            failures.append(_failed_episode(first, "nondeterministic", "its traces differ"))
        elif not first.finished and not settings.keep_truncated:
            failures.append(_failed_episode(first, f"truncated:{first.status}", "cut by a limit"))
        else:
            try:
                episodes.append(_traced(first, settings, with_functions=with_functions))
            except (
                SyntaxError,
                RecursionError,
            ) as error:  # no function of it can be compared with a benchmark's
                failures.append(_failed_episode(first, "syntax", f"its context: {error}"))
    return ItemResult(name=item.name, episodes=tuple(episodes), failures=tuple(failures))


def _traced(episode: Episode, settings: CorpusSettings, *, with_functions: bool) -> TracedEpisode:
    options = settings.near_duplicates
    record = json.dumps(episode.to_json(), sort_keys=True, separators=(",", ":"))
    return TracedEpisode(
        name=episode.name,
        source=episode.source,
        difficulty=episode.difficulty,
        num_events=episode.num_events,
        python=episode.python,
        record=record.encode(),
        digest=bytes.fromhex(episode.sha256),
        signature=trace_signature(episode.frames, options).tobytes() if options else b"",
        functions=function_digests(episode.context) if with_functions else (),
    )


def _failed_item(item: Work, reason: str, message: str) -> ItemResult:
    failure = Failure(
        name=item.name,
        source=getattr(item, "source", "unknown"),
        difficulty=getattr(item, "difficulty", None),
        reason=reason,
        message=message[:_MESSAGE_CHARS],
    )
    return ItemResult(name=item.name, failures=(failure,))


def _failed_episode(episode: Episode, reason: str, message: str) -> Failure:
    return Failure(
        name=episode.name,
        source=episode.source,
        difficulty=episode.difficulty,
        reason=reason,
        message=message,
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(no description)"


class _OvertimeError(BaseException):
    """Not an Exception, so that an item's own handlers let it pass."""


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raises _OvertimeError after that time; only a main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise _OvertimeError

    former = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
