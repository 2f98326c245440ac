"""Requirement files by their names, as requirements-dev.txt."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from cwm_jax.forager.images.declared.needs import RANKS, Declared
from cwm_jax.forager.images.declared.project import Project

_TEST = re.compile(r"(unit)?tests?(ing)?\d*")
_DEV = re.compile(r"dev(el|elop|elopment)?\d*|ci")
_HOMES = ("", "requirements", "requires", "tests", "test", "testing", "ci", "dev")


def declared(project: Project) -> Iterator[Declared]:
    """Each file whose name says tests or development, with the runtime's beside it."""
    for path in project.paths:
        rank = _rank(path)
        if rank is not None:
            files = dict.fromkeys([*runtime_files(project), path])
            yield Declared(name=f"requirements {path}", rank=rank, files=tuple(files))


def runtime_files(project: Project) -> list[str]:
    """What the program itself needs, of projects that say it in a file."""
    return [path for path in ("requirements.txt",) if path in project]


def _rank(path: str) -> int | None:
    folder, name = posixpath.split(path)
    if folder not in _HOMES or not name.endswith(".txt"):
        return None
    stem = name.removesuffix(".txt").lower()
    words = re.split(r"[-_.]", stem)
    if "requirements" in words or "requires" in words or folder.startswith("require"):
        if any(map(_TEST.fullmatch, words)) or (stem == "requirements" and "test" in folder):
            return RANKS["test file"]
        if any(map(_DEV.fullmatch, words)):
            return RANKS["dev file"]
    return None
