"""A finished corpus: ArrayRecord shards and the manifest that they are checked against.

A folder holds ``traces-00000-of-000NN.arrayrecord``, whose records are episodes as JSON in UTF-8,
``manifest.json``, and ``run.json`` with what differs from run to run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from cwm_jax.schema import check_types, from_json, to_json
from cwm_jax.trace.corpus.settings import CorpusError
from cwm_jax.trace.episodes import Episode, episode_from_json

SCHEMA_VERSION = 1
KIND = "trace-corpus"
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceShard:
    """One ArrayRecord file as it was written."""

    name: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        check_types(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a corpus holds and what it was made from.

    Attributes:
        schema_version, kind: of the folder.
        files: in the order of their episodes.
        num_episodes, num_events: in all files.
        python: version of the interpreter that ran the programs.
        limits: of the traces.
        settings: `CorpusSettings` without the limits, and the benchmarks that were left out.
        report: `CorpusReport`.
    """

    schema_version: int
    kind: str
    files: tuple[TraceShard, ...]
    num_episodes: int
    num_events: int
    python: str
    limits: dict
    settings: dict
    report: dict

    def __post_init__(self) -> None:
        check_types(self)


class ShardWriter:
    """Writes records into shards; their names hold their total, so they get them last."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._parts: list[Path] = []
        self._writer: Any = None
        self._part_bytes = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_part()

    def add(self, record: bytes) -> None:
        with self._reported():
            if self._writer is None:
                self._parts.append(self._folder / f"{len(self._parts):05d}.part")
                # A group is the unit of reading; one record each makes random access cheap.
                self._writer = ArrayRecordWriter(str(self._parts[-1]), "group_size:1")
            self._writer.write(record)
        self._part_bytes += len(record)
        if self._part_bytes >= self._shard_bytes:
            self._close_part()

    def finish(self) -> tuple[TraceShard, ...]:
        self._close_part()
        return tuple(self._named(number, part) for number, part in enumerate(self._parts))

    def _close_part(self) -> None:
        writer, self._writer, self._part_bytes = self._writer, None, 0
        if writer is not None:
            with self._reported():
                writer.close()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # ArrayRecord's for every failed write
            raise CorpusError(
                f"could not write traces to {self._folder}: {error}; free space there and start "
                "again: what is traced is kept"
            ) from error

    def _named(self, number: int, part: Path) -> TraceShard:
        name = f"traces-{number:05d}-of-{len(self._parts):05d}.arrayrecord"
        path = part.rename(self._folder / name)
        return TraceShard(name=name, bytes=path.stat().st_size, sha256=_file_sha256(path))


def write_json(path: Path, values: Any) -> None:
    """Writes a file whole or not at all."""
    data = json.dumps(values, indent=1, sort_keys=True).encode() + b"\n"
    write_atomically(path, data)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes beside and renames."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``manifest.json``."""
    write_json(folder / MANIFEST, to_json(manifest))


def read_manifest(folder: str | os.PathLike) -> Manifest:
    """The manifest of a corpus.

    Raises:
        CorpusError: there is none, or it is damaged, or of another kind or version.
    """
    path = Path(folder) / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kind, version = values["kind"], values["schema_version"]
        if (kind, version) == (KIND, SCHEMA_VERSION):
            return from_json(Manifest, values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(
            f"{path}: no readable manifest ({error}); expected that of a trace corpus: name its "
            "folder, or write it again"
        ) from error
    raise CorpusError(
        f"{path}: is of kind {kind!r}, version {version!r}; expected {KIND!r}, {SCHEMA_VERSION}: "
        "write the corpus again with this version"
    )


def read_corpus(folder: str | os.PathLike) -> Iterator[Episode]:
    """The episodes of a corpus, in its order.

    Manifest and sizes are checked at once, the content of each file before its first episode.

    Raises:
        CorpusError: no or a damaged manifest; a file that is missing or damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for file in manifest.files:
        _check_size(folder / file.name, file)
    return _episodes(folder, manifest)


def _episodes(folder: Path, manifest: Manifest) -> Iterator[Episode]:
    count = 0
    for file in manifest.files:
        for episode in _episodes_of_file(folder / file.name, file):
            count += 1
            yield episode
    if count != manifest.num_episodes:
        raise CorpusError(
            f"{folder}: its files hold {count} episodes; expected {manifest.num_episodes}, as its "
            "manifest says: write the corpus again"
        )


def _episodes_of_file(path: Path, file: TraceShard) -> Iterator[Episode]:
    _check_size(path, file)
    if (found := _file_sha256(path)) != file.sha256:
        raise CorpusError(
            f"{path}: sha256 is {found}; expected {file.sha256}: write the corpus again"
        )
    reader: Any = ArrayRecordReader(str(path))
    try:
        for number in range(reader.num_records()):
            yield _episode(reader.read(), f"{path}:{number}")
    except RuntimeError as error:  # ArrayRecord's
        raise CorpusError(f"{path}: cannot be read ({error}); write the corpus again") from error
    finally:
        reader.close()


def _episode(record: bytes, where: str) -> Episode:
    try:
        return episode_from_json(json.loads(record))
    except (ValueError, TypeError, AttributeError) as error:
        raise CorpusError(f"{where}: no episode ({error}); write the corpus again") from error


def _check_size(path: Path, file: TraceShard) -> None:
    if not path.is_file():
        raise CorpusError(
            f"{path}: missing, but its manifest lists it; expected {file.bytes} bytes: write the "
            "corpus again"
        )
    if (size := path.stat().st_size) != file.bytes:
        raise CorpusError(
            f"{path}: has {size} bytes; expected {file.bytes}: write the corpus again"
        )


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
