"""What a corpus has been written of so far: results of whole chunks, so that a run can go on."""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.storage import write_json, write_whole
from cwm_jax.trace.corpus.settings import CorpusError
from cwm_jax.trace.corpus.worker import ItemResult, decode_results

_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, zlib.error)

_log = logging.getLogger(__name__)


class PartialCorpus:
    """The folder ``NAME.partial`` beside the corpus that is to be; one process has it at a time.

    Args:
        folder: of the corpus.
        settings: all that the results of a chunk and the choice among them are a function of.

    Raises:
        CorpusError: the corpus is there, another process writes it, or it was begun with other
            settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._target = folder
        self._folder = folder.with_name(folder.name + ".partial")
        self._chunks = self._folder / "chunks"
        self.output = self._folder / "corpus"
        if folder.exists():
            raise CorpusError(
                f"{folder}: exists; expected a new folder: name another, or delete it to write "
                "it again"
            )
        self._chunks.mkdir(parents=True, exist_ok=True)
        self._lock = (self._folder / "lock").open("w")
        try:
            self._take(settings)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> PartialCorpus:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None and not self.done_chunks():  # work that was refused: leaves nothing
            shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()

    def done_chunks(self) -> int:
        """Chunks 0 to this one, not included, are there."""
        count = 0
        while self._path(count).exists():
            count += 1
        return count

    def write(self, number: int, data: bytes) -> None:
        """Stores the encoded results of a chunk."""
        write_whole(self._path(number), data)

    def read(self, number: int, names: Sequence[str]) -> list[ItemResult]:
        """The results of a chunk that is there.

        Raises:
            CorpusError: it is damaged, or is of items of other names.
        """
        path = self._path(number)
        try:
            results = decode_results(path.read_bytes())
        except _DAMAGED as error:
            raise CorpusError(
                f"{path}: damaged ({error}); expected results of a chunk: delete it and start "
                "again, and it is traced again"
            ) from error
        found = [result.name for result in results]
        if found != list(names):
            differing = next((n for n in zip(found, names, strict=False) if n[0] != n[1]), None)
            what = f"{differing[0]!r}, now {differing[1]!r}" if differing else f"{len(found)} items"
            raise CorpusError(
                f"{path}: was traced from other work ({what}); expected the same work in the same "
                f"order: go on with that, or delete {self._folder}"
            )
        return results

    def finish(self) -> None:
        """Gives what is in ``output`` the corpus's name."""
        self.output.rename(self._target)
        shutil.rmtree(self._folder)

    def _take(self, settings: Mapping[str, Any]) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CorpusError(
                f"{self._folder}: another process writes there ({error}); expected to be alone: "
                "wait for it, or name another folder"
            ) from error
        self._check_settings(settings)
        shutil.rmtree(self.output, ignore_errors=True)  # cheap to make again from the chunks
        self.output.mkdir()

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        path = self._folder / "settings.json"
        wanted = json.loads(json.dumps(settings))
        if not path.exists():
            write_json(path, wanted)
            return
        found, wanted = _flat(json.loads(path.read_text(encoding="utf-8"))), _flat(wanted)
        differing = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        if differing:
            were = "; ".join(f"{k} was {found.get(k)}, is {wanted.get(k)}" for k in differing)
            raise CorpusError(
                f"{self._folder}: begun with other settings: {were}; expected the same: go on "
                "with those, name another folder, or delete it to begin again"
            )
        _log.info("%s: going on after %d chunks", self._folder, self.done_chunks())

    def _path(self, number: int) -> Path:
        return self._chunks / f"{number:08d}.jsonl.gz"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, with dotted keys."""
    flat = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat
