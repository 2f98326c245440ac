"""Where a project comes from: a git repository or a source distribution, as one of the host's own.

Nothing of the source is run on the host, and nothing of it is written but objects of git.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from cwm_jax.forager.images.archive import SUFFIXES, ArchiveError, archive_suffix, read_archive
from cwm_jax.forager.images.bare import (
    GitError,
    git,
    git_folder,
    history_up_to,
    import_files,
    is_tree_bounded,
    resolve,
)

# What pip gets: the name of a source distribution's file, and its bytes.
Download = Callable[[str], tuple[str, bytes]]

# Source: packaging.python.org, "Names and normalization", "Version specifiers".
_REQUIREMENT = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==([A-Za-z0-9.!+_-]+))?")
_STEM = re.compile(r"(.+)-(v?\d[^-]*)|(.+?)-(v?\d.*)")  # newer names, older ones
_PROTOCOLS = {"https": "https", "file": "file", "ssh": "ssh"}
_ARCHIVE_BYTES = 256 << 20  # assumed, as of what it may unpack to
_HASH_CHARACTERS = 12


class SourceError(ValueError):
    """A source that is not there, cannot be read or may not be used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A project that an environment can be built for.

    Attributes:
        name: in the spelling of distributions' (PEP 503), so that it can be part of a file's name.
        version: of the distribution; of a repository the first 12 digits of the commit.
        repository: bare, on the host; its branch ``main`` is the first of the commits, and nothing
            later is in it.
        commits: full hashes, the newest first: the one that was asked for, then earlier ones.
        has_history: whether the first commit has a parent here.
    """

    name: str
    version: str
    repository: Path
    commits: tuple[str, ...]
    has_history: bool


def open_source(
    spec: str, work: Path, *, earlier: int = 0, download: Download | None = None
) -> Source:
    """Gets a project.

    What is read is, in this order: a git URL (``https://``, ``ssh://``, ``file://`` or ``git@``);
    the path of a folder, a checkout or a bare repository; the path of a source distribution
    (``.tar.gz``, ``.tgz``, ``.tar.bz2``, ``.tar.xz``, ``.zip``); ``NAME`` or ``NAME==VERSION`` of a
    published one. After the first two ``@COMMIT`` may follow, which may be abbreviated or a tag; it
    is HEAD if there is none. What a checkout has and no commit holds does not count.

    Args:
        spec: one of these.
        work: folder for the repository; it is the caller's to remove.
        earlier: at most so many commits before the first are named too: of the line of first
            parents, at equal distances, without those of too many files.
        download: gets the source distribution of a requirement, as ``NAME==VERSION``.

    Raises:
        SourceError: there is no such source, or it may not be used.
    """
    if earlier < 0:
        raise ValueError(f"earlier is {earlier}; expected at least 0")
    folder = Path(tempfile.mkdtemp(prefix="source-", dir=work))
    folder.chmod(0o755)
    try:
        if "://" in spec or spec.startswith("git@"):
            return _of_url(spec, folder, earlier)
        path, _, asked = _split(spec)
        if Path(path).is_dir():
            return _of_repository(spec, Path(path), asked, folder, earlier)
        if archive_suffix(spec):
            return _of_archive(Path(spec).name, _content(Path(spec)), folder)
        return _of_requirement(spec, folder, download)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, ArchiveError):
            raise SourceError(f"{spec}: {error}") from error
        if isinstance(error, GitError):
            raise SourceError(
                f"{spec}: {error}; expected a commit that git can read and hold: look at the "
                "spelling, or give another source"
            ) from error
        raise


def distribution_name(name: str) -> str:
    """In the one spelling that may be part of a file's name (PEP 503)."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "project"


def _of_url(spec: str, folder: Path, earlier: int) -> Source:
    url, name, asked = _split(spec)
    scheme = "ssh" if url.startswith("git@") else url.partition("://")[0]
    if scheme not in _PROTOCOLS:
        raise SourceError(
            f"{spec}: is over {scheme}; expected one of {', '.join(_PROTOCOLS)} or git@HOST:PATH: "
            "clone it yourself, and give the checkout"
        )
    mirror = folder / "mirror.git"
    line = ["clone", "--quiet", "--bare", "--template=", "--no-recurse-submodules", "--no-local"]
    git([*line, "--", url, str(mirror)], protocol=_PROTOCOLS[scheme])
    source = _of_repository(spec, mirror, asked, folder, earlier, name=name)
    shutil.rmtree(mirror)
    return source


def _of_repository(
    spec: str, path: Path, asked: str, folder: Path, earlier: int, *, name: str = ""
) -> Source:
    if not (git_folder(path) / "HEAD").is_file():
        raise SourceError(
            f"{spec}: a folder without a git repository; expected a checkout or a bare repository: "
            "`git init` and commit there, or give a source distribution"
        )
    commit = resolve(path, asked or "HEAD")
    repository = folder / "repository.git"
    history_up_to(path, commit, repository)
    line = ["rev-list", "--first-parent", commit]
    history = git(line, folder=repository).decode().split()
    spread = _spread(history, earlier)
    commits = tuple(commit for commit in spread if is_tree_bounded(repository, commit))
    if commit not in commits:
        raise SourceError(
            f"{spec}: commit {commit} has too many files or bytes for a sandbox; expected what a "
            "project has: give another commit"
        )
    return Source(
        name=distribution_name(name or _last(str(path.resolve()))),
        version=commit[:_HASH_CHARACTERS],
        repository=repository,
        commits=commits,
        has_history=len(history) > 1,
    )


def _of_requirement(spec: str, folder: Path, download: Download | None) -> Source:
    found = _REQUIREMENT.fullmatch(spec)
    if found is None:
        raise SourceError(
            f"{spec}: no such folder or file, and no requirement; expected a git repository or its "
            f"URL, a file that ends with {', '.join(SUFFIXES)}, NAME or NAME==VERSION: look at its "
            "spelling"
        )
    if download is None:
        raise SourceError(
            f"{spec}: is a published distribution, and nothing here gets those; expected a path: "
            "download its source distribution, and give that file"
        )
    file, content = download(spec)
    name, version = _name_and_version(file)
    wanted = distribution_name(found[1]), found[2]
    if name != wanted[0] or wanted[1] not in (None, version):
        raise SourceError(
            f"{spec}: the download is {file!r}; expected the source distribution of "
            f"{' '.join(filter(None, wanted))}: give its file"
        )
    return _of_archive(file, content, folder)


def _of_archive(file: str, content: bytes, folder: Path) -> Source:
    repository = folder / "repository.git"
    commit = import_files(read_archive(file, content), repository)
    name, version = _name_and_version(file)
    return Source(
        name=name,
        version=version or commit[:_HASH_CHARACTERS],
        repository=repository,
        commits=(commit,),
        has_history=False,
    )


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if path.is_file() and size <= _ARCHIVE_BYTES:
            return path.read_bytes()
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read ({error.strerror}); expected a source distribution: look at "
            "its spelling"
        ) from error
    raise SourceError(
        f"{path}: has {size} bytes, or is no file; expected a file of at most {_ARCHIVE_BYTES}: "
        "give a source distribution"
    )


