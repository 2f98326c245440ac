"""Files of a source distribution, which whoever has published it may have made to do harm.

Nothing is written: what an archive holds is read into memory, within bounds, and what a checkout
could not hold or what leads out of the archive is refused.
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO

FILE, PROGRAM, LINK = "100644", "100755", "120000"  # git's modes of a file

# All three: assumed. The largest distributions of libraries unpack to about 200 MB.
_MOST_FILES = 50_000
_MOST_BYTES = 256 << 20  # of all that is unpacked, with an archive's own headers
_MOST_NAME_BYTES = 4096

_OPENERS = {
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
}
SUFFIXES = (*_OPENERS, ".zip")
# What the readers raise for bytes that are no such archive.
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,  # zipfile's, of a compression that it does not know
    RuntimeError,  # zipfile's, of a file with a password
    ValueError,
    OverflowError,
)


class ArchiveError(ValueError):
    """An archive that cannot be read, or whose content may not be used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """A file; ``mode`` is `FILE`, `PROGRAM` or `LINK`, ``content`` of a link is its target."""

    mode: str
    content: bytes


def read_archive(name: str, content: bytes) -> dict[bytes, Member]:
    """The files by path, without the folder that holds all of them.

    Left out are ``.git`` with what is below it, which no commit can hold, and links that do not
    lead to a place inside. A hard link becomes a file of its own.

    Args:
        name: of the archive's file; its ending says what it is.
        content: of the file.

    Raises:
        ArchiveError: the archive is no such thing, holds nothing, is too large, or has a member
            that lies outside, is a device, or is a file and a folder at once.
    """
    suffix = archive_suffix(name)
    if suffix is None:
        raise ArchiveError(
            f"{name}: is no source archive by its name; expected one that ends with "
            f"{', '.join(SUFFIXES)}: give a source distribution"
        )
    found: dict[bytes, Member] = {}
    left = _MOST_BYTES
    try:
        members = _of_zip(content) if suffix == ".zip" else _of_tar(suffix, content, found)
        for path, member in members:
            left -= len(member.content)
            if left < 0:
                raise _too_large()
            found[_file_path(path)] = member
    except ArchiveError as error:
        raise ArchiveError(f"{name}: {error}") from error
    except _BROKEN as error:
        raise ArchiveError(
            f"{name}: cannot be read ({error}); expected a whole {suffix} archive: get it again"
        ) from error
    _check_folders(name, found)
    files = _without_top(found)
    files = {path: member for path, member in files.items() if _can_be_kept(path, member)}
    if not files:
        raise ArchiveError(f"{name}: holds no files; expected a project's sources: give another")
    return files


def archive_suffix(name: str) -> str | None:
    """The one of `SUFFIXES` that a file's name ends with, or None."""
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)


class _Bounded:
    """A stream that refuses to go on past a number of bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, _MOST_BYTES

    def read(self, size: int) -> bytes:
        chunk = self._file.read(min(size, self._left + 1))
        self._left -= len(chunk)
        if self._left < 0:
            raise _too_large()
        return chunk


def _of_tar(
    suffix: str, content: bytes, found: Mapping[bytes, Member]
) -> Iterator[tuple[bytes, Member]]:
    """``found``: what it has yielded so far; hard links are to those."""
    names = {"encoding": "utf-8", "errors": "surrogateescape"}
    with (
        _OPENERS[suffix](io.BytesIO(content), "rb") as file,
        tarfile.open(fileobj=_Bounded(file), mode="r|", **names) as archive,  # type: ignore
    ):
        for number, entry in enumerate(archive):
            _check_count(number)
            path = _bytes(entry.name)
            if entry.isdir():
                _checked(path)
            elif entry.isreg():
                if not 0 <= entry.size <= _MOST_BYTES:  # holes take no room in the archive
                    raise _too_large()
                data = archive.extractfile(entry)
                assert data is not None
                yield path, Member(mode=_mode(entry.mode), content=data.read())
            elif entry.issym():
                yield path, Member(mode=LINK, content=_bytes(entry.linkname))
            elif entry.islnk():
                original = found.get(_checked(_bytes(entry.linkname)))
                if original is None or original.mode == LINK:
                    raise _refused(path, f"is a hard link to {entry.linkname!r}")
                yield path, original
            else:
                raise _refused(path, "is a device, a pipe or of an unknown kind")


def _of_zip(content: bytes) -> Iterator[tuple[bytes, Member]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for number, entry in enumerate(archive.infolist()):
            _check_count(number)
            path, mode = _bytes(entry.filename), entry.external_attr >> 16
            if entry.is_dir():
                _checked(path)
                continue
            kind = stat.S_IFMT(mode)
            if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
                raise _refused(path, "is a device, a pipe or of an unknown kind")
            with archive.open(entry) as file:
                data = file.read(_MOST_BYTES + 1)  # the size that the archive states may be a lie
            yield path, Member(mode=LINK if kind == stat.S_IFLNK else _mode(mode), content=data)


def _checked(path: bytes) -> bytes:
    """The path without empty parts and dots."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if path.startswith(b"/") or b".." in parts:
        raise _refused(path, "lies outside of the archive")
    if b"\0" in path or len(path) > _MOST_NAME_BYTES:
        raise _refused(path, "has a name that no file can have")
    return b"/".join(parts)


def _file_path(path: bytes) -> bytes:
    found = _checked(path)
    if not found:
        raise _refused(path, "has a name that no file can have")
    return found


def _check_count(number: int) -> None:
    if number >= _MOST_FILES:
        raise ArchiveError(f"has more than {_MOST_FILES} members; expected fewer: give another")


def _check_folders(name: str, found: Mapping[bytes, Member]) -> None:
    for path in found:
        for above in _above(path):
            if above in found:
                raise ArchiveError(
                    f"{name}: {_refused(above, 'is a file, and has files below it')}"
                )


def _above(path: bytes) -> Iterator[bytes]:
    parts = path.split(b"/")
    for number in range(1, len(parts)):
        yield b"/".join(parts[:number])


def _without_top(found: Mapping[bytes, Member]) -> dict[bytes, Member]:
    tops = {path.partition(b"/")[0] for path in found}
    if len(tops) != 1 or any(b"/" not in path for path in found):
        return dict(found)
    return {path.partition(b"/")[2]: member for path, member in found.items()}


def _can_be_kept(path: bytes, member: Member) -> bool:
    if b".git" in path.lower().split(b"/"):
        return False
    if member.mode != LINK:
        return True
    if b"\0" in member.content or member.content.startswith(b"/"):
        return False
    # First up, then down. Whatever is passed on the way down may be a link, which stays inside as
    # well; ".." after it would be the parent of where that leads.
    parts = [part for part in member.content.split(b"/") if part not in (b"", b".")]
    num_up = parts.count(b"..")
    return bool(parts) and parts[:num_up] == [b".."] * num_up and num_up <= path.count(b"/")


def _mode(mode: int) -> str:
    return PROGRAM if mode & 0o111 else FILE


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _refused(path: bytes, what: str) -> ArchiveError:
    return ArchiveError(
        f"member {path[:200]!r} {what}; expected files, folders and links inside: do not use it"
    )


def _too_large() -> ArchiveError:
    return ArchiveError(f"unpacks to more than {_MOST_BYTES} bytes; expected fewer: give another")
