"""Files that are there whole or not at all, ArrayRecords, and manifests they are checked against.

A manifest is a JSON object with ``kind``, ``schema_version`` and the files it lists, each as a
`StoredFile`. Whoever reads a listed file compares it first: what was cut or changed is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from cwm_jax.config.schema import check_types, from_json

MANIFEST = "manifest.json"
M = TypeVar("M")


class StorageError(ValueError):
    """A file that is missing, damaged, of another version, or that could not be written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file of a folder as it was written."""

    name: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        check_types(self)


def stored_file(path: Path) -> StoredFile:
    """What a manifest says of a file that lies there whole."""
    return StoredFile(name=path.name, bytes=path.stat().st_size, sha256=file_sha256(path))


def check_file(path: Path, expected: StoredFile, *, verify: bool, next_step: str) -> None:
    """Raises StorageError unless the file is there, of its size and (``verify``) of its content."""
    if not path.is_file():
        raise StorageError(f"{path}: missing, but its manifest lists it; {next_step}")
    if path.stat().st_size != expected.bytes:
        raise StorageError(
            f"{path}: has {path.stat().st_size} bytes; expected {expected.bytes}: {next_step}"
        )
    if verify and (found := file_sha256(path)) != expected.sha256:
        raise StorageError(f"{path}: sha256 is {found}; expected {expected.sha256}: {next_step}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Writes beside and renames: the file holds its old content or the new, never a part."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)


def write_json(path: Path, values: Any) -> None:
    """`write_whole` of JSON with sorted keys."""
    write_whole(path, json.dumps(values, indent=1, sort_keys=True).encode() + b"\n")


class LineFile:
    """A file of lines that is only added to, open for one process; a line counts once it is whole.

    Args:
        path: made if missing.
        shown: what a refusal calls it.
        otherwise: what to do instead of waiting.

    Raises:
        StorageError: another process writes it.
    """

    def __init__(self, path: Path, *, shown: Path, otherwise: str) -> None:
        self._file: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise StorageError(
                f"{shown} is being written by another process; wait for it, or {otherwise}"
            ) from None

    def lines(self) -> list[bytes]:
        """All of them; what a kill has torn at the end is cut off the file."""
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
            os.fsync(self._file.fileno())
        return content.split(b"\n")[:-1]

    def add(self, lines: bytes) -> None:
        """Appends whole lines; they are on the disk when it returns."""
        self._file.write(lines)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_manifest(path: Path, cls: type[M], *, kind: str, version: int, next_step: str) -> M:
    """The manifest of a folder, as its dataclass.

    Raises:
        StorageError: there is none, or it is damaged, or of another kind or version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values["kind"], values["schema_version"]
        if found == (kind, version):
            return from_json(cls, values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path}: no readable manifest ({error}); {next_step}") from error
    raise StorageError(
        f"{path}: is of kind {found[0]!r}, version {found[1]!r}; expected {kind!r}, {version}: "
        f"{next_step}"
    )


class RecordWriter:
    """Writes records into ArrayRecord files ``NAME-00000-of-000NN.arrayrecord``.

    Their names hold their number, so they get them at the end.

    Args:
        folder: of the files.
        name: that theirs begin with.
        shard_bytes: of records in a file, at least, before the next is begun.
        next_step: what a user does where nothing can be written.
    """

    def __init__(self, folder: Path, name: str, *, shard_bytes: int, next_step: str) -> None:
        self._folder, self._name = folder, name
        self._shard_bytes, self._next_step = shard_bytes, next_step
        self._parts: list[Path] = []
        self._writer: Any = None
        self._part_bytes = 0

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_part()

    def add(self, record: bytes) -> None:
        """Raises StorageError where it cannot be written."""
        with self._reported():
            if self._writer is None:
                self._parts.append(self._folder / f"{self._name}-{len(self._parts):05d}.part")
                self._writer = _array_record_writer(self._parts[-1])
            self._writer.write(record)
        self._part_bytes += len(record)
        if self._part_bytes >= self._shard_bytes:
            self._close_part()

    def finish(self) -> tuple[StoredFile, ...]:
        """Names the files, in the order of their records."""
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
        except (RuntimeError, OSError) as error:  # RuntimeError: ArrayRecord's for failed writes
            self._writer = None  # closing it would fail likewise
            raise StorageError(
                f"could not write {self._name} to {self._folder}: {error}; {self._next_step}"
            ) from error

    def _named(self, number: int, part: Path) -> StoredFile:
        name = f"{self._name}-{number:05d}-of-{len(self._parts):05d}.arrayrecord"
        return stored_file(part.rename(self._folder / name))


def read_records(
    path: Path, expected: StoredFile, *, next_step: str
) -> Iterator[tuple[str, bytes]]:
    """Streams (place for people, record) of an ArrayRecord file, after its content is checked.

    Raises:
        StorageError: the file is missing or damaged.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    check_file(path, expected, verify=True, next_step=next_step)
    try:
        reader: Any = ArrayRecordReader(str(path))
        with contextlib.closing(reader):
            for number in range(reader.num_records()):
                yield f"{path}:{number}", reader.read()
    except RuntimeError as error:  # ArrayRecord's
        raise StorageError(f"{path}: cannot be read ({error}); {next_step}") from error


def _array_record_writer(path: Path) -> Any:
    # Imported here: the package is not on every machine that only writes JSON.
    from array_record.python.array_record_module import ArrayRecordWriter

    # A group is the unit of reading; one record each makes random access cheap.
    return ArrayRecordWriter(str(path), "group_size:1")
