"""The documents of a source: names and bytes, in an order that is the same on every run."""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import hashlib
import json
import os
import stat
import sys
import sysconfig
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.config import SourceConfig
from cwm_jax.data.chat import Message
from cwm_jax.data.dialogs import check_line, output_dialog, parse_dialog, to_json
from cwm_jax.storage import StorageError, StoredFile
from cwm_jax.trace.corpus import read_episodes, read_manifest
from cwm_jax.trace.episodes import Episode, direct_document

_SUFFIXES = {
    "stdlib": (".py",),
    "folder": ("",),
    "jsonl": (".jsonl", ".jsonl.gz"),
    "chat": (".jsonl", ".jsonl.gz"),
    "parquet": (".parquet",),
}
_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}
_PARQUET_BATCH_ROWS = 1024


class DataError(StorageError):
    """A corpus, a shard or a data setting that cannot be used."""


@dataclasses.dataclass(frozen=True)
class Document:
    """One document of a corpus.

    Attributes:
        name: path relative to the source's, with ``:line`` or ``:row`` for JSONL and Parquet; of an
            episode its own.
        data: the text in UTF-8, or whatever bytes the corpus holds instead; of an episode what is
            to be predicted: its frames, or its output; of a dialog its messages in JSON.
        context: of an episode, the text before that; both name special tokens.
        group: of an episode, that of its program.
    """

    name: str
    data: bytes
    context: str | None = None
    group: str | None = None

    @property
    def split_name(self) -> str:
        """What the held-out split is a function of, so that it moves with the corpus.

        All episodes of a group fall on one side, as traces and as outputs alike.
        """
        return self.group or self.name


def documents(source: SourceConfig) -> Iterator[Document]:
    """Streams the documents of ``source``, files in the order of their relative paths.

    Empty documents are among them. Text that is not UTF-8 keeps its bytes: those of a file, of a
    JSONL string or of a binary Parquet column.

    Raises:
        DataError: the path is missing or of the wrong kind, holds no file or no document, cannot be
            read or parsed, lacks ``text_field``, or is not what a trace corpus's manifest says.
    """
    empty = True
    for name, path in corpus_files(source):
        try:
            for document in _documents_of_file(source, name, path):
                empty = False
                yield document
        except (OSError, EOFError, zlib.error) as error:
            raise _error(
                source, path, f"cannot be read ({error}); check its permissions or fetch it again"
            ) from error
    if empty:
        raise _error(source, source.path, "holds no document; expected at least one")


def corpus_files(source: SourceConfig) -> list[tuple[str, Path]]:
    """(relative name, path) of every file of ``source``, sorted by name.

    Without a ``glob``, hidden files and folders (``.git``) are left out. Those of a trace corpus
    are in the order of its manifest.

    Raises:
        DataError: the path is missing or of the wrong kind, a folder cannot be listed, or no file
            is found.
    """
    root = Path(sysconfig.get_path("stdlib") if source.path is None else source.path)
    if not stat.S_ISDIR(_stat(source, root).st_mode):
        if source.kind == "folder" or source.is_of_episodes:
            raise _error(source, root, f"is a file; kind {source.kind!r} expects a folder")
        return [(root.name, root)]
    if source.is_of_episodes:
        return [(file.name, root / file.name) for file in _trace_files(source, root)]
    files = sorted((path.relative_to(root).as_posix(), path) for path in _walk(source, root))
    if not files:
        wanted = source.glob or " or ".join(f"*{suffix}" for suffix in _SUFFIXES[source.kind])
        raise _error(source, root, f"holds no file that matches {wanted}; set glob or another path")
    return files


