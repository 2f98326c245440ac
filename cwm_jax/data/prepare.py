"""Tokenises the documents of a source once, into shards that are found again by their origin.

The key of a folder covers the corpus (``corpus_fingerprint``), how it is read, the tokenizer and
the split, so a change of any of them makes a new folder. Folders are written beside and renamed:
what bears the name is whole.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cwm_jax.config import DataConfig, SourceConfig
from cwm_jax.config.schema import to_json
from cwm_jax.data.encoding import encode, text_of
from cwm_jax.data.shards import (
    KIND,
    LENGTH_DTYPE,
    SCHEMA_VERSION,
    SPLITS,
    TOKEN_BITS,
    Manifest,
    Shards,
    SplitManifest,
    TextTokenizer,
    check_vocab_size,
    open_shards,
)
from cwm_jax.data.sources import DataError, Document, corpus_fingerprint, documents
from cwm_jax.data.split import SPLIT_RULE, is_heldout, split_fraction
from cwm_jax.storage import MANIFEST, RecordWriter, StoredFile, stored_file, write_json

# Tokens of one shard, uncompressed: small enough to copy, big enough to keep the files few.
_SHARD_BYTES = 256 << 20
# What is tokenised at a time: bounds memory and still feeds a multi-threaded encode_batch.
_BATCH_DOCUMENTS, _BATCH_BYTES = 256, 4 << 20
_LOG_PERIOD_S = 10.0
_FREE_SPACE = "free space there or set data.cache_directory to another disk, then start again"

_log = logging.getLogger(__name__)


def prepare(
    source: SourceConfig,
    data_config: DataConfig,
    tokenizer: TextTokenizer,
    *,
    model_vocab_size: int | None = None,
    verify: bool | None = None,
) -> Shards:
    """Tokenises ``source`` below ``cache_directory``, or finds the shards of an earlier call.

    Processes may do so at the same time; the first to finish provides the shards.

    Args:
        source: the corpus.
        data_config: ``cache_directory`` and ``heldout_fraction`` are read.
        tokenizer: encodes the text; part of the key.
        model_vocab_size: see ``open_shards``.
        verify: see ``open_shards``.

    Raises:
        DataError: as ``documents`` and ``open_shards`` do, or a split would have no document.
    """
    corpus = corpus_fingerprint(source)
    described = _description(source, data_config, tokenizer, corpus)
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    folder = Path(data_config.cache_directory) / f"{source.name}-{key[:16]}"
    if not folder.exists():
        check_vocab_size(tokenizer.vocab_size, model_vocab_size, where=f"source {source.name!r}")
        _write_folder(folder, source, data_config, tokenizer, corpus)
    return open_shards(folder, tokenizer, model_vocab_size=model_vocab_size, verify=verify)


def prepare_all(
    data_config: DataConfig, tokenizer: TextTokenizer, *, model_vocab_size: int
) -> list[Shards]:
    """`prepare` of every source, in their order."""
    return [
        prepare(source, data_config, tokenizer, model_vocab_size=model_vocab_size)
        for source in data_config.sources
    ]


def _description(
    source: SourceConfig, data_config: DataConfig, tokenizer: TextTokenizer, corpus: str
) -> dict[str, Any]:
    """Everything that the content of the shards is a function of."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": source.kind,
        "text_field": source.text_field,
        "non_utf8": source.non_utf8,
        "reasoning": source.reasoning,
        "corpus": corpus,
        "tokenizer": tokenizer.fingerprint,
        "split_rule": SPLIT_RULE,
        "heldout_fraction": data_config.heldout_fraction,
    }


