"""Files as a manifest lists them, checked before they are read."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from cwm_jax.schema import check_types


class DataError(ValueError):
    """A corpus, a shard or a data setting that cannot be used."""


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
    """Raises DataError unless the file is there, of its size and (``verify``) of its content."""
    if not path.is_file():
        raise DataError(f"{path}: missing, but its manifest lists it; {next_step}")
    if path.stat().st_size != expected.bytes:
        raise DataError(
            f"{path}: has {path.stat().st_size} bytes; expected {expected.bytes}: {next_step}"
        )
    if verify and (found := file_sha256(path)) != expected.sha256:
        raise DataError(f"{path}: sha256 is {found}; expected {expected.sha256}: {next_step}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
