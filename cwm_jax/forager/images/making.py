"""Sources to images: recipes and commits are tried until one works; each source is a row.

A source that fails is a row as well, with the class of the attempt that came furthest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cwm_jax.forager.decontamination import Exclusions
from cwm_jax.forager.images.builds import Attempt, BuildLimits, attempt
from cwm_jax.forager.images.distributions import download_sdist
from cwm_jax.forager.images.index_access import Index, index_access
from cwm_jax.forager.images.recipe import Recipe, recipes
from cwm_jax.forager.images.report import FAILURES, BuildRow
from cwm_jax.forager.images.source import Source, SourceError, open_source
from cwm_jax.forager.images.store import Manifest, Store
from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.rl.envs.swe.workspaces.checkout import files_of
from cwm_jax.storage import LineFile, StorageError
from cwm_jax.trace.corpus.engines import Engine

_ORDER = list(FAILURES)  # from the least that a source can come to, to the most


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How images are made.

    Attributes:
        earlier: commits before the first that are tried where it fails.
        limits: of each attempt.
        exclusions: repositories that are left out.
        retry: whether sources whose row is a failure are tried again.
    """

    earlier: int = 0
    limits: BuildLimits = dataclasses.field(default_factory=BuildLimits)
    exclusions: Exclusions = dataclasses.field(default_factory=Exclusions)
    retry: bool = False


def make_images(
    specs: Sequence[str], store: Path, settings: ImageSettings, *, index: Index, engine: Engine
) -> list[BuildRow]:
    """Makes what the store's ``builds.jsonl`` does not tell of; the rows of these sources.

    Of two rows of a source the later one holds. Rows are written in the order of the sources; a
    kill loses those in flight.

    Raises:
        StorageError: another process writes the store, or a row of it cannot be read.
        RuntimeError: an attempt failed in a way that is no row.
    """
    Store(store)  # made, and its stale drafts removed
    path = store / "builds.jsonl"
    file = LineFile(path, shown=path, otherwise="name another --store")
    try:
        rows = {row.source: row for row in map(functools.partial(_row, path), file.lines())}
        missing = [spec for spec in dict.fromkeys(specs) if _is_missing(rows.get(spec), settings)]
        function = functools.partial(_made, store, settings, index)
        for line in engine.map_chunks(function, ([spec] for spec in missing), _died):
            file.add(line)
            row = _row(path, line)
            rows[row.source] = row
    finally:
        file.close()
    return [rows[spec] for spec in dict.fromkeys(specs)]


def make_image(spec: str, store: Store, settings: ImageSettings, index: Index) -> BuildRow:
    """Tries a source, and keeps the first image of it that works.

    Args:
        spec: as of `open_source`.
        store: that gets the image.
        settings: of the attempts.
        index: of packages.
    """
    if excluded := settings.exclusions.find(spec):
        return BuildRow(source=spec, failure="excluded", detail=f"is {excluded}")
    began = time.monotonic()
    with store.draft() as work, index_access(index) as access:
        try:
            source = open_source(
                spec,
                work,
                earlier=settings.earlier,
                download=functools.partial(download_sdist, index=index),
            )
        except (SourceError, ValueError, OSError) as error:
            return BuildRow(source=spec, failure="source", detail=str(error))
        best: Attempt | None = None
        for commit, recipe in _candidates(source):
            with store.draft() as draft:
                found = attempt(
                    source.repository,
                    commit,
                    recipe,
                    draft=draft,
                    access=access,
                    limits=settings.limits,
                )
                if not found.failure:
                    image = store.add(draft, _manifest(spec, source, found))
                    return _told(spec, found, began, image=image.name)
            if best is None or _progress(found) > _progress(best):
                best = found
    if best is None:
        return BuildRow(source=spec, failure="no-recipe", detail="no tests are found")
    return _told(spec, best, began)


def _is_missing(row: BuildRow | None, settings: ImageSettings) -> bool:
    return row is None or (settings.retry and bool(row.failure))


def _candidates(source: Source) -> Iterator[tuple[str, Recipe]]:
    """Commits and recipes, in the order in which they are tried."""
    for commit in source.commits:
        with contextlib.suppress(EnvironmentFailure):  # too large a tree; an earlier one may do
            files = files_of({"git": str(source.repository), "commit": commit})
            for recipe in recipes(files):
                yield commit, recipe


def _progress(found: Attempt) -> tuple[int, float]:
    return _ORDER.index(found.failure), found.share


def _told(spec: str, found: Attempt, began: float, *, image: str = "") -> BuildRow:
    counts = {
        word: list(found.tests.values()).count(word) for word in ("passed", "failed", "skipped")
    }
    return BuildRow(
        source=spec,
        failure=found.failure,
        detail=found.detail,
        image=image,
        recipe=found.recipe.name,
        commit=found.commit,
        **counts,
        flaky=len(found.flaky),
        build_s=round(found.build_s, 1),
        tests_s=round(found.tests_s, 1),
        all_s=round(time.monotonic() - began, 1),
    )


def _manifest(spec: str, source: Source, found: Attempt) -> Manifest:
    is_first = found.commit == source.commits[0]
    return Manifest(
        name=source.name,
        version=source.version if is_first else found.commit[: len(source.version)],
        source=spec,
        commit=found.commit,
        recipe=found.recipe,
        python=platform.python_version(),
        tests=found.tests,
        flaky=found.flaky,
    )


def _made(store: Path, settings: ImageSettings, index: Index, specs: Sequence[str]) -> bytes:
    rows = (make_image(spec, Store(store), settings, index) for spec in specs)
    return b"".join(json.dumps(row.to_json()).encode() + b"\n" for row in rows)


def _died(spec: str) -> bytes:
    row = BuildRow(source=spec, failure="sandbox", detail="it ended its process twice")
    return json.dumps(row.to_json()).encode() + b"\n"


def _row(path: Path, line: bytes) -> BuildRow:
    try:
        return BuildRow.from_json(json.loads(line))
    except ValueError as error:
        raise StorageError(f"{path}: {error}; name another --store") from error
