"""What a container of an image is made of: two tape archives and a configuration.

The same image folder gives the same bytes: entries are sorted, and have neither times nor owners.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.forager.images.bare import BRANCH, git, resolve
from cwm_jax.forager.images.store import Image, Manifest, manifest_from_json
from cwm_jax.forager.images.tree import Node, nodes
from cwm_jax.storage import StorageError

HOME = "/tmp"  # where a sandbox has the root of an image
CHECKOUT = f"{HOME}/testbed"
MANIFEST_LABEL = "cwm-jax.manifest"
NEEDS_LABEL = "cwm-jax.needs"
_VENV = f"{HOME}/venv"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # Source: Docker's default
_PROGRAMS = ("bash", "git")


def needs(image: Image, links: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """What a base has to bring so that the image's tests run on it.

    Args:
        image: of a store.
        links: absolute paths that are added as links, and where these lead.

    Returns:
        Programs by name, the interpreter's version, and paths that links of the image lead to.
    """
    links = links or {}
    found = {_end(os.fsdecode(node.target), links) for node in nodes(image.root) if node.target}
    outside = {path for path in found if path.startswith("/") and not _is_below(path, HOME)}
    return (*_PROGRAMS, f"Python {image.manifest.python}", *sorted(outside))


def write_root_layer(image: Image, path: Path, links: Mapping[str, str]) -> None:
    """The environment, at /tmp, and links elsewhere.

    Raises:
        ValueError: a link is not at an absolute path, or lies in /tmp.
    """
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        _add_folder(archive, HOME, mode=0o1777)
        _add_tree(archive, image.root, HOME)
        made = {"/"}
        for place, target in sorted(links.items()):
            if posixpath.normpath(place) != place or _is_below(place, HOME) or place[0] != "/":
                raise ValueError(
                    f"a link is at {place!r}; expected an absolute path that is not in {HOME}"
                )
            above = place
            folders = []
            while (above := posixpath.dirname(above)) not in made:
                folders.append(above)
            for folder in reversed(folders):
                made.add(folder)
                _add_folder(archive, folder, mode=0o755)
            _add(archive, place, Node(path=b"", kind="link", target=os.fsencode(target)))


def write_checkout_layer(image: Image, path: Path, work: Path) -> None:
    """The repository with its history, and its commit checked out.

    Args:
        image: of a store.
        path: of the archive.
        work: a folder for the checkout; it is not there yet.

    Raises:
        GitError: as of `git`.
        StorageError: the repository is at another commit than the manifest says.
    """
    found = resolve(image.repository, BRANCH)
    if found != image.manifest.commit:
        raise StorageError(
            f"{image.repository}: is at commit {found}; expected {image.manifest.commit}: make the "
            "image again"
        )
    inside = work / ".git"
    shutil.copytree(image.repository, inside)
    git(["config", "core.bare", "false"], folder=inside)
    # Neither writes a time into the index.
    git(["read-tree", BRANCH], folder=inside)
    git(["--work-tree", str(work), "checkout-index", "--all", "--quiet"], folder=inside)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        _add_folder(archive, CHECKOUT, mode=0o777)
        _add_tree(archive, work, CHECKOUT)


def configuration(
    image: Image, links: Mapping[str, str], *, environment: Sequence[str] = ()
) -> dict[str, Any]:
    """Of a container, in the words that OCI and engines share.

    Args:
        image: of a store.
        links: as of `needs`.
        environment: of the base, ``NAME=VALUE``.
    """
    variables = {entry.partition("=")[0]: entry.partition("=")[2] for entry in environment}
    path = f"{_VENV}/bin:{variables.get('PATH', _PATH)}"
    variables |= {"VIRTUAL_ENV": _VENV, "PATH": path, **image.manifest.environment}
    said = json.dumps(image.manifest.to_json(), sort_keys=True, separators=(",", ":"))
    return {
        "Env": [f"{name}={value}" for name, value in sorted(variables.items())],
        "WorkingDir": CHECKOUT,
        "Cmd": ["/bin/bash"],
        "Labels": {
            "org.opencontainers.image.title": image.manifest.name,
            "org.opencontainers.image.version": image.manifest.version,
            "org.opencontainers.image.revision": image.manifest.commit,
            NEEDS_LABEL: ", ".join(needs(image, links)),
            MANIFEST_LABEL: said,
        },
    }


def manifest_of_labels(labels: Mapping[str, str]) -> Manifest:
    """What an image in a container's form says of itself.

    Raises:
        ValueError: the labels are of another image, or the manifest is damaged.
    """
    if MANIFEST_LABEL not in labels:
        raise ValueError(
            f"the labels are {sorted(labels)}; expected {MANIFEST_LABEL}: take an image that "
            "`forage images` has made"
        )
    return manifest_from_json(json.loads(labels[MANIFEST_LABEL]))


def reference(image: Image) -> str:
    """The name and tag of an image among containers."""
    tag = image.name.removeprefix(f"{image.manifest.name}-")
    return f"forage/{image.manifest.name}:{re.sub(r'[^A-Za-z0-9_.-]', '-', tag)}"


def _end(path: str, links: Mapping[str, str]) -> str:
    """Where added links lead."""
    seen = set()
    while path in links and path not in seen:
        seen.add(path)
        path = links[path]
    return path


def _is_below(path: str, folder: str) -> bool:
    return f"{posixpath.normpath(path)}/".startswith(f"{folder}/")


def _add_tree(archive: tarfile.TarFile, root: Path, place: str) -> None:
    for node in nodes(root):
        path = os.fsdecode(node.path)
        _add(archive, f"{place}/{path}", node, root / path)


def _add_folder(archive: tarfile.TarFile, place: str, *, mode: int) -> None:
    entry = tarfile.TarInfo(place.lstrip("/"))
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    archive.addfile(entry)


def _add(archive: tarfile.TarFile, place: str, node: Node, source: Path | None = None) -> None:
    entry = tarfile.TarInfo(place.lstrip("/"))
    entry.mode = 0o777 if node.program or node.kind != "file" else 0o666
    if node.kind == "folder":
        entry.type = tarfile.DIRTYPE
    elif node.kind == "link":
        entry.type, entry.linkname = tarfile.SYMTYPE, os.fsdecode(node.target)
    else:
        entry.size = node.num_bytes
        assert source is not None
        with source.open("rb") as file:
            archive.addfile(entry, file)
        return
    archive.addfile(entry)