def _name_and_version(file: str) -> tuple[str, str]:
    """Of a distribution's file; the version is empty where the name has none."""
    stem = Path(file).name
    stem = stem[: len(stem) - len(archive_suffix(stem) or "")]
    found = _STEM.fullmatch(stem)
    if found is None:
        return distribution_name(stem), ""
    name, version = found[1] or found[3], found[2] or found[4]
    return distribution_name(name), re.sub(r"[^A-Za-z0-9.+_]+", "-", version)


def _split(spec: str) -> tuple[str, str, str]:
    """(without ``@COMMIT``, name of its last part, commit) of a path or URL."""
    if not spec.startswith("git@") and Path(spec).is_dir():
        return spec, _last(spec), ""
    start = max(spec.rfind("/"), spec.rfind(":")) + 1
    last, _, commit = spec[start:].partition("@")
    place = spec[:start] + last
    return place, _last(place), commit


def _last(place: str) -> str:
    """Of a path or URL, without ``.git``."""
    place = place.rstrip("/").removesuffix(".git").rstrip("/")
    return re.split(r"[/:]", place)[-1]


def _spread(history: list[str], earlier: int) -> tuple[str, ...]:
    """The first, and so many of those after it; the oldest, often almost empty, comes last."""
    num_after, parts = len(history) - 1, earlier + 1
    if num_after < parts:
        return tuple(history)
    return tuple(history[at * num_after // parts] for at in range(parts))
