"""Documents as a source of kind ``jsonl`` reads them, and the counts of what became none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cwm_jax.forager.decontamination import KnownTexts
from cwm_jax.storage import write_json

MAX_CHARS = 200_000  # assumed: some 50,000 tokens


@dataclasses.dataclass(frozen=True)
class Document:
    """A text to train on.

    Attributes:
        name: unique in its source.
        text: of the document.
        origin: where it is from, in words for people and for later filters.
    """

    name: str
    text: str
    origin: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Something that became no document, and why."""

    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What was read and what became of it.

    Attributes:
        read: documents and what was dropped.
        kept: documents that were written.
        characters: of their texts.
        dropped: reason to number.
    """

    read: int
    kept: int
    characters: int
    dropped: dict[str, int]

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.dropped.items())
        return (
            f"{self.kept:,} documents of {self.read:,} read, {self.characters:,} characters; "
            f"dropped: {reasons or 'none'}"
        )


def write_documents(
    path: Path,
    found: Iterable[Document | Dropped],
    *,
    known: KnownTexts | None = None,
    max_chars: int = MAX_CHARS,
) -> Counts:
    """Writes documents as JSONL (``name``, ``text``, ``origin``), each text once.

    The file is there whole or not at all; ``PATH.counts.json`` holds the counts.

    Args:
        path: ends with ``.jsonl``; its folder is made.
        found: in the order in which they are written.
        known: texts whose near-duplicates are dropped.
        max_chars: longer texts are dropped.

    Raises:
        ValueError: another suffix, or not one document is left.
    """
    if path.suffix != ".jsonl":
        raise ValueError(f"{path}: expected a file that ends with .jsonl: name one")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    sieve = _Sieve(known, max_chars)
    try:
        _write_lines(beside, filter(sieve.passes, found))
        counts = sieve.counts()
        if not counts.kept:
            raise ValueError(f"{path} is not written: {counts}; give more, or other filters")
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    beside.rename(path)
    write_json(path.with_name(f"{path.name}.counts.json"), dataclasses.asdict(counts))
    return counts


def _write_lines(path: Path, documents: Iterable[Document | Dropped]) -> None:
    with path.open("wb") as file:
        for document in documents:
            assert isinstance(document, Document)
            line = json.dumps(dataclasses.asdict(document), ensure_ascii=False, sort_keys=True)
            file.write(line.encode("utf-8", "surrogatepass") + b"\n")
        file.flush()
        os.fsync(file.fileno())


class _Sieve:
    """The filters that all documents share, and the counts."""

    def __init__(self, known: KnownTexts | None, max_chars: int) -> None:
        self._known, self._max_chars = known, max_chars
        self._seen: set[bytes] = set()
        self._read = self._characters = 0
        self._dropped: dict[str, int] = {}

    def passes(self, item: Document | Dropped) -> bool:
        self._read += 1
        reason = item.reason if isinstance(item, Dropped) else self._reason(item)
        if reason is not None:
            self._dropped[reason] = self._dropped.get(reason, 0) + 1
        elif isinstance(item, Document):
            self._characters += len(item.text)
        return reason is None

    def counts(self) -> Counts:
        return Counts(
            read=self._read,
            kept=self._read - sum(self._dropped.values()),
            characters=self._characters,
            dropped=dict(sorted(self._dropped.items())),
        )

    def _reason(self, document: Document) -> str | None:
        if len(document.text) > self._max_chars:
            return "too long"
        digest = hashlib.blake2b(
            document.text.encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()
        if digest in self._seen:
            return "duplicate"
        self._seen.add(digest)
        if self._known is not None and self._known.find(document.text):
            return "near a known text"
        return None