def corpus_fingerprint(source: SourceConfig) -> str:
    """SHA-256 over the files' names, sizes and times of change, without reading them.

    For the standard library the interpreter's version stands in for the times, for traces the
    content that their manifest states.
    """
    if source.is_of_episodes:
        files = _trace_files(source, Path(source.path or ""))
        return hashlib.sha256(repr(files).encode()).hexdigest()
    stats = [(name, _stat(source, path)) for name, path in corpus_files(source)]
    if source.kind == "stdlib":
        content = [sys.implementation.name, sys.version, [(n, s.st_size) for n, s in stats]]
    else:
        content = [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _stat(source: SourceConfig, path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise _error(
            source, path, f"cannot be read ({error}); set path to a corpus that exists"
        ) from error


def _walk(source: SourceConfig, root: Path) -> Iterator[Path]:
    # Path.glob alone passes over folders that it may not list: documents would be lost in silence.
    def refuse(error: OSError) -> None:
        raise _error(
            source, error.filename, f"cannot be listed ({error}); check its permissions"
        ) from error

    try:
        matching = None if source.glob is None else set(root.glob(source.glob))
    except (ValueError, NotImplementedError) as error:
        raise _error(
            source, root, f"has the glob {source.glob!r} ({error}); expected one such as '**/*.py'"
        ) from error
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        if source.kind == "stdlib":
            subfolders[:] = [name for name in subfolders if name not in _NOT_STDLIB]
        elif matching is None:
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for path in (Path(folder, name) for name in names):
            by_kind = path.name.endswith(_SUFFIXES[source.kind]) and path.name[0] != "."
            if (by_kind if matching is None else path in matching) and path.is_file():
                yield path


def _documents_of_file(source: SourceConfig, name: str, path: Path) -> Iterator[Document]:
    if source.kind in ("jsonl", "chat"):
        return _jsonl_documents(source, name, path)
    if source.kind == "parquet":
        return _parquet_documents(source, name, path)
    if source.is_of_episodes:
        return _trace_documents(source, path)
    return iter([Document(name, path.read_bytes())])


def _jsonl_documents(source: SourceConfig, name: str, path: Path) -> Iterator[Document]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            record = _record(source, where, line)
            if source.kind == "chat":
                yield Document(f"{name}:{number}", _dialog_bytes(source, where, record))
            else:
                value = record[source.text_field]
                yield Document(f"{name}:{number}", _bytes_of_value(source, where, value))


def _record(source: SourceConfig, where: str, line: bytes) -> dict[str, Any]:
    """The object of a line, with the key that is read."""
    if line.startswith(codecs.BOM_UTF8):
        raise _error(
            source, where, "begins with a byte-order mark (BOM); save the file as UTF-8 without one"
        )
    try:
        text = line.decode("utf-8", "strict" if source.kind == "chat" else "surrogateescape")
        record = json.loads(text.rstrip("\r\n"))  # places in messages are then of the line
    except UnicodeDecodeError as error:  # of dialogs; other texts may be bytes
        raise _error(
            source,
            where,
            f"is not UTF-8: byte {error.start + 1} of the line is 0x{line[error.start]:02x}; save "
            "the file as UTF-8, or mend the line",
        ) from error
    except (ValueError, RecursionError) as error:
        raise _error(
            source, where, f"is not JSON ({error}); expected one object per line"
        ) from error
    key = "messages" if source.kind == "chat" else source.text_field
    if not isinstance(record, dict) or key not in record:
        got = f"has {sorted(record)}" if isinstance(record, dict) else "is no object"
        why = "" if source.kind == "chat" else " (text_field)"
        theirs = isinstance(record, dict) and key == "messages" and "conversations" in record
        hint = ": rename conversations" if theirs else ""
        raise _error(source, where, f"{got}; expected the key {key!r}{why}{hint}")
    return record


def _parquet_documents(source: SourceConfig, name: str, path: Path) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if source.text_field not in columns:
                raise _error(
                    source,
                    path,
                    f"has the columns {columns}; expected {source.text_field!r} (text_field)",
                )
            for batch in file.iter_batches(_PARQUET_BATCH_ROWS, columns=[source.text_field]):
                for value in batch.column(0).to_pylist():
                    yield Document(f"{name}:{row}", _bytes_of_value(source, f"{path}:{row}", value))
                    row += 1
    except pyarrow.ArrowException as error:
        raise _error(
            source, path, f"cannot be read as Parquet ({error}); fetch it again"
        ) from error


def _trace_files(source: SourceConfig, root: Path) -> tuple[StoredFile, ...]:
    try:
        return read_manifest(root).files
    except StorageError as error:
        raise _error(source, error) from error


def _trace_documents(source: SourceConfig, path: Path) -> Iterator[Document]:
    (file,) = (file for file in _trace_files(source, path.parent) if file.name == path.name)
    try:
        for episode in read_episodes(path.parent, file):
            yield _trace_document(episode, source)
    except StorageError as error:
        raise _error(source, error) from error


def _dialog_bytes(source: SourceConfig, where: str, record: Mapping[str, Any]) -> bytes:
    try:
        check_line(record)
        return _json_bytes(parse_dialog(record["messages"]))
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise _error(
            source,
            where,
            f"has \\u{half:04x}, half of a surrogate pair, which is no character; write both "
            "halves, or take it out",
        ) from None
    except ValueError as error:
        raise _error(source, where, f"cannot be trained on: {error}") from None


def _json_bytes(messages: Sequence[Message]) -> bytes:
    return json.dumps(to_json(messages), ensure_ascii=False).encode()


def _trace_document(episode: Episode, source: SourceConfig) -> Document:
    if source.kind == "trace_dialogs":
        dialog = output_dialog(episode)
        data = _json_bytes(dialog) if dialog else b""  # empty ones are counted
        return Document(episode.name, data, group=episode.group)
    if source.kind == "traces":
        context, text = episode.prompt, episode.frames
    else:
        context, text = direct_document(episode) or ("", "")  # empty ones are counted
    return Document(episode.name, text.encode(), context, episode.group)


def _bytes_of_value(source: SourceConfig, where: str, value: object) -> bytes:
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise _error(
            source,
            where,
            f"{source.text_field!r} is of type {type(value).__name__}; expected text (text_field)",
        )
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone "\ud800" escape: bytes that are not UTF-8 either
        return value.encode("utf-8", "surrogatepass")


def _error(source: SourceConfig, where: object, text: str = "") -> DataError:
    return DataError(f"source {source.name!r} ({source.kind}): {where} {text}".rstrip())
