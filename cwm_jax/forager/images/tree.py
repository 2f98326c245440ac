"""A tree of files as a sandbox leaves it: taken out of a tape archive, told by its content.

What is inside the tree is whoever's code ran in the sandbox. Links in it are never followed here:
they mean something in a sandbox alone, where the tree is at another place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from cwm_jax.storage import file_sha256

# Both assumed: environments of large libraries have some 30,000 files and 3 GB.
_MOST_BYTES = 8 << 30
_MOST_FILES = 200_000
_MOST_DEPTH = 100  # assumed; what removes a tree goes down by recursion
_MOST_TIME = 1 << 33  # what every file system can store
_BLOCK = 4096
_NO_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


class TreeError(ValueError):
    """A tree, or an archive of one, that may not be used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """Something in a tree.

    Attributes:
        path: relative to the tree's root.
        kind: what it is.
        program: whether it is a file that can be executed.
        num_bytes: of a file.
        target: of a link, as it is written.
    """

    path: bytes
    kind: Literal["folder", "file", "link"]
    program: bool = False
    num_bytes: int = 0
    target: bytes = b""


def unpack(
    archive: Path, root: Path, *, max_bytes: int = _MOST_BYTES, max_files: int = _MOST_FILES
) -> None:
    """Makes ``root`` of a tape archive that is not compressed and may mean harm.

    Folders and files come first, links last, so nothing is written through a link. Of modes only
    that a file can be executed is kept, and of owners nothing; whoever may enter ``root`` can read
    and write all of it. Pipes are left out.

    Args:
        archive: the file.
        root: a folder that is not there yet.
        max_bytes: of all files.
        max_files: of all members.

    Raises:
        TreeError: the archive is none, holds too much, a member lies outside, is a device, or has
            the place of another; what has been unpacked is the caller's to remove.
        OSError: the disk is full.
    """
    root.mkdir()
    links: list[tuple[Path, str]] = []
    num_files = num_bytes = 0
    try:
        with tarfile.open(archive, "r|", encoding="utf-8", errors="surrogateescape") as members:
            while (member := members.next()) is not None:
                members.members.clear()  # type: ignore[attr-defined]  # else all are kept
                num_files += 1
                num_bytes += member.size if member.isreg() else 0
                if num_files > max_files or member.size < 0 or num_bytes > max_bytes:
                    raise TreeError(
                        f"{archive}: holds more than {max_files} members or {max_bytes} bytes; "
                        "expected fewer: install less"
                    )
                with _refusing(archive, member.name):
                    _take(members, member, root, links)
        for place, target in links:
            with _refusing(archive, str(place)):
                place.symlink_to(target)
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise TreeError(
            f"{archive}: cannot be read ({error}); expected a whole tape archive: make it again"
        ) from error
    open_to_all(root)


def nodes(root: Path) -> list[Node]:
    """All that is below a folder, sorted by path.

    Raises:
        TreeError: something is no folder, file or link.
    """
    return sorted(_nodes(os.fsencode(root)), key=lambda node: node.path)


def hash_tree(root: Path) -> str:
    """A hash, in hex, of all paths, of their kinds, and of the files' contents.

    Times, owners and modes but for whether a file can be executed are no part of it.
    """
    said = hashlib.sha256()
    for node in nodes(root):
        content = node.target
        if node.kind == "file":
            content = file_sha256(root / os.fsdecode(node.path)).encode()
        for part in (node.path, node.kind.encode(), b"x" if node.program else b"", content):
            said.update(b"%d:" % len(part) + part)
    return said.hexdigest()


def open_to_all(root: Path) -> None:
    """Lets everyone read and write what is there, and no file be more than executed."""
    root.chmod(0o777)
    for node in nodes(root):
        if node.kind != "link":
            place = root / os.fsdecode(node.path)
            place.chmod(0o777 if node.kind == "folder" or node.program else 0o666)


def num_bytes(root: Path) -> int:
    """What the files and folders take, each in whole blocks; a file of two names counts once."""
    seen, total = set(), _BLOCK
    for node in nodes(root):
        found = (root / os.fsdecode(node.path)).lstat()
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            total += -(-max(node.num_bytes, 1) // _BLOCK) * _BLOCK
    return total


def _take(
    members: tarfile.TarFile, member: tarfile.TarInfo, root: Path, links: list[tuple[Path, str]]
) -> None:
    path = _inside(member.name)
    place = root / path
    if member.isdir():
        place.mkdir(parents=True, exist_ok=True)
    elif not path:
        raise ValueError("is no name of a file")
    elif member.issym():
        place.parent.mkdir(parents=True, exist_ok=True)
        links.append((place, member.linkname))
    elif member.islnk():
        place.parent.mkdir(parents=True, exist_ok=True)
        original = root / _inside(member.linkname)
        if not original.is_file():  # as links come last, there are none on the way
            raise ValueError(f"is a hard link to {member.linkname!r}, which is no file before it")
        place.hardlink_to(original)
    elif member.isreg():
        place.parent.mkdir(parents=True, exist_ok=True)
        _write(members, member, place)
    elif not member.isfifo():
        raise ValueError("is a device or of an unknown kind")


def _write(members: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
    content = members.extractfile(member)
    assert content is not None
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    mode = 0o777 if member.mode & 0o111 else 0o666
    with open(os.open(place, flags, mode), "wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
    # Bytecode says of when its source is.
    time_s = int(member.mtime) if 0 <= member.mtime < _MOST_TIME else 0
    os.utime(place, (time_s, time_s))


def _inside(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise ValueError("lies outside")
    if len(parts) > _MOST_DEPTH:
        raise ValueError(f"lies below more than {_MOST_DEPTH} folders")
    return "/".join(parts)


@contextlib.contextmanager
def _refusing(archive: Path, name: str) -> Iterator[None]:
    """Says of which member it is that there is something wrong with it."""
    expected = "expected files, folders and links inside, each at a place of its own: do not use it"
    try:
        yield
    except TreeError:
        raise
    except ValueError as error:
        raise TreeError(f"{archive}: member {name[:200]!r} {error}; {expected}") from error
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise TreeError(f"{archive}: member {name[:200]!r}: {error}; {expected}") from error


def _nodes(root: bytes) -> Iterator[Node]:
    folders = [b""]
    while folders:
        above = folders.pop()
        with os.scandir(os.path.join(root, above)) as entries:
            for entry in entries:
                node = _node(entry, os.path.join(above, entry.name))
                if node.kind == "folder":
                    folders.append(node.path)
                yield node


def _node(entry: os.DirEntry[bytes], path: bytes) -> Node:
    found = entry.stat(follow_symlinks=False)
    if stat.S_ISDIR(found.st_mode):
        return Node(path=path, kind="folder")
    if stat.S_ISLNK(found.st_mode):
        return Node(path=path, kind="link", target=os.readlink(entry.path))
    if stat.S_ISREG(found.st_mode):
        program = bool(found.st_mode & 0o111)
        return Node(path=path, kind="file", program=program, num_bytes=found.st_size)
    raise TreeError(
        f"{os.fsdecode(entry.path)}: is a device, a pipe or a socket; expected folders, files and "
        "links: remove it"
    )
