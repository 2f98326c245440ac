"""Images without a network: projects of the standard library alone, built as others are."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from cwm_jax.forager.images.builds import Attempt, BuildLimits, attempt
from cwm_jax.forager.images.index_access import Access
from cwm_jax.forager.images.recipe import Recipe
from cwm_jax.forager.images.store import Image, Manifest, Store
from cwm_jax.sandbox import ShellLimits
from tests.forager.packages_made import COMMAND

NO_INDEX = Access(readable=(), start="", refused=[])
RECIPE = Recipe(name="given", install=(), command=COMMAND, format="unittest", canary="tests")
_MIB = 1 << 20
LIMITS = BuildLimits(
    install_s=120.0,
    test_s=60.0,
    test=ShellLimits(
        memory_bytes=1024 * _MIB, scratch_bytes=64 * _MIB, output_bytes=_MIB, processes=32
    ),
)


def git(folder: Path, *arguments: str) -> str:
    line = ["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True).stdout


def repository(folder: Path, *commits: tuple[str, Mapping[str, str]]) -> Path:
    """Of messages and the files that each commit writes."""
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for message, files in commits:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        git(folder, "add", ".")
        git(folder, "commit", "-qm", message)
    return folder


def tried(
    folder: Path, checkout: Path, recipe: Recipe = RECIPE, limits: BuildLimits = LIMITS
) -> Attempt:
    """What comes of a recipe at a checkout's commit; the draft is ``folder``."""
    folder.mkdir(parents=True)
    commit = git(checkout, "rev-parse", "HEAD").strip()
    return attempt(checkout, commit, recipe, draft=folder, access=NO_INDEX, limits=limits)


def image_of(store: Store, checkout: Path, *, name: str, recipe: Recipe = RECIPE) -> Image:
    """An image that is kept."""
    with store.draft() as draft:
        found = tried(draft / "made", checkout, recipe)
        assert not found.failure, found
        for path in ("root", "repository.git"):
            (draft / "made" / path).rename(draft / path)
        (draft / "made").rmdir()
        manifest = Manifest(
            name=name,
            version="1",
            source=str(checkout),
            commit=found.commit,
            recipe=recipe,
            python=platform.python_version(),
            tests=found.tests,
            flaky=found.flaky,
        )
        return store.add(draft, manifest)


def outcomes(found: Attempt) -> Sequence[str]:
    return [f"{name.rpartition('_')[2]} {outcome}" for name, outcome in found.tests.items()]