def _write_folder(
    folder: Path,
    source: SourceConfig,
    data_config: DataConfig,
    tokenizer: TextTokenizer,
    corpus: str,
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    temporary = folder.parent / f".{folder.name}.{socket.gethostname()}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        manifest = _write_splits(temporary, source, data_config, tokenizer, corpus)
        write_json(temporary / MANIFEST, to_json(manifest))
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process was first, with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Deletes what killed processes of this machine have left of this very folder."""
    prefix = f".{folder.name}.{socket.gethostname()}."
    for path in folder.parent.glob(f"{prefix}*.tmp"):
        pid = path.name.removeprefix(prefix).removesuffix(".tmp")
        if pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _write_splits(
    folder: Path,
    source: SourceConfig,
    data_config: DataConfig,
    tokenizer: TextTokenizer,
    corpus: str,
) -> Manifest:
    counts = _Counts()
    fraction = data_config.heldout_fraction
    with contextlib.ExitStack() as stack:
        writers = {name: stack.enter_context(_SplitWriter(folder, name)) for name in SPLITS}
        for batch in _batches(documents(source)):
            for document, tokens in _tokenised(batch, source, tokenizer, counts):
                split = "heldout" if is_heldout(document.split_name, fraction) else "train"
                writers[split].add(tokens)
            counts.log(source.name, writers.values())
        _check_splits(source, fraction, counts, writers)
        splits = {name: writer.finish() for name, writer in writers.items()}
    return Manifest(
        kind=KIND,
        schema_version=SCHEMA_VERSION,
        source=source,
        corpus_fingerprint=corpus,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        heldout_fraction=fraction,
        split_rule=SPLIT_RULE,
        skipped_non_utf8_documents=counts.skipped,
        bytes_documents=counts.kept_bytes,
        empty_documents=counts.empty,
        **splits,
    )


def _batches(stream: Iterable[Document]) -> Iterator[list[Document]]:
    batch, size = [], 0
    for document in stream:
        batch.append(document)
        size += len(document.data)
        if len(batch) >= _BATCH_DOCUMENTS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _tokenised(
    batch: list[Document], source: SourceConfig, tokenizer: TextTokenizer, counts: _Counts
) -> Iterator[tuple[Document, np.ndarray]]:
    """The documents of a batch that are kept, in order, each with the tokens to be stored."""
    kept = [document for document in batch if _is_kept(document, source, counts)]
    for document, tokens in zip(kept, encode(kept, source, tokenizer), strict=True):
        highest = int((tokens & TOKEN_BITS).max())
        assert highest < tokenizer.vocab_size, (document.name, highest)
        yield document, tokens


def _is_kept(document: Document, source: SourceConfig, counts: _Counts) -> bool:
    is_text = text_of(document) is not None
    if not document.data:
        counts.empty += 1
    elif not is_text and source.non_utf8 == "skip":
        counts.skipped += 1
    else:
        counts.kept_bytes += not is_text
        counts.note_split_fraction(document.split_name)
        return True
    return False


def _check_splits(
    source: SourceConfig, fraction: float, counts: _Counts, writers: dict[str, _SplitWriter]
) -> None:
    found = {name: writer.documents for name, writer in writers.items()}
    if all(found.values()):
        return
    if not any(found.values()):
        why, way = f"{counts.empty} empty, {counts.skipped} not UTF-8", "set non_utf8='bytes' or"
        if source.is_of_episodes:
            why, way = f"{counts.empty} episodes have no main() whose output is plain text", "set"
        raise DataError(
            f"source {source.name!r}: no document is left to tokenise ({why}); {way} another path"
        )
    if counts.lowest == counts.highest:
        raise DataError(
            f"source {source.name!r}: its {sum(found.values())} documents are one group, such as "
            "the functions of one file, and no group is divided between the training and the "
            "held-out split; add documents of others"
        )
    needed = "above" if not found["heldout"] else "at most"
    bound = counts.lowest if not found["heldout"] else counts.highest
    empty = "held-out" if not found["heldout"] else "training"
    raise DataError(
        f"source {source.name!r}: data.heldout_fraction {fraction} leaves its {empty} split "
        f"without one of its {sum(found.values())} documents; add documents or set "
        f"heldout_fraction {needed} {bound:.6f}"
    )


@dataclasses.dataclass
class _Counts:
    empty: int = 0
    skipped: int = 0
    kept_bytes: int = 0
    lowest: float = 1.0
    highest: float = 0.0
    started_s: float = dataclasses.field(default_factory=time.monotonic)
    logged_s: float = dataclasses.field(default_factory=time.monotonic)

    def note_split_fraction(self, name: str) -> None:
        at = split_fraction(name)
        self.lowest, self.highest = min(self.lowest, at), max(self.highest, at)

    def log(self, name: str, writers: Iterable[_SplitWriter]) -> None:
        if time.monotonic() - self.logged_s < _LOG_PERIOD_S:
            return
        self.logged_s = time.monotonic()
        done = [sum(getattr(w, key) for w in writers) for key in ("documents", "tokens")]
        _log.info(
            "source %s: %d documents, %d tokens in %.0f s",
            name,
            *done,
            self.logged_s - self.started_s,
        )


class _SplitWriter:
    """Writes the records of one split, and their lengths."""

    def __init__(self, folder: Path, split: str) -> None:
        self.documents = self.tokens = 0
        self._folder, self._split = folder, split
        self._hash = hashlib.sha256()
        self._lengths = array.array("I")
        self._records = RecordWriter(folder, split, shard_bytes=_SHARD_BYTES, next_step=_FREE_SPACE)

    def __enter__(self) -> _SplitWriter:
        self._records.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._records.__exit__(*error)

    def add(self, tokens: np.ndarray) -> None:
        record = tokens.tobytes()
        self._records.add(record)
        self._hash.update(len(tokens).to_bytes(8, "little") + record)
        self._lengths.append(len(tokens))
        self.documents += 1
        self.tokens += len(tokens)

    def finish(self) -> SplitManifest:
        return SplitManifest(
            documents=self.documents,
            tokens=self.tokens,
            tokens_sha256=self._hash.hexdigest(),
            files=self._records.finish(),
            lengths=self._write_lengths(),
        )

    def _write_lengths(self) -> StoredFile:
        path = self._folder / f"{self._split}-lengths.npy"
        np.save(path, np.array(self._lengths, LENGTH_DTYPE))
        return stored_file(path)
