"""A finished corpus: ArrayRecord shards and the manifest that they are checked against.

A folder holds ``traces-00000-of-000NN.arrayrecord``, whose records are episodes as JSON in UTF-8,
``manifest.json``, and ``run.json`` with what differs from run to run.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

from cwm_jax import storage
from cwm_jax.config.schema import check_types
from cwm_jax.storage import MANIFEST, StoredFile, check_file, read_records
from cwm_jax.trace.corpus.settings import CorpusError
from cwm_jax.trace.episodes import Episode, episode_from_json

KIND, SCHEMA_VERSION = "trace-corpus", 1
_READ_AGAIN = "name the folder of a trace corpus, or write the corpus again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a corpus holds and what it was made from.

    Attributes:
        schema_version, kind: of the folder.
        files: in the order of their episodes.
        num_episodes, num_events: in all files.
        python: version of the interpreter that ran the programs.
        limits: of the traces.
        settings: `CorpusSettings` without the limits, and the benchmarks that were left out.
        report: `CorpusReport`.
    """

    schema_version: int
    kind: str
    files: tuple[StoredFile, ...]
    num_episodes: int
    num_events: int
    python: str
    limits: dict
    settings: dict
    report: dict

    def __post_init__(self) -> None:
        check_types(self)


def read_manifest(folder: str | os.PathLike) -> Manifest:
    """The manifest of a corpus.

    Raises:
        StorageError: there is none, or it is damaged, or of another kind or version.
    """
    path = Path(folder) / MANIFEST
    return storage.read_manifest(
        path, Manifest, kind=KIND, version=SCHEMA_VERSION, next_step=_READ_AGAIN
    )


def read_corpus(folder: str | os.PathLike) -> Iterator[Episode]:
    """The episodes of a corpus, in its order.

    Manifest and sizes are checked at once, the content of each file before its first episode.

    Raises:
        StorageError: no or a damaged manifest; a file that is missing or damaged.
        CorpusError: a record is no episode, or there are more or fewer than the manifest says.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for file in manifest.files:
        check_file(folder / file.name, file, verify=False, next_step=_READ_AGAIN)
    return _episodes(folder, manifest)


def read_episodes(folder: str | os.PathLike, file: StoredFile) -> Iterator[Episode]:
    """The episodes of one file of a corpus; raises as `read_corpus` does."""
    for where, record in read_records(Path(folder) / file.name, file, next_step=_READ_AGAIN):
        try:
            episode = episode_from_json(json.loads(record))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CorpusError(f"{where}: no episode ({error}); {_READ_AGAIN}") from error
        yield episode


def _episodes(folder: Path, manifest: Manifest) -> Iterator[Episode]:
    count = 0
    for file in manifest.files:
        for episode in read_episodes(folder, file):
            count += 1
            yield episode
    if count != manifest.num_episodes:
        raise CorpusError(
            f"{folder}: its files hold {count} episodes; expected {manifest.num_episodes}, as its "
            f"manifest says: {_READ_AGAIN}"
        )
