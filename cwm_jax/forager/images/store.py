"""A folder of images, each kept under a name that its content gives.

``images/NAME-VERSION-DIGEST`` has ``manifest.json``, ``root``, which is /tmp in a sandbox without
what the repository has, and ``repository.git``, bare, whose ``main`` is the image's commit.
``drafts`` has what is being made. All of it is its owner's alone; inside ``root`` everybody may
write, as it is the lower layer of what another user writes to.

The manifest is JSON with the fields of `Manifest`, the same in every form of an image (`oci`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from cwm_jax.config.schema import check_types, from_json, nearest_hint, to_json
from cwm_jax.forager.images.recipe import Recipe
from cwm_jax.forager.images.tree import hash_tree, num_bytes, open_to_all
from cwm_jax.storage import MANIFEST, StorageError, read_manifest, write_json

KIND, SCHEMA_VERSION = "executable-image", 1
_DIGEST_CHARACTERS = 12
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_PATTERNS = {
    "version": re.compile(r"[A-Za-z0-9.+_-]+"),
    "commit": re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?"),
    "python": re.compile(r"\d+\.\d+\.\d+\S*"),
    "digest": re.compile(r"([0-9a-f]{64})?"),
}
_OUTCOME = re.compile(r"[a-z]+")
_LOCK = ".lock"
_MAKE_AGAIN = "remove the image and make it again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an image is; nothing in it is a time, so the same image says the same.

    Attributes:
        name: of the project, in distributions' spelling.
        version: of the distribution, or the commit's first 12 digits.
        source: what was asked for, as `open_source` reads it.
        commit: full hash of what the tests ran on.
        recipe: that the environment was made by.
        python: version of the interpreter.
        environment: variables that the tests ran with besides a shell's.
        tests: outcome by name: ``passed``, ``failed``, ``skipped`` or another word.
        flaky: names of tests whose outcome was not the same each time.
        digest: of the content, in hex; empty until a store has the image.
    """

    name: str
    version: str
    source: str
    commit: str
    recipe: Recipe
    python: str
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    flaky: tuple[str, ...] = ()
    digest: str = ""
    kind: str = KIND
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        check_types(self.recipe)
        for name, pattern in {"name": _NAME, **_PATTERNS}.items():
            value = getattr(self, name)
            if not isinstance(value, str) or not pattern.fullmatch(value):
                raise ValueError(f"{name} is {value!r}; expected a text of {pattern.pattern}")
        for name in ("environment", "tests"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not _are_texts([*value, *value.values()]):
                raise ValueError(f"{name} is {str(value)[:200]}; expected texts by name")
        if wrong := [word for word in self.tests.values() if not _OUTCOME.fullmatch(word)]:
            raise ValueError(f"tests has the outcome {wrong[0]!r}; expected a word as 'passed'")
        if not isinstance(self.source, str):
            raise ValueError(f"source is {self.source!r}; expected a text")
        if not _are_texts(self.flaky):
            raise ValueError(f"flaky is {self.flaky!r}; expected names of tests")

    def to_json(self) -> dict[str, object]:
        """As ``manifest.json`` has it."""
        values = to_json(self)
        return {**values, "environment": dict(self.environment), "tests": dict(self.tests)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
    """An image that lies in a folder."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.name

    @property
    def root(self) -> Path:
        return self.path / "root"

    @property
    def repository(self) -> Path:
        return self.path / "repository.git"


def read_image(path: Path) -> Image:
    """The image of a folder, whose files are not compared with what the manifest says.

    Raises:
        StorageError: there is no manifest that can be read, or no tree or repository beside it.
    """
    image = Image(
        path=path,
        manifest=read_manifest(
            path / MANIFEST, Manifest, kind=KIND, version=SCHEMA_VERSION, next_step=_MAKE_AGAIN
        ),
    )
    for folder in (image.root, image.repository):
        if not folder.is_dir():
            raise StorageError(
                f"{folder}: no such folder; expected that of an image: {_MAKE_AGAIN}"
            )
    return image


def check_image(image: Image) -> None:
    """Raises StorageError unless the tree is the one that the manifest tells of."""
    if (found := _digest(image.root, image.manifest)) != image.manifest.digest:
        raise StorageError(
            f"{image.path}: its content has the digest {found}; expected "
            f"{image.manifest.digest}: {_MAKE_AGAIN}"
        )


def manifest_from_json(values: object) -> Manifest:
    """The inverse of `Manifest.to_json`; raises ValueError for what is none."""
    return from_json(Manifest, values)


class Store:
    """A folder of images, which several processes may use at once.

    Args:
        folder: made if missing; what processes that are gone left half made is removed.

    Raises:
        StorageError: the folder has something else in it.
    """

    def __init__(self, folder: Path) -> None:
        folder = folder.absolute()  # tasks name images by their paths
        self.folder = folder
        self._images, self._drafts = folder / "images", folder / "drafts"
        if folder.exists() and not self._images.is_dir() and any(folder.iterdir()):
            raise StorageError(
                f"{folder}: has files and is no store of images; expected an empty or a new "
                "folder: name another"
            )
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._images.mkdir(exist_ok=True)
        self._drafts.mkdir(exist_ok=True)
        self._remove_stale()

    @contextlib.contextmanager
    def draft(self) -> Iterator[Path]:
        """An empty folder to make an image in; removed at the end unless it was added."""
        with contextlib.ExitStack() as stack:
            place = self._new_draft(stack)
            try:
                place.mkdir()
                yield place
            finally:
                if place.exists():
                    shutil.rmtree(place)
                _lock_of(place).unlink()

    def add(self, draft: Path, manifest: Manifest) -> Image:
        """Moves a draft with ``root`` and ``repository.git`` to where its content says.

        If the same image is there already, that one is returned, and the draft stays.

        Raises:
            StorageError: the draft lacks something, or has more.
            TreeError: of something in the tree that is neither folder, file nor link.
        """
        found = {path.name for path in draft.iterdir()}
        if found != {"root", "repository.git"}:
            raise StorageError(
                f"{draft}: has {sorted(found)}; expected repository.git and root: make both"
            )
        open_to_all(draft / "root")
        manifest = dataclasses.replace(manifest, digest=_digest(draft / "root", manifest))
        short = manifest.digest[:_DIGEST_CHARACTERS]
        place = self._images / f"{manifest.name}-{manifest.version}-{short}"
        write_json(draft / MANIFEST, manifest.to_json())
        try:
            draft.rename(place)
        except OSError:  # several numbers of errors say that it is there
            if not place.is_dir():
                raise
            os.utime(place / MANIFEST)  # that it is used
        return read_image(place)

    def images(self) -> list[Image]:
        """All of them, by name.

        Raises:
            StorageError: as of `read_image`.
        """
        found = []
        for path in sorted(self._images.iterdir()):
            try:
                found.append(read_image(path))
            except StorageError:
                if path.exists():  # else someone has removed it meanwhile
                    raise
        return found

    def find(self, name: str) -> Image:
        """The one image whose name is or begins with ``name``, up to a hyphen.

        Raises:
            StorageError: there is none, or more than one.
        """
        names = sorted(path.name for path in self._images.iterdir())
        found = [one for one in names if one == name] or [
            one for one in names if one.startswith(f"{name}-")
        ]
        if len(found) != 1:
            what = f"are {', '.join(found)}" if found else f"is none{nearest_hint(name, names)}"
            raise StorageError(
                f"{self.folder}: of the name {name!r} there {what}; expected one image: name it"
            )
        return read_image(self._images / found[0])

    @contextlib.contextmanager
    def use(self, image: Image) -> Iterator[Image]:
        """Keeps an image from being removed, and notes that it is used.

        Raises:
            StorageError: it has been removed.
        """
        path = image.path / MANIFEST
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_locked(path, fcntl.LOCK_SH, mode="rb"))
            except FileNotFoundError:
                raise _gone(image) from None
            os.utime(path)
            yield image

    def remove(self, image: Image) -> bool:
        """Removes an image; False, and nothing happens, where one uses it.

        Raises:
            StorageError: it is gone.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_locked(image.path / MANIFEST, mode="rb"))
            except FileNotFoundError:
                raise _gone(image) from None
            except BlockingIOError:
                return False
            # What is gone from its place as a whole is never seen in part.
            image.path.rename(stack.enter_context(self.draft()) / "removed")
        return True

    def reclaim(self, max_bytes: int) -> list[str]:
        """Removes images, those that were used longest ago first, until the rest is not larger.

        Those that are in use stay.

        Returns:
            The names of the removed ones.
        """
        images = self.images()
        used = {image.name: (image.path / MANIFEST).stat().st_mtime_ns for image in images}
        sizes = {image.name: num_bytes(image.path) for image in images}
        left, removed = sum(sizes.values()), []
        # Of equal times the first by name, as they are in that order.
        for image in sorted(images, key=lambda image: used[image.name]):
            if left <= max_bytes:
                break
            if self.remove(image):
                left -= sizes[image.name]
                removed.append(image.name)
        return removed

    def num_bytes(self) -> int:
        """What the images take on a disk, about."""
        return sum(num_bytes(path) for path in self._images.iterdir())

    def _new_draft(self, stack: contextlib.ExitStack) -> Path:
        """A name whose lock is held until the stack is left."""
        while True:
            place = self._drafts / secrets.token_hex(8)
            # Who removes stale drafts may have found the lock before we held it.
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                stack.enter_context(_locked(_lock_of(place)))
                return place

    def _remove_stale(self) -> None:
        for lock in sorted(self._drafts.glob(f"*{_LOCK}")):
            with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(lock):
                draft = lock.with_suffix("")
                if draft.exists():
                    shutil.rmtree(draft)
                lock.unlink()


@contextlib.contextmanager
def _locked(
    path: Path, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB, *, mode: str = "ab"
) -> Iterator[None]:
    """Holds a file's lock, which ends with the process.

    Raises:
        BlockingIOError: another holds it.
        FileNotFoundError: it is gone, or another has the lock of a file that had this name.
    """
    with path.open(mode) as file:
        fcntl.flock(file, how)
        if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
            raise FileNotFoundError(path)
        yield


def _lock_of(draft: Path) -> Path:
    return draft.with_suffix(_LOCK)


def _gone(image: Image) -> StorageError:
    return StorageError(
        f"{image.path}: is gone; expected an image that nobody has removed: make it again"
    )


def _digest(root: Path, manifest: Manifest) -> str:
    """Of all paths, kinds and contents, and of what the manifest says, the commit with it."""
    values = json.dumps(dataclasses.replace(manifest, digest="").to_json(), sort_keys=True)
    return hashlib.sha256(f"{hash_tree(root)}\n{values}".encode()).hexdigest()


def _are_texts(values: object) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, str) for value in values)
